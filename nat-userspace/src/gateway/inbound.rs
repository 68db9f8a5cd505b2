//! Packets to the gateway's external addresses: for a mapping if its filter lets them in, for a
//! forward, else for the gateway itself. From the inside, the same is hairpinning.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Instant;

use nat_common::flow::{Query, Rewrite};
use nat_common::{FlowKey, Parsed, Realm, Reason, tcp, wire};

use super::icmp::Error;
use super::mappings::{Mapping, MappingKey};
use super::open::{FORWARDS, Opened, Refusal, has_ports};
use super::sessions::{Carriage, NO_MAPPING, Origin, Session};
use super::world::{RouteKind, RouteQuery, World};
use super::{Gateway, Interface, address, network};
use crate::config::{Filtering, ForwardAddress, ForwardRule, Mapping as Behaviour, PortRange};

/// Where an inbound packet is to go.
struct Target {
    /// Inside address and port, network byte order.
    inside: (u32, u16),
    mapping: u32,
    origin: Origin,
    /// A forward that hides the remote behind the gateway's inside address.
    hides_remote: bool,
    carriage: Carriage,
}

impl Gateway {
    /// Opens a session for a packet to one of the gateway's addresses.
    pub(super) fn open_inbound(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        parsed: &Parsed,
    ) -> Opened {
        let key = &parsed.key;
        if key.query == Query::Request as u8 || !has_ports(key.protocol) {
            // To an address that no interface has, the stack would send it back where it came from.
            return Err(if world.is_local(address(key.destination)) {
                Refusal::Stack
            } else {
                Refusal::Silent(Reason::DropUnsolicited)
            });
        }
        let found = self.find_target(key, ingress.realm() == Realm::Inside);
        let service = if matches!(found, Ok(Some(_))) { None } else { self.find_service(key) };
        let target = match found {
            Ok(Some(target)) => target,
            _ if let Some(position) = service => self.choose_server(now, parsed, position)?,
            Ok(None) => return Err(self.nobodys(world, key)),
            // What a filter keeps out may still be a socket's that was bound later (LOC-05).
            Err(reason) => {
                if ingress.realm() == Realm::Inside
                    && let Some(outside) = self.interface_of(key.destination)
                {
                    self.knock(world, now, &outside, key)?;
                }
                return Err(Refusal::Silent(reason));
            }
        };
        if key.protocol == wire::TCP && !tcp::opens(parsed.tcp_flags) {
            return Err(Refusal::Silent(Reason::DropNoSession));
        }
        // What is relayed has arrived: the server is the service's address.
        if parsed.ttl <= 1 && !target.carriage.is_relay() {
            return Err(Refusal::Told(Reason::DropTtl, Error::TtlExceeded));
        }
        let query =
            RouteQuery { source: address(key.source), destination: address(target.inside.0), ingress: 0 };
        let route = world.route(query).map_err(super::open::unreachable)?;
        let Some(egress) = self.interfaces.get(&route.ifindex).cloned() else {
            return Err(Refusal::Silent(Reason::DropNoRoute));
        };
        if route.kind != RouteKind::Unicast {
            // A forward to the gateway itself: its own stack would answer from another address.
            return Err(Refusal::Silent(Reason::DropNoRoute));
        }
        // An inside host whose link is down is not to be found at the end of the default route. A forward may lead
        // to a host outside, but none there has a private address.
        let is_beyond = route.gateway.is_some() && address(target.inside.0).is_private();
        let is_astray = egress.realm() == Realm::Outside
            && target.carriage == Carriage::Translated
            && (is_beyond || matches!(target.origin, Origin::Inbound(_)));
        if is_astray {
            return Err(Refusal::Silent(Reason::DropNoRoute));
        }
        if target.carriage == Carriage::Direct && route.gateway.is_some() {
            // A router on the way would send it back to this address: see the warning.
            return Err(Refusal::Told(Reason::DropNoRoute, Error::HostUnreachable));
        }
        self.admit(world, &target, now)?;
        let rewrite = self
            .inbound_rewrite(world, now, ingress, &egress, key, &target)
            .inspect_err(|_| self.turn_away(&target))?;
        let next_hops = [
            self.next_hops.slot(world, &egress, route.neighbour(address(target.inside.0)), route.mtu),
            self.way_to_remote(world, ingress, key.destination, key.source),
        ];
        if matches!(target.origin, Origin::Service(_)) {
            self.next_hops.schedule(world, next_hops[0]);
        }
        let session = Session {
            original: *key,
            rewrite,
            mapping: target.mapping,
            next_hops,
            carriage: target.carriage,
            armed: 0,
            opened: 0,
            origin: target.origin,
            answers: egress.realm(),
            reply_refreshes: true,
        };
        self.enter(world, now, session).ok_or_else(|| {
            self.turn_away(&target);
            self.let_go_of_hairpin(now, key);
            Refusal::Silent(Reason::DropTable)
        })
    }

