//! The rules of the file, one by one.

use std::net::Ipv4Addr;
use std::ops::Range;

use ipnet::Ipv4Net;
use serde_spanned::Spanned;

use super::address::{self, AddressPool, AddressRange, PortRange};
use super::deterministic;
use super::error::{Fault, Problems};
use super::file::{self, List, words};
use super::ports;
use super::selector::{ProtocolSet, Selector, parse_protocol};
use super::validate::{Names, choose, required};
use super::{
    Filtering, ForwardAddress, ForwardRule, InterfaceConfig, Mapping, Pooling, Side, SnatRule, SnatTarget,
    StaticRule,
};

/// A rule with its place in the file.
pub(super) struct Placed<T> {
    pub(super) span: Range<usize>,
    pub(super) rule: T,
}

/// The rules without their places.
pub(super) fn unplaced<T>(rules: Vec<Placed<T>>) -> Vec<T> {
    rules.into_iter().map(|placed| placed.rule).collect()
}

/// Judges rules against the interfaces there are.
pub(super) struct Judge<'a, 'text> {
    interfaces: &'a [InterfaceConfig],
    names: Names,
    pub(super) problems: &'a mut Problems<'text>,
    pub(super) warnings: &'a mut Vec<String>,
}

impl<'a, 'text> Judge<'a, 'text> {
    pub(super) fn new(
        interfaces: &'a [InterfaceConfig],
        problems: &'a mut Problems<'text>,
        warnings: &'a mut Vec<String>,
    ) -> Self {
        Self { interfaces, names: Names::new("rule"), problems, warnings }
    }

    pub(super) fn snat(&mut self, raw: &[Spanned<file::Snat>]) -> Vec<Placed<SnatRule>> {
        if let Some(extra) = raw.get(MOST_SNAT_RULES) {
            self.problems.add(
                &extra.span(),
                Fault::new(
                    format!("{} [[snat]] rules are more than the {MOST_SNAT_RULES} there may be", raw.len()),
                    "one rule takes many prefixes: source = [\"10.1.0.0/16\", \"10.3.0.0/16\"]",
                ),
            );
        }
        raw.iter().enumerate().filter_map(|(index, section)| self.one_snat(index, section)).collect()
    }

    fn one_snat(&mut self, index: usize, section: &Spanned<file::Snat>) -> Option<Placed<SnatRule>> {
        let raw = section.get_ref();
        let name = self.name(raw.name.as_ref(), "snat", index, &section.span());
        let mapping = choose(raw.mapping.as_ref(), &Mapping::WORDS, self.problems);
        let filtering = choose(raw.filtering.as_ref(), &Filtering::WORDS, self.problems);
        let filtering = self.what_mapping_can_tell(&name, mapping, filtering, raw.filtering.is_some());
        let source = self.selector(raw.source.as_ref());
        let destination = self.selector(raw.destination.as_ref());
        let protocols = self.protocols(raw.protocol.as_ref(), ProtocolSet::ANY);
        let out = raw.out.as_ref().map(|out| {
            self.interface(out.get_ref(), &out.span());
            out.get_ref().clone()
        });
        let ports = raw.ports.as_ref().map_or(Some(PortRange::UNPRIVILEGED), |ports| {
            self.problems.check(&ports.span(), address::parse_ports(&ports.get_ref().0))
        });
        let port_set = raw.port_set.as_ref().and_then(|set| ports::port_set(set, ports?, self.problems));
        let pooling = choose(raw.pooling.as_ref(), &Pooling::WORDS, self.problems);
        let hint = "to = \"masquerade\", \"none\", \"track\" or a list of addresses";
        let to = required(raw.to.as_ref(), section, "to", hint, self.problems).and_then(|to| self.target(to));
        let pool = match &to {
            Some(SnatTarget::Pool(pool)) => Some(pool),
            _ => None,
        };
        let deterministic = raw
            .deterministic
            .as_ref()
            .and_then(|raw| deterministic::deterministic(raw, pool, ports?, self.problems));
        if matches!(pooling, Pooling::Exclusive | Pooling::ExclusiveThenShared)
            && to.as_ref().is_some_and(|to| !matches!(to, SnatTarget::Pool(_)))
            && let Some(place) = &raw.pooling
        {
            self.problems.add(
                &place.span(),
                Fault::new(
                    format!("`{}` gives addresses of a pool to hosts, and there is no pool", pooling.name()),
                    "to = [\"203.0.113.2-203.0.113.4\"], or another pooling",
                ),
            );
        }
        let rule = SnatRule {
            name,
            source,
            destination,
            protocols,
            out,
            to: to?,
            ports: ports?,
            port_set,
            deterministic,
            mapping,
            filtering,
            pooling,
            hairpin: raw.hairpin.unwrap_or(true),
        };
        Some(Placed { span: section.span(), rule })
    }

