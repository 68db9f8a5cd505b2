//! What `nft list ruleset` prints.

use std::collections::HashMap;
use std::iter::Peekable;
use std::vec::IntoIter;

use super::model::{
    Action, Hook, Name, Rule, Ruleset, Target, When, is_address, ports, prefixes, protocol, words,
};

pub(super) fn read(text: &str) -> Ruleset {
    let mut reader = Reader::default();
    for (index, line) in joined(text) {
        reader.line(index, &line);
    }
    reader.ruleset
}

/// Lines with their numbers; lists that go over several are one.
fn joined(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut within = false;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some((_, begun)) = lines.last_mut().filter(|_| within) {
            begun.push(' ');
            begun.push_str(line);
            within = !line.contains('}');
        } else {
            within = line.contains('{') && !line.contains('}') && !line.ends_with('{');
            lines.push((index + 1, line.to_owned()));
        }
    }
    lines
}

#[derive(Default)]
struct Reader {
    ruleset: Ruleset,
    table: String,
    chain: Option<String>,
    set: Option<String>,
    /// Named sets of each table.
    sets: HashMap<(String, String), Vec<String>>,
}

impl Reader {
    fn line(&mut self, number: usize, line: &str) {
        let heading: Vec<&str> = line.split_whitespace().collect();
        match heading.as_slice() {
            [] | ["#", ..] => {}
            ["table", family, name, "{"] => self.table = format!("{family} {name}"),
            ["chain", name, "{"] => {
                self.chain = Some((*name).to_owned());
                self.ruleset.chain(&self.table, name);
            }
            ["set" | "map", name, "{"] => self.set = Some((*name).to_owned()),
            ["}"] => (self.chain, self.set) = (None, None),
            ["elements", "=", ..] => {
                let Some(name) = self.set.clone() else { return };
                let mut words = tokens(line).into_iter().peekable();
                let _ = words.by_ref().nth(1);
                self.sets.insert((self.table.clone(), name), list(&mut words));
            }
            ["type", kind, "hook", hook, ..] => {
                let Some(name) = self.chain.clone() else { return };
                self.ruleset.chain(&self.table, &name).hook = match (*kind, *hook) {
                    ("nat", "prerouting") => Hook::Prerouting,
                    ("nat", "postrouting") => Hook::Postrouting,
                    ("nat", _) => Hook::Own,
                    _ => Hook::Filter,
                };
                self.ruleset.filters += usize::from((*kind, *hook) == ("filter", "forward"));
            }
            _ => self.rule(&format!("line {number}: {line}"), line),
        }
    }

    fn rule(&mut self, text: &str, line: &str) {
        let Some(chain) = self.chain.clone() else { return };
        let statement = Rule { text: text.to_owned(), when: When::default(), action: Action::Nothing };
        let mut rules = vec![statement];
        let mut words = tokens(line).into_iter().peekable();
        while let Some(word) = words.next() {
            self.statement(&mut rules, &word, &mut words);
        }
        if self.table.starts_with("ip6 ") {
            rules[0].when.odd.push("IPv6".to_owned());
        }
        self.ruleset.chain(&self.table, &chain).rules.extend(rules);
    }