    /// The mapping or forward of an external endpoint. `Err` if one exists but lets this remote
    /// not in. A hairpinned remote counts by its external address (behaviour HPN-09), which is
    /// taken to be the one it sends to: with pools the strictest reading.
    fn find_target(&self, key: &FlowKey, hairpin: bool) -> Result<Option<Target>, Reason> {
        let mut kept_out = None;
        if let Some(slot) = self.mappings.find_external(key.protocol, key.destination, key.destination_port)
            && let Some(mapping) = self.mappings.get(slot)
            && !mapping.permanent
        {
            // Who sends to its own external endpoint has thereby sent there (behaviour HPN-07).
            let is_own = hairpin && (mapping.key.address, mapping.key.port) == (key.source, key.source_port);
            let filtering = self.rules.snat.get(usize::from(mapping.rule)).map(|rule| rule.filtering);
            let admitted = match filtering {
                _ if is_own => true,
                Some(Filtering::EndpointIndependent) => true,
                Some(Filtering::AddressDependent) => {
                    self.mappings.has_contact(slot, if hairpin { key.destination } else { key.source })
                }
                _ => false,
            };
            if admitted {
                return Ok(Some(Target {
                    inside: (mapping.key.address, mapping.key.port),
                    mapping: slot,
                    origin: Origin::Inbound(mapping.rule),
                    hides_remote: false,
                    carriage: Carriage::Translated,
                }));
            }
            kept_out = Some(Reason::DropFiltered);
        }
        let forward = self.rules.forward(key, |name, wanted| self.is_address_of(name, wanted));
        let Some((position, rule)) = forward else { return kept_out.map_or(Ok(None), Err) };
        let inside = (network(rule.internal), forwarded_port(rule, key.destination_port));
        let mapping_key =
            MappingKey::new(Behaviour::EndpointIndependent, key.protocol, inside, (0, 0), FORWARDS);
        let mapping = self
            .mappings
            .find(&mapping_key)
            .filter(|&slot| {
                self.mappings.get(slot).is_some_and(|mapping| {
                    mapping.external == key.destination && mapping.external_port == key.destination_port
                })
            })
            .unwrap_or(NO_MAPPING);
        Ok(Some(Target {
            inside,
            mapping,
            origin: Origin::Forward(position),
            hides_remote: rule.masquerade_source,
            carriage: Carriage::Translated,
        }))
    }

