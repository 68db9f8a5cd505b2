//! The rules in force: which one a packet meets, and the same as sets for the fast path.

use std::net::Ipv4Addr;
use std::sync::Arc;

use ipnet::Ipv4Net;
use nat_common::FlowKey;
use nat_common::classify::{INSIDE, RuleSet};
use nat_common::wire;

use super::Interface;
use super::sessions::Origin;
use crate::config::{
    Config, Filtering, ForwardAddress, ForwardRule, Pooling, PortRange, Ports, Selector, ServiceRule, Side,
    SnatRule, SnatTarget, StaticRule, Unmatched,
};

/// The rules of a configuration.
pub struct Rules {
    /// Source translation, in file order.
    pub snat: Vec<Arc<SnatRule>>,
    /// The external addresses of each snat rule's pool, network byte order; empty for other rules.
    pub pools: Vec<Arc<[u32]>>,
    /// One-to-one.
    pub statics: Vec<StaticRule>,
    /// Port forwards, in file order.
    pub forwards: Vec<ForwardRule>,
    /// Virtual servers, in file order.
    pub services: Vec<Arc<ServiceRule>>,
    /// Names of inside interfaces.
    inside: Vec<String>,
    /// `[unmatched] outside = "drop"`.
    pub drop_unmatched: bool,
    /// `[unmatched] forged = "pass"`.
    pub pass_forged: bool,
}

/// An address in network byte order as the standard library's.
pub fn address(network: u32) -> Ipv4Addr {
    Ipv4Addr::from(network.to_ne_bytes())
}

/// The standard library's address in network byte order.
pub fn network(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}

impl Rules {
    /// The rules of a configuration.
    pub fn new(config: &Config) -> Self {
        Self {
            snat: config.snat.iter().cloned().map(Arc::new).collect(),
            pools: config.snat.iter().map(|rule| pool_addresses(&rule.to)).collect(),
            statics: config.statics.clone(),
            forwards: config.forwards.clone(),
            services: config.services.iter().cloned().map(Arc::new).collect(),
            inside: config
                .interfaces
                .iter()
                .filter(|interface| interface.side == Side::Inside)
                .map(|interface| interface.name.clone())
                .collect(),
            drop_unmatched: config.unmatched_outside == Unmatched::Drop,
            pass_forged: config.unmatched_forged == Unmatched::Pass,
        }
    }

    /// The name of what opened a session.
    pub fn name(&self, origin: Origin) -> String {
        let name = match origin {
            Origin::Snat(position) | Origin::Inbound(position) => {
                self.snat.get(usize::from(position)).map(|rule| &rule.name)
            }
            Origin::Forward(position) => self.forwards.get(usize::from(position)).map(|rule| &rule.name),
            Origin::Static(position) => self.statics.get(usize::from(position)).map(|rule| &rule.name),
            Origin::Service(position) => self.services.get(usize::from(position)).map(|rule| &rule.name),
            Origin::Bypass => None,
        };
        name.cloned().unwrap_or_default()
    }

    /// Whom the mapping of a session lets in, where a rule that translates has made one.
    pub fn filtering(&self, origin: Origin) -> Option<Filtering> {
        let (Origin::Snat(position) | Origin::Inbound(position)) = origin else { return None };
        let rule = self.snat.get(usize::from(position))?;
        rule.to.translates().then_some(rule.filtering)
    }

    /// An origin of the same kind whose rule has a name.
    pub fn position(&self, origin: Origin, name: &str) -> Option<Origin> {
        let place = |position: Option<usize>| position.and_then(|position| u16::try_from(position).ok());
        let snat = || place(self.snat.iter().position(|rule| rule.name == name));
        match origin {
            Origin::Snat(_) => snat().map(Origin::Snat),
            Origin::Inbound(_) => snat().map(Origin::Inbound),
            Origin::Forward(_) => {
                place(self.forwards.iter().position(|rule| rule.name == name)).map(Origin::Forward)
            }
            Origin::Static(_) => {
                place(self.statics.iter().position(|rule| rule.name == name)).map(Origin::Static)
            }
            Origin::Service(_) => {
                place(self.services.iter().position(|rule| rule.name == name)).map(Origin::Service)
            }
            Origin::Bypass => Some(Origin::Bypass),
        }
    }

