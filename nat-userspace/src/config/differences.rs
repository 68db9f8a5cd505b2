//! What changes from one configuration to the next, in words.

use super::Config;
use crate::api::{RuleRow, rule_rows};

/// What is different, a sentence a thing.
pub fn differences(old: &Config, new: &Config) -> Vec<String> {
    let plain = |config: &Config| -> Vec<RuleRow> {
        rule_rows(config).into_iter().map(|row| RuleRow { id: 0, ..row }).collect()
    };
    let (before, after) = (plain(old), plain(new));
    let same = |one: &RuleRow, other: &RuleRow| (&one.kind, &one.name) == (&other.kind, &other.name);
    let mut differences = Vec::new();
    for row in &before {
        match after.iter().find(|other| same(row, other)) {
            None => differences.push(format!("{} {}: removed", row.kind, row.name)),
            Some(other) if other != row => differences.push(format!("{} {}: changed", row.kind, row.name)),
            Some(_) => {}
        }
    }
    let is_new = |row: &&RuleRow| !before.iter().any(|other| same(row, other));
    differences.extend(after.iter().filter(is_new).map(|row| format!("{} {}: added", row.kind, row.name)));
    let order = |rows: &[RuleRow], others: &[RuleRow]| -> Vec<(String, String)> {
        let there = rows.iter().filter(|row| others.iter().any(|other| same(row, other)));
        there.map(|row| (row.kind.clone(), row.name.clone())).collect()
    };
    if order(&before, &after) != order(&after, &before) {
        differences.push("rules: tried in another order".to_owned());
    }
    // What listings do not show of rules.
    let hidden = (&old.snat, &old.services, &old.forwards) != (&new.snat, &new.services, &new.forwards);
    if differences.is_empty() && hidden {
        differences.push("rules: changed in what `natgw rule list` does not show".to_owned());
    }
    let sections = [
        ("timeouts", old.timeouts != new.timeouts),
        (
            "unmatched",
            (old.unmatched_outside, old.unmatched_forged) != (new.unmatched_outside, new.unmatched_forged),
        ),
    ];
    differences.extend(
        sections.iter().filter(|(_, differs)| *differs).map(|(name, _)| format!("[{name}]: changed")),
    );
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(rules: &str) -> Config {
        let head =
            "[[interface]]\nname=\"lan\"\nside=\"inside\"\n[[interface]]\nname=\"wan\"\nside=\"outside\"\n";
        Config::parse(&format!("{head}{rules}"), "test").expect("a configuration")
    }

    #[test]
    fn what_is_different_is_named() {
        let snat = |name: &str, source: &str| {
            format!("[[snat]]\nname=\"{name}\"\nsource=[\"{source}\"]\nto=\"masquerade\"\n")
        };
        let (a, b) = (snat("a", "10.1.1.0/24"), snat("b", "10.1.2.0/24"));
        let old = config(&format!("{a}{b}"));
        let differs = |rules: String| differences(&old, &config(&rules));
        assert_eq!(differs(format!("{a}{b}")), [""; 0]);
        assert_eq!(differs(a.clone()), ["snat b: removed"]);
        assert_eq!(differs(format!("{b}{a}")), ["rules: tried in another order"]);
        assert_eq!(
            differs(format!("{a}{}[timeouts]\nudp=\"3m\"\n", snat("c", "10.1.3.0/24"))),
            ["snat b: removed", "snat c: added", "[timeouts]: changed"]
        );
        assert_eq!(differs(format!("{a}{}", snat("b", "10.1.9.0/24"))), ["snat b: changed"]);
        assert_eq!(
            differs(format!("{a}{b}port_set = {{ offset = 6, length = 8, id = 52 }}\n")).len(),
            1,
            "what no column shows"
        );
    }
}
