//! What `iptables-save` prints.

use super::model::{
    Action, Hook, Name, Rule, Ruleset, Target, When, is_address, ports, prefixes, protocol, words,
};

pub(super) fn read(text: &str) -> Ruleset {
    let mut ruleset = Ruleset::default();
    let mut table = String::new();
    for (index, line) in text.lines().enumerate() {
        // With -c, counters come first.
        let line = line.trim();
        let line = line.strip_prefix('[').and_then(|rest| Some(rest.split_once("] ")?.1)).unwrap_or(line);
        if let Some(name) = line.strip_prefix('*') {
            name.clone_into(&mut table);
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            ruleset.chain(&table, name).hook = hook(&table, name);
        } else if line.starts_with("-A ") {
            rule(&mut ruleset, &table, index + 1, line);
        }
    }
    ruleset
}

fn hook(table: &str, chain: &str) -> Hook {
    match (table, chain) {
        ("nat", "PREROUTING") => Hook::Prerouting,
        ("nat", "POSTROUTING") => Hook::Postrouting,
        ("nat", "INPUT" | "OUTPUT") => Hook::Own,
        ("nat", _) => Hook::None,
        _ => Hook::Filter,
    }
}

fn rule(ruleset: &mut Ruleset, table: &str, number: usize, line: &str) {
    let words = words(line);
    let mut words = words.iter().map(String::as_str).peekable();
    words.next();
    let chain = words.next().unwrap_or_default().to_owned();
    let mut rule =
        Rule { text: format!("line {number}: {line}"), when: When::default(), action: Action::Nothing };
    let mut negated = false;
    while let Some(word) = words.next() {
        if word == "!" {
            negated = true;
            continue;
        }
        // Options take a value, or none.
        let value = words.next_if(|value| !value.starts_with('-') && *value != "!");
        option(&mut rule, ruleset, word, negated, value.unwrap_or_default());
        negated = false;
    }
    ruleset.filters += usize::from(table == "filter" && chain == "FORWARD");
    if table == "nat" {
        ruleset.chain(table, &chain).rules.push(rule);
    }
}

fn option(rule: &mut Rule, ruleset: &mut Ruleset, option: &str, negated: bool, value: &str) {
    let when = &mut rule.when;
    let understood = match (option, negated) {
        ("-s" | "--src-range", _) => addresses(&mut when.source, negated, value),
        ("-d" | "--dst-range", _) => addresses(&mut when.destination, negated, value),
        ("-i" | "-o", _) => {
            ruleset.saw(value);
            let side = if option == "-i" { &mut when.inbound } else { &mut when.outbound };
            side.push(Name { name: value.to_owned(), negated });
            true
        }
        ("-p", false) => add(&mut when.protocols, protocol(value)) || value == "all",
        ("--dport" | "--dports", false) => value.split(',').all(|word| add(&mut when.ports, ports(word))),
        ("--dst-type", false) if value == "LOCAL" => {
            when.local = true;
            true
        }
        // The first packet of a connection is all that translation sees.
        ("--ctstate" | "--state", false) => value.split(',').any(|state| state == "NEW"),
        ("-m", false) => {
            const SAID_BY_OPTIONS: [&str; 9] =
                ["tcp", "udp", "comment", "multiport", "iprange", "addrtype", "conntrack", "state", "icmp"];
            SAID_BY_OPTIONS.contains(&value)
        }
        ("--comment" | "--random" | "--random-fully" | "--persistent", false) => true,
        ("-j" | "-g", false) => {
            rule.action = target(value);
            true
        }
        _ => target_option(&mut rule.action, option, value),
    };
    if !understood {
        let not = if negated { "! " } else { "" };
        rule.when.odd.push(format!("{not}{option} {value}").trim_end().to_owned());
    }
}

fn addresses(list: &mut Vec<String>, negated: bool, value: &str) -> bool {
    let not = if negated { "!" } else { "" };
    list.extend(prefixes(value).iter().map(|prefix| format!("{not}{prefix}")));
    is_address(value)
}

fn target(value: &str) -> Action {
    match value {
        "MASQUERADE" => Action::Masquerade { ports: None },
        "SNAT" => Action::Snat { addresses: Vec::new(), ports: None },
        "DNAT" => Action::Dnat(Target::default()),
        "REDIRECT" => Action::Redirect,
        "NETMAP" => Action::Netmap(String::new()),
        "ACCEPT" => Action::Accept,
        "RETURN" => Action::Return,
        "LOG" | "NFLOG" => Action::Nothing,
        "DROP" | "REJECT" | "MARK" | "CONNMARK" | "TPROXY" => Action::Other(value.to_owned()),
        chain => Action::Jump(chain.to_owned()),
    }
}

fn target_option(action: &mut Action, option: &str, value: &str) -> bool {
    match (action, option) {
        (Action::Masquerade { ports }, "--to-ports") => *ports = Some(value.to_owned()),
        (Action::Snat { addresses, ports }, "--to-source") => {
            let (address, range) = value.split_once(':').unwrap_or((value, ""));
            addresses.push(address.to_owned());
            *ports = (!range.is_empty()).then(|| range.to_owned());
        }
        (Action::Dnat(to), "--to-destination") => match Target::parse(value) {
            // Several targets are for kernels long gone.
            Some(target) if to.address.is_empty() => *to = target,
            _ => return false,
        },
        (Action::Netmap(to), "--to") => value.clone_into(to),
        (Action::Redirect, "--to-ports") => {}
        _ => return false,
    }
    true
}

/// Adds what there is, and says whether there is.
fn add<T>(list: &mut Vec<T>, item: Option<T>) -> bool {
    let there = item.is_some();
    list.extend(item);
    there
}