    /// Whether a rule gives an external address to one host as a whole.
    pub fn is_exclusive(&self, position: u16, external: u32) -> bool {
        let position = usize::from(position);
        match self.snat.get(position).map(|rule| rule.pooling) {
            Some(Pooling::Exclusive) => true,
            Some(Pooling::ExclusiveThenShared) => {
                self.pools.get(position).and_then(|pool| pool.last()) != Some(&external)
            }
            _ => false,
        }
    }

    /// The ports of an external address that an inside host may have under a rule.
    pub fn ports_of(&self, position: u16, rule: &SnatRule, inside: Ipv4Addr, external: u32) -> Ports {
        match rule.block(inside) {
            Some((_, block)) => block.into(),
            None if self.is_exclusive(position, external) => EVERY_PORT.into(),
            None => rule.allowed_ports(),
        }
    }

    /// The first snat rule for a packet that leaves by `egress`.
    pub fn snat(
        &self,
        key: &FlowKey,
        ingress: &Interface,
        egress: &Interface,
    ) -> Option<(u16, &Arc<SnatRule>)> {
        let (source, destination) = (address(key.source), address(key.destination));
        let (position, rule) = self.snat.iter().enumerate().find(|(_, rule)| {
            rule.protocols.contains(key.protocol)
                && rule.source.matches(source)
                && rule.destination.matches(destination)
                && self.applies(rule, ingress, egress)
        })?;
        Some((u16::try_from(position).ok()?, rule))
    }

    /// Whether a rule applies between two interfaces. Without `out` it is meant for what leaves
    /// to the outside; towards the inside only if its destination says so (S000 r2), so that a
    /// rule for "anything" never invites the outside in.
    fn applies(&self, rule: &SnatRule, ingress: &Interface, egress: &Interface) -> bool {
        let way_out = match &rule.out {
            Some(name) => *name == egress.name,
            None => egress.side == Side::Outside || !rule.destination.positive.is_empty(),
        };
        way_out && (ingress.side == Side::Inside || self.is_inward(rule))
    }

    /// Whether a rule may translate what arrives from outside.
    fn is_inward(&self, rule: &SnatRule) -> bool {
        match &rule.out {
            Some(name) => self.inside.contains(name),
            None => !rule.destination.positive.is_empty(),
        }
    }

    /// The rule under whose mapping a hairpinned packet's source is hidden: as if it left for the
    /// outside.
    pub fn hairpin(&self, key: &FlowKey) -> Option<(u16, &Arc<SnatRule>)> {
        let (source, destination) = (address(key.source), address(key.destination));
        let (position, rule) = self.snat.iter().enumerate().find(|(_, rule)| {
            rule.protocols.contains(key.protocol)
                && rule.source.matches(source)
                && rule.destination.matches(destination)
                && !rule.out.as_ref().is_some_and(|out| self.inside.contains(out))
        })?;
        (rule.hairpin && rule.to.translates()).then_some((u16::try_from(position).ok()?, rule))
    }

    /// The first forward for a packet to one of the gateway's addresses. `addresses` tells the
    /// address of an interface that a forward names.
    pub fn forward(
        &self,
        key: &FlowKey,
        is_address_of: impl Fn(&str, Ipv4Addr) -> bool,
    ) -> Option<(u16, &ForwardRule)> {
        let destination = address(key.destination);
        let port = u16::from_be(key.destination_port);
        let (position, rule) = self.forwards.iter().enumerate().find(|(_, rule)| {
            rule.protocols.contains(key.protocol)
                && rule.external_ports.contains(port)
                && rule.source.matches(address(key.source))
                && match &rule.external {
                    ForwardAddress::Address(external) => *external == destination,
                    ForwardAddress::Interface(name) => is_address_of(name, destination),
                }
        })?;
        Some((u16::try_from(position).ok()?, rule))
    }