    pub(super) fn statics(&mut self, raw: &[Spanned<file::Static>]) -> Vec<Placed<StaticRule>> {
        raw.iter().enumerate().filter_map(|(index, section)| self.one_static(index, section)).collect()
    }

    fn one_static(&mut self, index: usize, section: &Spanned<file::Static>) -> Option<Placed<StaticRule>> {
        let raw = section.get_ref();
        let name = self.name(raw.name.as_ref(), "static", index, &section.span());
        let mut side = |value: Option<&Spanned<String>>, key: &str| {
            let hint = "an address or prefix such as 203.0.113.50 or 203.0.113.0/28";
            let value = required(value, section, key, hint, self.problems)?;
            self.problems.check(&value.span(), parse_static_side(value.get_ref()))
        };
        let external = side(raw.external.as_ref(), "external");
        let internal = side(raw.internal.as_ref(), "internal");
        let (external, internal) = (external?, internal?);
        if external.prefix_len() != internal.prefix_len() {
            self.problems.add(
                &section.span(),
                Fault::new(
                    format!(
                        "external {} and internal {} are not of the same size",
                        address::show_prefix(external),
                        address::show_prefix(internal)
                    ),
                    format!("give both a /{} or both a /{}", external.prefix_len(), internal.prefix_len()),
                ),
            );
            return None;
        }
        Some(Placed { span: section.span(), rule: StaticRule { name, external, internal } })
    }

    pub(super) fn forwards(&mut self, raw: &[Spanned<file::Forward>]) -> Vec<Placed<ForwardRule>> {
        raw.iter().enumerate().filter_map(|(index, section)| self.one_forward(index, section)).collect()
    }

    fn one_forward(&mut self, index: usize, section: &Spanned<file::Forward>) -> Option<Placed<ForwardRule>> {
        let raw = section.get_ref();
        let name = self.name(raw.name.as_ref(), "forward", index, &section.span());
        let with_ports = ProtocolSet::of(&[TCP, UDP]);
        let protocols = self.protocols(raw.protocol.as_ref(), with_ports);
        if let Some(other) = protocols.iter().find(|&protocol| !with_ports.contains(protocol)) {
            let place = raw.protocol.as_ref().map_or_else(|| section.span(), Spanned::span);
            self.problems.add(
                &place,
                Fault::new(
                    format!("a [[forward]] needs ports, protocol {other} has none it could use"),
                    "tcp and udp are forwarded; a [[static]] carries every protocol of an address",
                ),
            );
        }
        let source = self.selector(raw.source.as_ref());
        let hint = "external = \"203.0.113.1:8080\" or \"wan:8080\"";
        let external =
            required(raw.external.as_ref(), section, "external", hint, self.problems).and_then(|value| {
                let (address, ports) = self.problems.check(&value.span(), parse_external(value.get_ref()))?;
                if let ForwardAddress::Interface(name) = &address {
                    self.outside_interface(name, &value.span());
                }
                Some((address, ports))
            });
        let hint = "internal = \"10.1.1.12:80\"";
        let internal =
            required(raw.internal.as_ref(), section, "internal", hint, self.problems).and_then(|value| {
                self.problems.check(&value.span(), parse_internal(value.get_ref())).zip(Some(value))
            });
        let ((external, external_ports), ((internal, ports), place)) = (external?, internal?);
        let internal_ports = self.problems.check(&place.span(), internal_ports(external_ports, ports))?;
        let rule = ForwardRule {
            name,
            protocols,
            external,
            external_ports,
            internal,
            internal_ports,
            source,
            masquerade_source: raw.masquerade_source,
        };
        Some(Placed { span: section.span(), rule })
    }