    fn statement(&mut self, rules: &mut Vec<Rule>, word: &str, words: &mut Words) {
        match word {
            "iifname" | "oifname" | "iif" | "oif" | "ip" | "tcp" | "udp" | "th" | "meta" | "fib" | "ct" => {
                let when = self.condition(word, words);
                let rule = &mut rules[0];
                rule.when = std::mem::take(&mut rule.when).and(when);
            }
            "counter" => {
                while words.next_if(|word| matches!(word.as_str(), "packets" | "bytes")).is_some() {
                    words.next();
                }
            }
            "comment" => {
                words.next();
            }
            "log" => while words.next_if(|word| !VERDICTS.contains(&word.as_str())).is_some() {},
            // Whom a mapping is kept for, and which port it gets, is said otherwise.
            "random" | "fully-random" | "persistent" => {}
            "masquerade" => {
                let ports = target(words).map(|to| to.trim_start_matches(':').to_owned());
                rules[0].action = Action::Masquerade { ports };
            }
            "redirect" => {
                target(words);
                rules[0].action = Action::Redirect;
            }
            "snat" => snat(&mut rules[0], words),
            "dnat" => dnat(rules, words),
            "accept" => rules[0].action = Action::Accept,
            "return" => rules[0].action = Action::Return,
            "jump" | "goto" => rules[0].action = Action::Jump(words.next().unwrap_or_default()),
            "drop" | "reject" | "queue" | "tproxy" => rules[0].action = Action::Other(word.to_owned()),
            _ => rules[0].when.odd.push(word.to_owned()),
        }
    }

    fn condition(&mut self, word: &str, words: &mut Words) -> When {
        let mut when = When::default();
        let (key, protocol_said) = match word {
            "ip" | "meta" | "ct" | "th" => (words.next().unwrap_or_default(), None),
            "tcp" | "udp" => (words.next().unwrap_or_default(), Some(word.to_owned())),
            "fib" => (
                std::iter::from_fn(|| words.next_if(|word| word != "local")).collect::<Vec<_>>().join(" "),
                None,
            ),
            _ => (word.to_owned(), None),
        };
        let negated = words.next_if(|word| word == "!=").is_some();
        let values = self.values(words);
        let understood = match (key.as_str(), negated) {
            ("saddr" | "daddr", _) => {
                let list = if key == "saddr" { &mut when.source } else { &mut when.destination };
                let not = if negated { "!" } else { "" };
                let all = values.iter().flat_map(|value| prefixes(value));
                list.extend(all.map(|prefix| format!("{not}{prefix}")));
                word == "ip" && values.iter().all(|value| is_address(value))
            }
            ("iifname" | "iif" | "oifname" | "oif", _) => {
                let side = if key.starts_with('i') { &mut when.inbound } else { &mut when.outbound };
                side.extend(values.iter().map(|name| Name { name: name.clone(), negated }));
                for name in &values {
                    self.ruleset.saw(name);
                }
                true
            }
            ("protocol" | "l4proto", false) => {
                when.protocols.extend(values.iter().filter_map(|value| protocol(value)));
                when.protocols.len() == values.len()
            }
            ("dport", false) => {
                when.protocols.extend(protocol_said);
                when.ports.extend(values.iter().filter_map(|value| ports(value)));
                when.ports.len() == values.len()
            }
            ("daddr type", false) if values == ["local"] => {
                when.local = true;
                true
            }
            ("state", false) => values.iter().any(|state| state == "new"),
            ("nfproto", false) => values == ["ipv4"],
            _ => false,
        };
        if !understood || values.is_empty() {
            let not = if negated { "!= " } else { "" };
            when.odd.push(format!("{word} {key} {not}{}", values.join(",")));
        }
        when
    }

    /// One value, a list of them, or those of a named set.
    fn values(&self, words: &mut Words) -> Vec<String> {
        if words.peek().is_some_and(|word| word == "{") {
            return list(words);
        }
        let value = words.next().unwrap_or_default();
        let named = value
            .strip_prefix('@')
            .and_then(|name| self.sets.get(&(self.table.clone(), name.to_owned())).cloned());
        // `ct state established,new`
        named.unwrap_or_else(|| value.split(',').map(str::to_owned).collect())
    }
}

const VERDICTS: [&str; 8] = ["masquerade", "snat", "dnat", "redirect", "accept", "return", "jump", "drop"];

type Words = Peekable<IntoIter<String>>;

/// Words, with braces and commas apart from what they are next to.
fn tokens(line: &str) -> Vec<String> {
    let apart: String = match line.split_once(" comment \"") {
        Some((before, _)) => before.to_owned(),
        None => line.to_owned(),
    };
    let apart = apart.replace('{', " { ").replace('}', " } ").replace(", ", " , ");
    words(&apart)
}