    /// The service of a packet to one of the gateway's addresses; `is_address_of` as above.
    pub fn service(
        &self,
        key: &FlowKey,
        is_address_of: impl Fn(&str, Ipv4Addr) -> bool,
    ) -> Option<(u16, &Arc<ServiceRule>)> {
        let destination = address(key.destination);
        let port = u16::from_be(key.destination_port);
        let (position, rule) = self.services.iter().enumerate().find(|(_, rule)| {
            (rule.protocol, rule.port) == (key.protocol, port)
                && match &rule.external {
                    ForwardAddress::Address(external) => *external == destination,
                    ForwardAddress::Interface(name) => is_address_of(name, destination),
                }
        })?;
        Some((u16::try_from(position).ok()?, rule))
    }

    /// Inside hosts that connections from outside are led to by a rule.
    pub fn forwarded_to(&self) -> impl Iterator<Item = Ipv4Addr> {
        let servers = self.services.iter().flat_map(|rule| &rule.servers).map(|one| *one.address.ip());
        self.forwards.iter().map(|rule| rule.internal).chain(servers)
    }

    /// The one-to-one rule of an external address, and the inside address it stands for.
    pub fn static_inbound(&self, external: Ipv4Addr) -> Option<(u16, Ipv4Addr)> {
        self.one_to_one(external, |rule| (rule.external, rule.internal))
    }

    /// The one-to-one rule of an inside address, and the external address it has.
    pub fn static_outbound(&self, internal: Ipv4Addr) -> Option<(u16, Ipv4Addr)> {
        self.one_to_one(internal, |rule| (rule.internal, rule.external))
    }

    fn one_to_one(
        &self,
        from: Ipv4Addr,
        sides: impl Fn(&StaticRule) -> (Ipv4Net, Ipv4Net),
    ) -> Option<(u16, Ipv4Addr)> {
        let (position, rule) =
            self.statics.iter().enumerate().find(|(_, rule)| sides(rule).0.contains(&from))?;
        let (_, to) = sides(rule);
        let host = u32::from(from) & u32::from(to.hostmask());
        Some((u16::try_from(position).ok()?, Ipv4Addr::from(u32::from(to.network()) | host)))
    }

    /// For every prefix that a selector names: the rules whose selector holds there. Prefixes in
    /// `inside` are marked as inside networks.
    pub fn selector_sets(
        &self,
        selector: impl Fn(&SnatRule) -> &Selector,
        inside: &[Ipv4Net],
    ) -> Vec<(Ipv4Net, RuleSet)> {
        let mut prefixes = vec![Ipv4Net::default()];
        prefixes.extend(inside.iter().map(Ipv4Net::trunc));
        for rule in &self.snat {
            let selector = selector(rule);
            prefixes.extend(selector.positive.iter().chain(&selector.negative).map(Ipv4Net::trunc));
        }
        prefixes.sort();
        prefixes.dedup();
        // Within a prefix, outside of the longer ones that have an entry of their own, every
        // selector answers alike: any prefix it names either covers all of it or none.
        prefixes
            .into_iter()
            .map(|prefix| {
                let mut set = RuleSet::EMPTY;
                for (position, rule) in self.snat.iter().enumerate() {
                    if covers(selector(rule), prefix) {
                        set.insert(position);
                    }
                }
                if inside.iter().any(|net| net.contains(&prefix)) {
                    set.insert(INSIDE);
                }
                (prefix, set)
            })
            .collect()
    }

    /// Rules that carry TCP, UDP, ICMP, and any other protocol.
    pub fn protocol_sets(&self) -> [RuleSet; 4] {
        let mut sets = [RuleSet::EMPTY; 4];
        for (position, rule) in self.snat.iter().enumerate() {
            for (set, protocol) in sets.iter_mut().zip([wire::TCP, wire::UDP, wire::ICMP]) {
                if rule.protocols.contains(protocol) {
                    set.insert(position);
                }
            }
            let is_other = |protocol: &u8| !matches!(*protocol, wire::TCP | wire::UDP | wire::ICMP);
            if rule.protocols.iter().any(|protocol| is_other(&protocol)) {
                sets[3].insert(position);
            }
        }
        sets
    }

    /// Rules that exempt whatever the way out.
    pub fn exempt_set(&self) -> RuleSet {
        self.set(is_exempt)
    }

