//! What each rule is in this program's terms, or why it is nothing there.

use super::model::{Action, Chain, Hook, Name, Rule, Ruleset, Target, When};
use super::{Left, Sides};

/// What a configuration is made of.
#[derive(Debug, Default)]
pub(super) struct Carried {
    pub(super) inside: Vec<String>,
    pub(super) outside: Vec<String>,
    pub(super) sections: Vec<Section>,
    pub(super) left: Vec<Left>,
    pub(super) notes: Vec<String>,
}

/// A section with the rule that it comes from.
#[derive(Clone, Debug)]
pub(super) struct Section {
    pub(super) rule: String,
    pub(super) kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Static {
        external: String,
        internal: String,
    },
    Forward {
        protocols: Vec<String>,
        external: String,
        internal: String,
        source: Vec<String>,
    },
    Snat {
        source: Vec<String>,
        destination: Vec<String>,
        protocols: Vec<String>,
        out: Option<String>,
        to: Vec<String>,
        ports: Option<String>,
    },
}

/// Looks at all chains that translate what is forwarded.
pub(super) fn carry(ruleset: &Ruleset, sides: &Sides) -> Carried {
    let mut carrier = Carrier { ruleset, carried: Carried::default() };
    let mut rules: Vec<(Hook, Rule)> = Vec::new();
    for hook in [Hook::Prerouting, Hook::Postrouting, Hook::Own] {
        for chain in ruleset.chains.iter().filter(|chain| chain.hook == hook) {
            carrier.flatten(chain, &When::default(), 0, hook, &mut rules);
        }
    }
    carrier.sides(&rules, sides);
    for (hook, rule) in rules {
        match carrier.one(hook, &rule) {
            Ok(kinds) => {
                let sections = kinds.into_iter().map(|kind| Section { rule: rule.text.clone(), kind });
                carrier.carried.sections.extend(sections);
            }
            Err(reason) => carrier.carried.left.push(Left { rule: rule.text, reason }),
        }
    }
    carrier.once();
    carrier.carried
}

struct Carrier<'a> {
    ruleset: &'a Ruleset,
    carried: Carried,
}

type Kinds = Result<Vec<Kind>, String>;