/// What stands between braces; the rest of an element, such as its timeout, is left out.
fn list(words: &mut Words) -> Vec<String> {
    let mut items = Vec::new();
    let mut first = true;
    words.next_if(|word| word == "{");
    for word in words.by_ref() {
        match word.as_str() {
            "}" => break,
            "," => first = true,
            _ if first => {
                items.push(word);
                first = false;
            }
            _ => {}
        }
    }
    items
}

/// What follows `to`, if it does.
fn target(words: &mut Words) -> Option<String> {
    words.next_if(|word| word == "ip");
    words.next_if(|word| word == "to").and_then(|_| words.next())
}

fn snat(rule: &mut Rule, words: &mut Words) {
    words.next_if(|word| word == "ip");
    let is_prefix = words.next_if(|word| word == "prefix").is_some();
    let to = target(words).unwrap_or_default();
    let (address, ports) = to.split_once(':').unwrap_or((&to, ""));
    if is_prefix || !is_address(address) {
        prefix(rule, is_prefix.then_some("saddr"), &to, words);
    } else {
        let ports = (!ports.is_empty()).then(|| ports.to_owned());
        rule.action = Action::Snat { addresses: vec![address.to_owned()], ports };
    }
}

fn dnat(rules: &mut Vec<Rule>, words: &mut Words) {
    words.next_if(|word| word == "ip");
    let is_prefix = words.next_if(|word| word == "prefix").is_some();
    let to = target(words).unwrap_or_default();
    if let Some(to) = Target::parse(&to).filter(|to| !is_prefix && is_address(&to.address)) {
        rules[0].action = Action::Dnat(to);
    } else if matches!(to.as_str(), "tcp" | "udp") {
        by_port(rules, &to, words);
    } else {
        prefix(&mut rules[0], is_prefix.then_some("daddr"), &to, words);
    }
}

/// `ip saddr map { 10.1.2.0/28 : 203.0.113.64/28 }`, or something that no configuration says.
fn prefix(rule: &mut Rule, field: Option<&str>, to: &str, words: &mut Words) {
    let rest: Vec<String> = words.by_ref().collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    match (field, rest.as_slice()) {
        (Some(field), [key, "map", "{", from, ":", into, "}"]) if to == "ip" && *key == field => {
            let mut when = When::default();
            let side = if field == "saddr" { &mut when.source } else { &mut when.destination };
            side.push((*from).to_owned());
            rule.when = std::mem::take(&mut rule.when).and(when);
            rule.action = Action::Netmap((*into).to_owned());
        }
        _ => rule.action = Action::Other(format!("translation to {to} {}", rest.join(" "))),
    }
}

/// `tcp dport map { 7001 : 10.1.1.31, 7002 : 10.1.1.32 . 80 }`: a rule for each.
fn by_port(rules: &mut Vec<Rule>, protocol: &str, words: &mut Words) {
    let rest: Vec<String> = words.by_ref().collect();
    let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
    let rule = rules[0].clone();
    let each = |element: &[&str]| {
        let (port, to) = match element {
            [port, ":", address] => (port, Target::parse(address)?),
            [port, ":", address, ".", to] => (port, Target::parse(&format!("{address}:{to}"))?),
            _ => return None,
        };
        let when =
            When { protocols: vec![protocol.to_owned()], ports: vec![ports(port)?], ..When::default() };
        let action = Action::Dnat(to);
        Some(Rule { text: rule.text.clone(), when: rule.when.clone().and(when), action })
    };
    let expanded = match rest.as_slice() {
        ["dport", "map", "{", elements @ .., "}"] => {
            elements.split(|word| *word == ",").map(each).collect::<Option<Vec<Rule>>>()
        }
        _ => None,
    };
    match expanded {
        Some(expanded) => *rules = expanded,
        None => rules[0].action = Action::Other(format!("dnat to {protocol} {}", rest.join(" "))),
    }
}