    /// Whether any rule tracks what it does not translate.
    pub fn tracks(&self) -> bool {
        self.snat.iter().any(|rule| rule.to == SnatTarget::Track)
    }

    /// Whether a packet from outside is for an inside host that a rule hides: one that is
    /// uninvited unless it belongs to a session.
    pub fn is_uninvited(&self, key: &FlowKey) -> bool {
        let (source, destination) = (address(key.source), address(key.destination));
        let answered_by = self.snat.iter().find(|rule| {
            rule.protocols.contains(key.protocol)
                && rule.source.matches(destination)
                && rule.destination.matches(source)
        });
        answered_by.is_some_and(|rule| !is_exempt(rule))
    }

    /// Rules that may translate what arrives from outside.
    pub fn inward_set(&self) -> RuleSet {
        self.set(|rule| self.is_inward(rule))
    }

    fn set(&self, holds: impl Fn(&SnatRule) -> bool) -> RuleSet {
        let mut set = RuleSet::EMPTY;
        for (position, rule) in self.snat.iter().enumerate() {
            if holds(rule) {
                set.insert(position);
            }
        }
        set
    }
}

/// Whether a rule exempts whatever the way out.
fn is_exempt(rule: &SnatRule) -> bool {
    rule.to == SnatTarget::None && rule.out.is_none()
}

/// What a host has on an address of its own.
const EVERY_PORT: PortRange = PortRange { first: 0, last: u16::MAX };

/// The addresses of a pool, network byte order.
fn pool_addresses(target: &SnatTarget) -> Arc<[u32]> {
    match target {
        SnatTarget::Pool(pool) => pool.iter().map(network).collect(),
        SnatTarget::Masquerade | SnatTarget::None | SnatTarget::Track => Arc::new([]),
    }
}

/// Whether a selector holds for all addresses of a prefix that no longer named prefix takes out.
fn covers(selector: &Selector, prefix: Ipv4Net) -> bool {
    let within = |nets: &[Ipv4Net]| nets.iter().any(|net| net.contains(&prefix));
    (selector.positive.is_empty() || within(&selector.positive)) && !within(&selector.negative)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rules(text: &str) -> Rules {
        let head =
            "[[interface]]\nname=\"lan\"\nside=\"inside\"\n[[interface]]\nname=\"wan\"\nside=\"outside\"\n";
        Rules::new(&Config::parse(&format!("{head}{text}"), "test").unwrap())
    }

    /// What the fast path computes: the longest prefix's set.
    fn longest(sets: &[(Ipv4Net, RuleSet)], address: Ipv4Addr) -> RuleSet {
        sets.iter()
            .filter(|(prefix, _)| prefix.contains(&address))
            .max_by_key(|(prefix, _)| prefix.prefix_len())
            .map_or(RuleSet::EMPTY, |(_, set)| *set)
    }

    type Side = fn(&SnatRule) -> &Selector;

    proptest! {
        /// The sets and the selectors agree for every address (negations, nesting and all).
        #[test]
        fn sets_equal_selectors(bits in any::<u32>()) {
            let rules = rules(r#"
                [[snat]]
                source = ["10.1.1.0/24"]
                destination = ["!10.1.1.0/24"]
                to = "masquerade"
                [[snat]]
                source = ["10.0.0.0/8", "!10.1.0.0/16", "192.168.0.0/16"]
                to = "masquerade"
                [[snat]]
                source = ["!10.1.1.0/24"]
                destination = ["10.1.1.0/24", "10.1.2.0/25"]
                to = "none"
            "#);
            // Half of the cases fall where the prefixes are.
            let value = if bits & 1 == 0 { bits } else { 0x0a01_0000 | (bits >> 8 & 0xffff) };
            let address = Ipv4Addr::from(value);
            let sides: [Side; 2] = [|rule| &rule.source, |rule| &rule.destination];
            for side in sides {
                let set = longest(&rules.selector_sets(side, &[]), address);
                for (position, rule) in rules.snat.iter().enumerate() {
                    prop_assert_eq!(set.contains(position), side(rule).matches(address));
                }
            }
        }
    }
}