impl Carrier<'_> {
    /// The rules of a chain, with those of the chains it calls in their place.
    fn flatten(&self, chain: &Chain, outer: &When, depth: u8, hook: Hook, rules: &mut Vec<(Hook, Rule)>) {
        let mut behind_return = false;
        for rule in &chain.rules {
            let mut when = outer.clone().and(rule.when.clone());
            if behind_return {
                when.odd.push("a RETURN before it".to_owned());
            }
            match &rule.action {
                Action::Jump(name) => {
                    let called = self.ruleset.chains.iter().find(|other| {
                        other.table == chain.table && other.name == *name && other.hook == Hook::None
                    });
                    if let Some(called) = called.filter(|_| depth < DEEPEST) {
                        self.flatten(called, &when, depth + 1, hook, rules);
                    } else {
                        let action = Action::Other(name.clone());
                        rules.push((hook, Rule { text: rule.text.clone(), when, action }));
                    }
                }
                Action::Return if rule.when == When::default() => break,
                Action::Return if depth > 0 => {
                    // What comes from inside to no address of the outside's is no forward's in any case.
                    let harmless = hook == Hook::Prerouting
                        && !rule.when.inbound.is_empty()
                        && rule
                            .when
                            .inbound
                            .iter()
                            .all(|name| !name.negated && !self.comes_from_outside(name));
                    behind_return |= !harmless;
                }
                Action::Nothing => {}
                action => rules.push((hook, Rule { text: rule.text.clone(), when, action: action.clone() })),
            }
        }
    }

    /// Whether something leaves translated by this interface.
    fn comes_from_outside(&self, name: &Name) -> bool {
        let rules = self.ruleset.chains.iter().flat_map(|chain| &chain.rules);
        rules
            .filter(|rule| is_source_translation(&rule.action))
            .any(|rule| rule.when.outbound.iter().any(|out| !out.negated && out.name == name.name))
    }

    /// Translated is what leaves by the outside, or comes in there.
    fn sides(&mut self, rules: &[(Hook, Rule)], given: &Sides) {
        let Carried { inside, outside, notes, .. } = &mut self.carried;
        outside.clone_from(&given.outside);
        inside.clone_from(&given.inside);
        let names = rules.iter().flat_map(|(_, rule)| match rule.action {
            ref action if is_source_translation(action) => rule.when.outbound.as_slice(),
            Action::Dnat(_) => rule.when.inbound.as_slice(),
            _ => &[],
        });
        if outside.is_empty() {
            for Name { name, .. } in names.filter(|name| !name.negated) {
                let is_new = !outside.contains(name) && !inside.contains(name);
                if is_new && self.ruleset.interfaces.contains(name) {
                    outside.push(name.clone());
                }
            }
        }
        if inside.is_empty() {
            let others = self.ruleset.interfaces.iter().filter(|name| !outside.contains(name));
            inside.extend(others.cloned());
        }
        if outside.is_empty() {
            inside.retain(|name| name != OUTSIDE || given.inside.contains(name));
            notes.push(stand_in("outside", OUTSIDE, outside));
        }
        if inside.is_empty() {
            notes.push(stand_in("inside", INSIDE, inside));
        }
        if self.ruleset.filters > 0 {
            notes.push(
                "what natgw translates does not pass netfilter's forward chain: its filter rules hold for the rest only"
                    .to_owned(),
            );
        }
    }

    /// Who gets what is to be redirected first.
    fn redirect(&self, when: &When) -> &'static str {
        let outside = |name: &Name| !name.negated && self.carried.outside.contains(&name.name);
        if !when.inbound.is_empty() && when.inbound.iter().all(outside) {
            "it redirects to the gateway itself: keep it in netfilter, which gets what comes from outside and no rule of natgw's is for"
        } else {
            "it redirects to the gateway itself: keep it in netfilter, but natgw takes what a [[snat]] is for before netfilter sees \
             it. Take those destinations out of its `destination`, or give hosts the gateway's own address"
        }
    }

    fn one(&mut self, hook: Hook, rule: &Rule) -> Kinds {
        let when = &rule.when;
        if hook == Hook::Own {
            return Err(
                "it translates the host's own traffic, which natgw leaves to netfilter: keep it there"
                    .to_owned(),
            );
        }
        if !when.odd.is_empty() {
            return Err(format!("no rule of natgw can say: {}", when.odd.join("; ")));
        }
        match (&rule.action, hook) {
            (Action::Masquerade { ports }, Hook::Postrouting) => {
                self.snat(when, &["masquerade".to_owned()], ports.as_ref())
            }
            (Action::Snat { addresses, ports }, Hook::Postrouting) => {
                self.snat(when, addresses, ports.as_ref())
            }
            (Action::Accept | Action::Return, Hook::Postrouting) => {
                self.snat(when, &["none".to_owned()], None)
            }
            (Action::Netmap(to), _) => netmap(hook, when, to),
            (Action::Dnat(to), _) => self.dnat(when, to, rule),
            (Action::Redirect, _) => Err(self.redirect(when).to_owned()),
            (Action::Accept | Action::Return, _) => {
                Err("a [[forward]] has no exemptions: give those it is for a `source`".to_owned())
            }
            (Action::Other(what), _) => Err(format!("natgw has nothing like `{what}`")),
            _ => Err("not where this hook translates".to_owned()),
        }
    }

    fn snat(&self, when: &When, to: &[String], ports: Option<&String>) -> Kinds {
        if !when.ports.is_empty() || when.local {
            return Err("a [[snat]] holds for all ports of a destination: give it the destination's prefix"
                .to_owned());
        }
        self.any_inside(&when.inbound)?;
        let known = |name: &String| self.carried.inside.contains(name) || self.carried.outside.contains(name);
        let (not, by): (Vec<&Name>, Vec<&Name>) = when.outbound.iter().partition(|name| name.negated);
        let outs: Vec<Option<String>> = if !by.is_empty() {
            if let Some(pattern) = by.iter().find(|name| !known(&name.name)) {
                return Err(format!(
                    "`{}` is no interface that is known: write a rule for each that it means (--outside NAME)",
                    pattern.name
                ));
            }
            by.iter().map(|name| Some(name.name.clone())).collect()
        } else if not.iter().all(|name| !self.carried.outside.contains(&name.name)) {
            // All that is outside: an interface that is excepted is not.
            vec![None]
        } else {
            let rest = self.carried.outside.iter().filter(|name| not.iter().all(|not| not.name != **name));
            rest.map(|name| Some(name.clone())).collect()
        };
        if outs.is_empty() {
            return Err("no outside interface is left that it holds for".to_owned());
        }
        let kind = |out| Kind::Snat {
            source: when.source.clone(),
            destination: when.destination.clone(),
            protocols: when.protocols.clone(),
            out,
            to: to.to_vec(),
            ports: ports.cloned(),
        };
        Ok(outs.into_iter().map(kind).collect())
    }

    /// A `[[snat]]` holds for what comes from any inside interface.
    fn any_inside(&self, inbound: &[Name]) -> Result<(), String> {
        let named = |name: &String| inbound.iter().any(|named| named.name == *name);
        let all = match inbound.first() {
            None => true,
            Some(Name { negated: false, .. }) => self.carried.inside.iter().all(named),
            Some(_) => !self.carried.inside.iter().any(named),
        };
        if all {
            Ok(())
        } else {
            Err("a [[snat]] holds for all inside interfaces: give it the `source` behind this one".to_owned())
        }
    }

    fn dnat(&mut self, when: &When, to: &Target, rule: &Rule) -> Kinds {
        if to.address.contains('-') {
            return Err(
                "it sends to several addresses: a [[service]] spreads connections over servers".to_owned()
            );
        }
        if to.address.parse::<std::net::Ipv4Addr>().is_err() {
            return Err("it does not say which IPv4 address it sends to".to_owned());
        }
        if when.inbound.iter().any(|name| !name.negated && !self.carried.outside.contains(&name.name)) {
            return Err(
                "a [[forward]] is for what comes to an external endpoint, this for what comes from inside"
                    .to_owned(),
            );
        }
        let whole = when.ports.is_empty() && when.protocols.is_empty() && to.ports.is_none();
        if let ([address], true) = (when.destination.as_slice(), whole && when.source.is_empty()) {
            return Ok(vec![Kind::Static { external: address.clone(), internal: to.address.clone() }]);
        }
        if when.ports.is_empty() {
            return Err(
                "a [[forward]] names its ports, as mappings never get them: name those that are used, or give the host an address of its own ([[static]])"
                    .to_owned(),
            );
        }
        if when.protocols.is_empty()
            || when.protocols.iter().any(|protocol| protocol != "tcp" && protocol != "udp")
        {
            return Err("a [[forward]] is for TCP and UDP".to_owned());
        }
        let mut kinds = Vec::new();
        for host in self.external_hosts(when, rule)? {
            for &range in &when.ports {
                for (external, internal) in pairs(range, to)? {
                    kinds.push(Kind::Forward {
                        protocols: when.protocols.clone(),
                        external: format!("{host}:{}", show(external)),
                        internal: format!("{}:{}", to.address, show(internal)),
                        source: when.source.clone(),
                    });
                }
            }
        }
        Ok(kinds)
    }

    /// The addresses it holds for, or the interfaces whose addresses.
    fn external_hosts(&mut self, when: &When, rule: &Rule) -> Result<Vec<String>, String> {
        if !when.destination.is_empty() {
            if when.destination.iter().any(|word| word.starts_with('!') || word.contains('/')) {
                return Err("a [[forward]] is for single external addresses".to_owned());
            }
            return Ok(when.destination.clone());
        }
        let (not, by): (Vec<&Name>, Vec<&Name>) = when.inbound.iter().partition(|name| name.negated);
        if !by.is_empty() {
            return Ok(by.into_iter().map(|name| name.name.clone()).collect());
        }
        if !when.local {
            self.carried.notes.push(format!(
                "a forward for the addresses of the outside interfaces only, where the rule is for any destination: {}",
                rule.text
            ));
        }
        let rest = self.carried.outside.iter().filter(|name| not.iter().all(|not| not.name != **name));
        Ok(rest.cloned().collect())
    }

    /// What two rules say is there once: a `[[static]]` holds for both directions.
    fn once(&mut self) {
        let Carried { sections, notes, .. } = &mut self.carried;
        let mut kept: Vec<Section> = Vec::new();
        for section in sections.drain(..) {
            let same = kept.iter().find(|earlier| match (&earlier.kind, &section.kind) {
                (
                    Kind::Static { external, internal },
                    Kind::Snat { source, destination, to, ports: None, .. },
                ) => {
                    destination.is_empty()
                        && source.as_slice() == std::slice::from_ref(internal)
                        && to.as_slice() == std::slice::from_ref(external)
                }
                (earlier, later) => earlier == later,
            });
            match same {
                Some(earlier) => {
                    notes.push(format!("[{}] is said by what [{}] became", section.rule, earlier.rule));
                }
                None => kept.push(section),
            }
        }
        for section in &kept {
            if let Kind::Static { external, internal } = &section.kind {
                notes.push(format!("[[static]] {external} for {internal} holds in both directions, for all outside interfaces"));
            }
        }
        *sections = kept;
    }
}

