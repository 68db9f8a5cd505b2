//! What `nft -j list ruleset` prints: brought into the words of `nft list ruleset`, for its reader.

use std::fmt::Write as _;

use serde_json::Value;

use super::model::Ruleset;
use super::nft_text;

pub(super) fn read(text: &str) -> Result<Ruleset, serde_json::Error> {
    let document: Value = serde_json::from_str(text)?;
    let objects = document["nftables"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut ruleset = nft_text::read(&in_words(objects));
    for chain in &mut ruleset.chains {
        for rule in &mut chain.rules {
            // The line is none of the file's.
            let words = rule.text.split_once(": ").map_or("", |(_, words)| words);
            rule.text = format!("chain {}: {words}", chain.name);
        }
    }
    Ok(ruleset)
}

/// Sets, then chains with what calls them, then rules, each within its table: order matters among rules only.
fn in_words(objects: &[Value]) -> String {
    let mut text = String::new();
    for kind in ["set", "chain", "rule"] {
        for object in objects.iter().map(|object| &object[kind]).filter(|object| object.is_object()) {
            let name = if kind == "rule" { &object["chain"] } else { &object["name"] };
            let heading = if kind == "rule" { "chain" } else { kind };
            let elements = serde_json::json!({ "set": object["elem"] });
            let body = match kind {
                "set" if object["elem"].is_array() => format!("elements = {}", value(&elements)),
                "chain" if object["hook"].is_string() => {
                    format!("type {} hook {} priority", word(&object["type"]), word(&object["hook"]))
                }
                "set" | "chain" => String::new(),
                _ => rule(&object["expr"]),
            };
            let (family, table) = (word(&object["family"]), word(&object["table"]));
            // Writing to a String does not fail.
            let _ = writeln!(text, "table {family} {table} {{\n{heading} {} {{\n{body}\n}}\n}}", word(name));
        }
    }
    text
}

fn rule(statements: &Value) -> String {
    let statements = statements.as_array().map(Vec::as_slice).unwrap_or_default();
    let words: Vec<String> = statements.iter().map(statement).collect();
    words.join(" ").trim().to_owned()
}

fn statement(statement: &Value) -> String {
    let Some((name, body)) = statement.as_object().and_then(|object| object.iter().next()) else {
        return word(statement);
    };
    match name.as_str() {
        "match" => {
            let not = if body["op"] == "!=" { "!= " } else { "" };
            // A single flag of connection tracking is tested by `in`.
            format!("{} {not}{}", left(&body["left"]), value(&body["right"]))
        }
        "counter" | "log" => String::new(),
        "jump" | "goto" => format!("{name} {}", word(&body["target"])),
        "snat" | "dnat" | "masquerade" | "redirect" => translation(name, body),
        _ if body.is_null() => name.clone(),
        _ => format!("{name} {body}"),
    }
}

fn left(side: &Value) -> String {
    let (payload, fib) = (&side["payload"], &side["fib"]);
    if payload.is_object() {
        format!("{} {}", word(&payload["protocol"]), word(&payload["field"]))
    } else if fib.is_object() {
        let flags = fib["flags"].as_array().map(Vec::as_slice).unwrap_or_default();
        format!("fib {} {}", flags.iter().map(word).collect::<Vec<_>>().join(" . "), word(&fib["result"]))
    } else if let Some(key) = side["meta"]["key"].as_str() {
        let short = matches!(key, "iifname" | "oifname" | "iif" | "oif");
        if short { key.to_owned() } else { format!("meta {key}") }
    } else if let Some(key) = side["ct"]["key"].as_str() {
        format!("ct {key}")
    } else {
        side.to_string()
    }
}

fn translation(name: &str, body: &Value) -> String {
    let prefix = if body["type_flags"] == "prefix" { "ip prefix " } else { "" };
    let address = if body["addr"].is_null() { String::new() } else { value(&body["addr"]) };
    let port = if body["port"].is_null() { String::new() } else { format!(":{}", value(&body["port"])) };
    if address.is_empty() && port.is_empty() {
        return name.to_owned();
    }
    format!("{name} {prefix}to {address}{port}")
}

fn value(value: &Value) -> String {
    let items = |list: &Value| {
        let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
        list.iter().map(self::value).collect::<Vec<_>>()
    };
    if value["prefix"].is_object() {
        format!("{}/{}", word(&value["prefix"]["addr"]), value["prefix"]["len"])
    } else if value["range"].is_array() {
        items(&value["range"]).join("-")
    } else if value["set"].is_array() {
        format!("{{ {} }}", items(&value["set"]).join(", "))
    } else if value["map"].is_object() {
        format!("{} map {}", left(&value["map"]["key"]), self::value(&value["map"]["data"]))
    } else if value["concat"].is_array() {
        items(&value["concat"]).join(" . ")
    } else if value["elem"].is_object() {
        self::value(&value["elem"]["val"])
    } else if value.is_array() {
        // An element of a map, or flags.
        let between = if value[0].is_string() && !value[0].as_str().is_some_and(super::model::is_address) {
            ","
        } else {
            " : "
        };
        items(value).join(between)
    } else {
        word(value)
    }
}

/// Text without the quotes; the rest as JSON has it.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