    /// What the packet becomes: the inside endpoint as destination; the source stays, unless the
    /// packet comes from the inside (hairpin, RFC 4787 REQ-9a), the forward hides it, or another
    /// session has the same tuple behind the inside endpoint already (behaviour PFW-06).
    fn inbound_rewrite(
        &mut self,
        world: &mut dyn World,
        now: Instant,
        ingress: &Interface,
        egress: &Interface,
        key: &FlowKey,
        target: &Target,
    ) -> Result<Rewrite, Refusal> {
        let mut rewrite = Rewrite {
            source: key.source,
            destination: target.inside.0,
            source_port: key.source_port,
            destination_port: target.inside.1,
        };
        if key.protocol == wire::ICMP {
            rewrite.source_port = 0;
        }
        if target.carriage == Carriage::Tunnelled {
            let Some(own) = egress.addresses.first() else {
                return Err(Refusal::Silent(Reason::DropNoAddress));
            };
            rewrite.source = network(*own);
        }
        if target.carriage.is_relay() {
            return Ok(rewrite);
        }
        let is_service = matches!(target.origin, Origin::Service(_));
        let hairpin = if ingress.realm() == Realm::Inside { self.rules.hairpin(key) } else { None };
        if hairpin.is_none() && ingress.realm() == Realm::Inside && !is_service {
            return Err(Refusal::Silent(Reason::DropUnsolicited));
        }
        if let Some((position, rule)) = hairpin {
            let rule = rule.clone();
            let outside = self.interface_of(key.destination);
            let outside = outside.as_deref().unwrap_or(egress);
            let (slot, external, port) =
                self.mapping_for(world, now, key, position, &rule, outside, Some(key.destination))?;
            // The mapping lives as long as this session: held in its stead by the target's, it
            // would end with the next sweep. Contacts are the filter's memory (behaviour HPN-09).
            self.mappings.hold(slot, key.destination);
            self.hairpins.insert(*key, slot);
            rewrite.source = external;
            rewrite.source_port = port;
            return Ok(rewrite);
        }
        let taken = |port: u16, source: u32| {
            let candidate = Rewrite { source, source_port: port.to_be(), ..rewrite };
            world.find(&Session::reply_key(key, &candidate, egress.realm())).is_some()
        };
        // A server would answer a client on its own link by itself, past the gateway (behaviour LBS-10).
        let hides_remote = target.hides_remote || (is_service && egress.ifindex == ingress.ifindex);
        let source = if hides_remote {
            let Some(own) = egress.addresses.first() else {
                return Err(Refusal::Silent(Reason::DropNoAddress));
            };
            network(*own)
        } else {
            key.source
        };
        let wanted = u16::from_be(key.source_port);
        let port = if taken(wanted, source)
            || (hides_remote && world.is_bound(key.protocol, source, wanted.to_be()))
        {
            let range = PortRange::UNPRIVILEGED;
            let step = self.externals.draw(range);
            (0..range.len())
                .map(|n| {
                    let offset = (u32::from(step) + n) % range.len();
                    range.first + u16::try_from(offset).unwrap_or(0)
                })
                .find(|&port| {
                    let is_own = hides_remote && world.is_bound(key.protocol, source, port.to_be());
                    !(is_own || taken(port, source))
                })
        } else {
            Some(wanted)
        };
        let Some(port) = port else { return Err(Refusal::Silent(Reason::DropPortsExhausted)) };
        if key.protocol != wire::ICMP {
            rewrite.source_port = port.to_be();
        }
        rewrite.source = source;
        Ok(rewrite)
    }

    /// Whether an address is an interface's.
    pub(super) fn is_address_of(&self, name: &str, wanted: Ipv4Addr) -> bool {
        self.interfaces.values().any(|own| own.name == name && own.addresses.contains(&wanted))
    }

    /// The service of an external endpoint.
    fn find_service(&self, key: &FlowKey) -> Option<u16> {
        self.rules.service(key, |name, wanted| self.is_address_of(name, wanted)).map(|(position, _)| position)
    }

    /// The server that a packet which may open a connection is for.
    fn choose_server(&mut self, now: Instant, parsed: &Parsed, position: u16) -> Result<Target, Refusal> {
        let key = &parsed.key;
        if key.protocol == wire::TCP && !tcp::opens(parsed.tcp_flags) {
            return Err(Refusal::Silent(Reason::DropNoSession));
        }
        let client = (address(key.source), u16::from_be(key.source_port));
        let Some(server) = self.services.choose(position, client, now) else {
            return Err(Refusal::Told(Reason::DropNoServer, Error::HostUnreachable));
        };
        let method = self.rules.services.get(usize::from(position)).map(|rule| rule.method);
        Ok(Target {
            inside: (network(*server.ip()), server.port().to_be()),
            mapping: NO_MAPPING,
            origin: Origin::Service(position),
            hides_remote: false,
            carriage: method.map_or(Carriage::Translated, Carriage::of),
        })
    }

