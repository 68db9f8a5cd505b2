//! The configuration, as text that is known to be valid.

use std::fmt::Write as _;

use super::carry::{Carried, Kind, Section};
use super::{Conversion, ConvertError, Left};
use crate::config::{Config, ConfigError};

/// Writes what was carried over. A section that the configuration does not allow is left out with its reason.
pub(super) fn write(carried: Carried) -> Result<Conversion, ConvertError> {
    let Carried { inside, outside, sections, mut left, notes } = carried;
    let interfaces = interfaces(&inside, &outside);
    if let Some(problem) = judge(&interfaces) {
        return Err(ConvertError {
            problem,
            hint: "say what is on which side: --inside NAMES --outside NAMES",
        });
    }
    let sections = allowed(&interfaces, sections, &mut left);
    let mut text = String::from(
        "# Made from netfilter's rules by `natgw convert`. Read it before it is used: natgw check -c FILE\n",
    );
    for note in &notes {
        comment(&mut text, &format!("Note: {note}"));
    }
    text.push_str(&interfaces);
    for section in &sections {
        text.push('\n');
        comment(&mut text, &section.rule);
        text.push_str(&body(&section.kind));
    }
    if !left.is_empty() {
        text.push_str("\n# Not carried over:\n");
        for Left { rule, reason } in &left {
            comment(&mut text, rule);
            comment(&mut text, &format!("  {reason}"));
        }
    }
    Ok(Conversion { text, left, notes, carried: sections.len() })
}

fn allowed(interfaces: &str, sections: Vec<Section>, left: &mut Vec<Left>) -> Vec<Section> {
    let whole: String = sections.iter().map(|section| body(&section.kind)).collect();
    if judge(&format!("{interfaces}{whole}")).is_none() {
        return sections;
    }
    let mut text = interfaces.to_owned();
    let mut kept = Vec::new();
    for section in sections {
        let longer = format!("{text}{}", body(&section.kind));
        match judge(&longer) {
            None => {
                text = longer;
                kept.push(section);
            }
            Some(reason) => left.push(Left { rule: section.rule, reason }),
        }
    }
    kept
}

/// What is wrong with a configuration.
fn judge(text: &str) -> Option<String> {
    match Config::parse(text, "") {
        Ok(_) => None,
        Err(ConfigError::Invalid { problems, .. }) => problems.first().map(|problem| problem.message.clone()),
        Err(other) => Some(other.to_string()),
    }
}

fn interfaces(inside: &[String], outside: &[String]) -> String {
    let mut text = String::new();
    for (side, names) in [("inside", inside), ("outside", outside)] {
        for name in names {
            text.push_str("\n[[interface]]\n");
            key(&mut text, "name", name);
            key(&mut text, "side", side);
        }
    }
    text
}

fn body(kind: &Kind) -> String {
    let mut text = String::new();
    match kind {
        Kind::Static { external, internal } => {
            text.push_str("[[static]]\n");
            key(&mut text, "external", external);
            key(&mut text, "internal", internal);
        }
        Kind::Forward { protocols, external, internal, source } => {
            text.push_str("[[forward]]\n");
            list(&mut text, "protocol", protocols);
            key(&mut text, "external", external);
            key(&mut text, "internal", internal);
            list(&mut text, "source", source);
        }
        Kind::Snat { source, destination, protocols, out, to, ports } => {
            text.push_str("[[snat]]\n");
            list(&mut text, "source", source);
            list(&mut text, "destination", destination);
            list(&mut text, "protocol", protocols);
            if let Some(out) = out {
                key(&mut text, "out", out);
            }
            match to.as_slice() {
                [word] if word == "masquerade" || word == "none" => key(&mut text, "to", word),
                addresses => list(&mut text, "to", addresses),
            }
            if let Some(ports) = ports {
                key(&mut text, "ports", ports);
            }
        }
    }
    text
}

fn key(text: &mut String, key: &str, value: &str) {
    // Writing to a String does not fail.
    let _ = writeln!(text, "{key} = {}", quoted(value));
}

fn list(text: &mut String, key: &str, values: &[String]) {
    if !values.is_empty() {
        let values: Vec<String> = values.iter().map(|value| quoted(value)).collect();
        let _ = writeln!(text, "{key} = [{}]", values.join(", "));
    }
}

/// Text as TOML has it, whatever is in it.
fn quoted(value: &str) -> String {
    toml_edit::Value::from(value).to_string()
}

/// TOML allows no control characters in comments.
fn comment(text: &mut String, line: &str) {
    let plain: String = line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let _ = writeln!(text, "# {plain}");
}