    /// The name given, or one by the rule's place among its kind.
    pub(super) fn name(
        &mut self,
        given: Option<&Spanned<String>>,
        kind: &str,
        index: usize,
        section: &Range<usize>,
    ) -> String {
        let (name, span) = match given {
            None => (format!("{kind}-{}", index + 1), section.clone()),
            Some(name) => (name.get_ref().clone(), name.span()),
        };
        let plain = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        if name.is_empty() || name.len() > LONGEST_NAME || !name.chars().all(plain) {
            self.problems.add(
                &span,
                Fault::new(
                    format!("`{name}` cannot be a rule's name"),
                    format!("1 to {LONGEST_NAME} bytes: letters, digits, `-`, `_` and `.`"),
                ),
            );
        }
        self.names.add(&name, &span, self.problems);
        name
    }

    fn selector(&mut self, list: Option<&Spanned<List>>) -> Selector {
        let mut selector = Selector::default();
        for (span, word) in words(list) {
            self.problems.check(&span, selector.add(word));
        }
        selector
    }

    fn protocols(&mut self, list: Option<&Spanned<List>>, default: ProtocolSet) -> ProtocolSet {
        let named = words(list);
        if named.is_empty() {
            return default;
        }
        named
            .into_iter()
            .filter_map(|(span, word)| self.problems.check(&span, parse_protocol(word)))
            .fold(ProtocolSet::NONE, ProtocolSet::with)
    }

    fn interface(&mut self, name: &str, span: &Range<usize>) {
        if self.interfaces.iter().all(|interface| interface.name != name) {
            let there: Vec<&str> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
            self.problems.add(
                span,
                Fault::new(
                    format!("`{name}` is not an interface of this configuration"),
                    format!("there are: {}", there.join(", ")),
                ),
            );
        }
    }

    pub(super) fn outside_interface(&mut self, name: &str, span: &Range<usize>) {
        let outside: Vec<&str> = self
            .interfaces
            .iter()
            .filter(|interface| interface.side == Side::Outside)
            .map(|interface| interface.name.as_str())
            .collect();
        if !outside.contains(&name) {
            self.problems.add(
                span,
                Fault::new(
                    format!("`{name}` is not an outside interface of this configuration"),
                    format!("outside are: {}", outside.join(", ")),
                ),
            );
        }
    }

    fn target(&mut self, to: &Spanned<List>) -> Option<SnatTarget> {
        match to.get_ref() {
            List::One(word) if word.0 == "masquerade" => return Some(SnatTarget::Masquerade),
            List::One(word) if word.0 == "none" => return Some(SnatTarget::None),
            List::One(word) if word.0 == "track" => return Some(SnatTarget::Track),
            List::One(word) if !word.0.contains(|one: char| one.is_ascii_digit()) => {
                self.problems.add(
                    &to.span(),
                    Fault::new(
                        format!("`{}` is neither a target nor an address", word.0),
                        "to = \"masquerade\", \"none\", \"track\" or a list of addresses",
                    ),
                );
                return None;
            }
            List::One(_) | List::Many(_) => {}
        }
        let mut ranges: Vec<AddressRange> = Vec::new();
        for (span, word) in words(Some(to)) {
            let range = address::parse_range(word).and_then(|range| {
                match ranges.iter().find(|earlier| earlier.overlaps(range)) {
                    None => Ok(range),
                    Some(earlier) => Err(Fault::new(
                        format!("`{word}` has addresses of `{earlier}` once more"),
                        "name each address of a pool once",
                    )),
                }
            });
            ranges.push(self.problems.check(&span, range)?);
        }
        let count: u64 = ranges.iter().map(|range| range.len()).sum();
        if !(1..=AddressPool::MOST).contains(&count) {
            self.problems.add(
                &to.span(),
                Fault::new(
                    format!("a pool of {count} addresses, it may have 1 to {}", AddressPool::MOST),
                    "to = \"masquerade\" uses the interface's own address, to = \"none\" translates nothing",
                ),
            );
            return None;
        }
        Some(SnatTarget::Pool(AddressPool::new(ranges)))
    }