    /// Whether there is room for one more session. Limits of inside hosts are not a server's, who has clients.
    fn admit(&mut self, world: &mut dyn World, target: &Target, now: Instant) -> Result<(), Refusal> {
        if !matches!(target.origin, Origin::Service(_)) {
            return self.may_open(world, target.inside.0, now);
        }
        if self.is_lent_out() {
            self.revoke(world);
        }
        if self.sessions.is_full() {
            return Err(Refusal::Told(Reason::DropSessionsFull, Error::AdministrativelyProhibited));
        }
        Ok(())
    }

    /// What was admitted comes to nothing.
    fn turn_away(&mut self, target: &Target) {
        if !matches!(target.origin, Origin::Service(_)) {
            self.sources.close(target.inside.0);
        }
    }

    /// Counts a session that was just put in, if it is a service's.
    pub(super) fn count_service(&mut self, now: Instant, slot: u32) {
        if let Some(session) = self.sessions.get(slot)
            && let Some((position, server)) = session.server()
        {
            self.services.opened(position, server, address(session.original.source), now);
        }
    }

    /// What a check has found of a server. Returns whether that is news.
    pub fn set_health(&mut self, service: &str, server: SocketAddrV4, is_up: bool, now: Instant) -> bool {
        self.services.set_health(service, server, is_up, now)
    }

    /// The interface that has an address.
    pub(super) fn interface_of(&self, external: u32) -> Option<Arc<Interface>> {
        self.interfaces.values().find(|interface| interface.addresses.contains(&address(external))).cloned()
    }

    /// Next hop to the remote that opened a session from outside: by the interface it came in
    /// (behaviour S000-18, POL-10), through that interface's router if it is not on the link.
    pub(super) fn way_to_remote(
        &mut self,
        world: &mut dyn World,
        ingress: &Interface,
        external: u32,
        remote: u32,
    ) -> u16 {
        let query = RouteQuery { source: address(remote), destination: address(remote), ingress: 0 };
        let remote = address(remote);
        let route = match world.route(query) {
            Ok(route) if route.ifindex == ingress.ifindex => Some(route),
            // The best route is another interface's. With two uplinks there is one by this, too.
            _ => world
                .route_by(ingress.ifindex, address(external), remote)
                .ok()
                .filter(|route| route.ifindex == ingress.ifindex),
        };
        let neighbour = route.map_or(remote, |route| route.neighbour(remote));
        self.next_hops.slot(world, ingress, neighbour, route.and_then(|route| route.mtu))
    }

    /// A packet nobody inside wants: silence where mappings may live, so that a SYN that is early
    /// can still succeed (RFC 5382 REQ-4), the stack's own answer elsewhere.
    fn nobodys(&self, world: &dyn World, key: &FlowKey) -> Refusal {
        // The fast path asks for services where a forward may be: one for other remotes.
        if world.is_local(address(key.destination))
            && world.is_bound(key.protocol, key.destination, key.destination_port)
        {
            return Refusal::Stack;
        }
        let port = u16::from_be(key.destination_port);
        let mappable = self.rules.snat.iter().any(|rule| rule.ports.contains(port));
        let external = self.is_external(key.destination)
            || self
                .interface_of(key.destination)
                .is_some_and(|interface| interface.realm() == Realm::Outside);
        if !world.is_local(address(key.destination))
            || self.rules.drop_unmatched
            || (external && mappable && key.protocol != wire::ICMP)
        {
            Refusal::Silent(Reason::DropUnsolicited)
        } else {
            Refusal::Stack
        }
    }