/// What an interface is called that no rule names.
const INSIDE: &str = "lan";
const OUTSIDE: &str = "wan";

fn stand_in(side: &str, name: &str, list: &mut Vec<String>) -> String {
    list.push(name.to_owned());
    format!("the rules do not say which interface is {side}: `{name}` stands for it; --{side} NAME says it")
}

/// Chains that call each other deeper than this are no rule set of people's.
const DEEPEST: u8 = 16;

/// As many ports as are worth a section each.
const MOST_SECTIONS: u16 = 16;

fn is_source_translation(action: &Action) -> bool {
    matches!(action, Action::Masquerade { .. } | Action::Snat { .. })
}

fn netmap(hook: Hook, when: &When, to: &str) -> Kinds {
    let (from, other) = match hook {
        Hook::Prerouting => (&when.destination, &when.source),
        _ => (&when.source, &when.destination),
    };
    let [from] = from.as_slice() else {
        return Err("a [[static]] needs the prefix that is translated".to_owned());
    };
    if from.starts_with('!') || !other.is_empty() || !when.protocols.is_empty() || !when.ports.is_empty() {
        return Err("a [[static]] holds for all protocols, ports and remotes".to_owned());
    }
    let (from, to) = (from.clone(), to.trim_end_matches("/32").to_owned());
    let (external, internal) = if hook == Hook::Prerouting { (from, to) } else { (to, from) };
    Ok(vec![Kind::Static { external, internal }])
}

type Range = (u16, u16);

/// External ports and what each stands for inside.
fn pairs(external: Range, to: &Target) -> Result<Vec<(Range, Range)>, String> {
    let (first, last) = external;
    let len = last.saturating_sub(first);
    let internal = match (to.ports, to.base) {
        (None, _) => external,
        (Some(internal), None) if internal == external => external,
        (Some((from, _)), Some(base)) if base <= first && from.checked_add(last - base).is_some() => {
            (from + (first - base), from + (last - base))
        }
        (Some((from, until)), None) if from == until && len == 0 => (from, from),
        (Some((from, until)), None) if from == until && len < MOST_SECTIONS => {
            return Ok((first..=last).map(|port| ((port, port), (from, from))).collect());
        }
        _ => return Err("a [[forward]] has one internal port for each external one, in order".to_owned()),
    };
    Ok(vec![(external, internal)])
}

fn show((first, last): Range) -> String {
    if first == last { first.to_string() } else { format!("{first}-{last}") }
}