    /// A port that several remotes share says only together with the remote who is meant: filtering
    /// looser than that has nothing to go by.
    fn what_mapping_can_tell(
        &mut self,
        rule: &str,
        mapping: Mapping,
        asked: Filtering,
        said_so: bool,
    ) -> Filtering {
        let (strictest, word) = match (mapping, asked) {
            (Mapping::EndpointDependent, Filtering::EndpointIndependent | Filtering::AddressDependent) => {
                (Filtering::AddressAndPortDependent, "address-and-port-dependent")
            }
            (Mapping::AddressDependent, Filtering::EndpointIndependent) => {
                (Filtering::AddressDependent, "address-dependent")
            }
            _ => return asked,
        };
        if said_so {
            self.warnings.push(format!(
                "[[snat]] {rule}: with this mapping, filtering is {word}: remotes share external ports"
            ));
        }
        strictest
    }
}

fn parse_static_side(word: &str) -> Result<Ipv4Net, Fault> {
    address::parse_range(word)?;
    address::parse_prefix(word)
}

/// `203.0.113.1:8080` or `wan:8080`, either with a range of ports.
pub(super) fn parse_external(word: &str) -> Result<(ForwardAddress, PortRange), Fault> {
    let (host, ports) = split_ports(word, "203.0.113.1:8080, 203.0.113.1:6000-6009 or wan:8080")?;
    let numeric = host.starts_with(|c: char| c.is_ascii_digit()) && host.contains('.');
    // An interface may be called `0.wan`, but who writes four numbers means an address.
    let address = if numeric && host.chars().all(|c| c.is_ascii_digit() || c == '.') {
        ForwardAddress::Address(address::parse_host(host)?)
    } else {
        ForwardAddress::Interface(host.to_owned())
    };
    Ok((address, ports))
}

/// `10.1.1.12:80`, perhaps with a range of ports.
fn parse_internal(word: &str) -> Result<(Ipv4Addr, PortRange), Fault> {
    let (host, ports) = split_ports(word, "10.1.1.12:80 or 10.1.1.12:6000-6009")?;
    Ok((address::parse_host(host)?, ports))
}

fn split_ports<'word>(word: &'word str, example: &str) -> Result<(&'word str, PortRange), Fault> {
    let (host, ports) = word.rsplit_once(':').ok_or_else(|| {
        Fault::new(
            format!("`{word}` has no port"),
            format!("such as {example}; a [[static]] maps whole addresses"),
        )
    })?;
    Ok((host, address::parse_ports(ports)?))
}

/// As many ports inside as outside; a single one inside is where they begin.
fn internal_ports(external: PortRange, given: PortRange) -> Result<PortRange, Fault> {
    if given.len() == external.len() {
        return Ok(given);
    }
    if given.len() > 1 {
        return Err(Fault::new(
            format!("{} external ports ({external}) and {} internal ({given})", external.len(), given.len()),
            format!("give as many ports, or only the first: {}", given.first),
        ));
    }
    let last = u32::from(given.first) + external.len() - 1;
    match u16::try_from(last) {
        Ok(last) => Ok(PortRange { first: given.first, last }),
        Err(_) => Err(Fault::new(
            format!("{} ports from {} on end beyond 65535", external.len(), given.first),
            format!("begin at {} or lower", 65536 - external.len()),
        )),
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// What a set of rules in the fast path has bits for.
const MOST_SNAT_RULES: usize = nat_common::classify::RULES;

/// What a column of a listing has room for.
const LONGEST_NAME: usize = 63;