    /// Makes the permanent mappings of forwards, and keeps their ports from others. Returns ports
    /// that a mapping has just now: they become the forward's when it ends.
    pub(super) fn reserve_forwards(&mut self) -> Vec<(u8, u16)> {
        let mut busy = Vec::new();
        let forwards = self.rules.forwards.clone();
        for (position, rule) in forwards.iter().enumerate() {
            for external in self.addresses_of(&rule.external) {
                for protocol in rule.protocols.iter().filter(|&protocol| has_ports(protocol)) {
                    for port in rule.external_ports.first..=rule.external_ports.last {
                        if !self.externals.reserve(protocol, external, port) {
                            busy.push((protocol, port));
                        }
                        self.map_forward(rule, position, protocol, external, port.to_be());
                    }
                }
            }
        }
        let services = self.rules.services.clone();
        for rule in &services {
            for external in self.addresses_of(&rule.external) {
                if !self.externals.reserve(rule.protocol, external, rule.port) {
                    busy.push((rule.protocol, rule.port));
                }
            }
        }
        busy
    }

    /// What forwards and services listen on now: address in network byte order, protocol, ports.
    pub fn forwarded_endpoints(&self) -> impl Iterator<Item = (u32, u8, PortRange)> {
        let forwards = self.rules.forwards.iter().flat_map(|rule| {
            self.addresses_of(&rule.external).into_iter().flat_map(move |external| {
                rule.protocols.iter().map(move |protocol| (external, protocol, rule.external_ports))
            })
        });
        let services = self.rules.services.iter().flat_map(|rule| {
            let ports = PortRange { first: rule.port, last: rule.port };
            let externals = self.addresses_of(&rule.external).into_iter();
            externals.map(move |external| (external, rule.protocol, ports))
        });
        forwards.chain(services)
    }

    /// The forward or service that has a port of an address (0.0.0.0 for any): its external address, kind
    /// and name.
    pub fn forward_of(
        &self,
        protocol: u8,
        own: Ipv4Addr,
        port: u16,
    ) -> Option<(Ipv4Addr, &'static str, &str)> {
        let forwards = self.rules.forwards.iter().filter_map(|rule| {
            let has_port = rule.protocols.contains(protocol) && rule.external_ports.contains(port);
            has_port.then_some((&rule.external, "forward", rule.name.as_str()))
        });
        let services = self.rules.services.iter().filter_map(|rule| {
            let has_port = (rule.protocol, rule.port) == (protocol, port);
            has_port.then_some((&rule.external, "service", rule.name.as_str()))
        });
        forwards
            .chain(services)
            .flat_map(|(external, kind, name)| {
                let externals = self.addresses_of(external).into_iter();
                externals.map(move |external| (address(external), kind, name))
            })
            .find(|(external, ..)| own.is_unspecified() || *external == own)
    }

    fn map_forward(&mut self, rule: &ForwardRule, position: usize, protocol: u8, external: u32, port: u16) {
        let inside = (network(rule.internal), forwarded_port(rule, port));
        let key = MappingKey::new(Behaviour::EndpointIndependent, protocol, inside, (0, 0), FORWARDS);
        let is_taken = self.mappings.find_external(protocol, external, port).is_some();
        // A forward that admits only some, or hides them, says nothing of outbound flows; nor
        // does the second forward to the same endpoint.
        if is_taken || self.mappings.find(&key).is_some() || !rule.source.is_any() || rule.masquerade_source {
            return;
        }
        self.mappings.insert(Mapping {
            key,
            external,
            external_port: port,
            sessions: 0,
            rule: u16::try_from(position).unwrap_or(u16::MAX),
            permanent: true,
            shared: false,
        });
    }

    /// The addresses a forward or service listens on now, network byte order.
    fn addresses_of(&self, external: &ForwardAddress) -> Vec<u32> {
        match external {
            ForwardAddress::Address(external) => vec![network(*external)],
            ForwardAddress::Interface(name) => self
                .interfaces
                .values()
                .filter(|interface| interface.name == *name)
                .flat_map(|interface| interface.addresses.iter().copied().map(network))
                .collect(),
        }
    }
}

/// The inside port of a forwarded one: offset-true in ranges. Network byte order both.
fn forwarded_port(rule: &ForwardRule, external: u16) -> u16 {
    let offset = u16::from_be(external).wrapping_sub(rule.external_ports.first);
    rule.internal_ports.first.wrapping_add(offset).to_be()
}
