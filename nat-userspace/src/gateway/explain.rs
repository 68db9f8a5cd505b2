//! What a packet finds, in words: for those who trace it.

use nat_common::classify::is_group;
use nat_common::frame::{Frame, SliceFrame};
use nat_common::parse::{Frames, Kind};
use nat_common::wire::Wire;
use nat_common::{FlowKey, Parsed, parse};

use super::sessions::Origin;
use super::world::{RouteKind, RouteQuery, World};
use super::{Gateway, Interface, address};
use crate::config::Side;

/// What a packet finds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// `flow`, `snat`, `static`, `forward`, `service`, `mapping`, `own socket`, `own address`, or what else it is.
    pub what: &'static str,
    /// The rule's name.
    pub rule: Option<String>,
}

impl Explained {
    /// Something without a name.
    pub fn of(what: &'static str) -> Self {
        Self { what, rule: None }
    }
}

/// The beginning of a frame of a known length.
struct Beginning<'frame> {
    kept: SliceFrame<'frame>,
    length: usize,
}

impl Frame for Beginning<'_> {
    fn at<T: Wire>(&self, offset: usize) -> Option<*mut T> {
        self.kept.at(offset)
    }

    fn skip(&self, offset: usize) -> Self {
        Self { kept: self.kept.skip(offset), length: self.length.saturating_sub(offset) }
    }

    fn length(&self) -> usize {
        self.length
    }
}

impl Gateway {
    /// What a packet finds that comes in by an interface, in the order of the configuration. Of the frame its
    /// beginning will do; it is not changed.
    pub fn explain(&self, world: &mut dyn World, ingress: u32, frame: &mut [u8], length: usize) -> Explained {
        let Some(ingress) = self.interfaces.get(&ingress) else { return Explained::of("no interface") };
        let is_ours = frame.starts_with(&ingress.mac);
        let Some(kept) = SliceFrame::new(frame) else { return Explained::of("malformed") };
        match parse(&Beginning { kept, length }, ingress.realm()) {
            Frames::Other => Explained::of("no IPv4"),
            Frames::Ipv4(parsed) if !is_ours => {
                let is_group = is_group(parsed.key.destination);
                Explained::of(if is_group { "multicast" } else { "for another MAC" })
            }
            Frames::Bad(_) => Explained::of("malformed"),
            Frames::Ipv4(parsed) => self.explain_packet(world, ingress, &parsed),
        }
    }

    fn explain_packet(&self, world: &mut dyn World, ingress: &Interface, parsed: &Parsed) -> Explained {
        let key = &parsed.key;
        if let Some((slot, _)) = world.find(key)
            && let Some(session) = self.sessions.get(slot)
        {
            return match session.origin {
                Origin::Bypass => Explained::of("plain routing"),
                origin => Explained { what: "flow", rule: Some(self.rules.name(origin)) },
            };
        }
        if is_group(key.destination) {
            return Explained::of("multicast");
        }
        let (source, destination) = (address(key.source), address(key.destination));
        let by_static = self.rules.static_inbound(destination).or_else(|| {
            let outbound = ingress.side == Side::Inside && !world.is_local(destination);
            outbound.then(|| self.rules.static_outbound(source)).flatten()
        });
        if let Some((position, _)) = by_static {
            return self.rule("static", Origin::Static(position));
        }
        if matches!(parsed.kind, Kind::IcmpOther) {
            return Explained::of("ICMP error");
        }
        if world.is_local(destination) || self.is_external(key.destination) {
            return self.explain_own(world, key);
        }
        self.explain_outbound(world, ingress, key)
    }

    /// To one of the gateway's addresses.
    fn explain_own(&self, world: &dyn World, key: &FlowKey) -> Explained {
        let is_address_of = |name: &str, wanted| self.is_address_of(name, wanted);
        if let Some((position, _)) = self.rules.forward(key, is_address_of) {
            return self.rule("forward", Origin::Forward(position));
        }
        if let Some((position, _)) = self.rules.service(key, is_address_of) {
            return self.rule("service", Origin::Service(position));
        }
        if world.is_bound(key.protocol, key.destination, key.destination_port) {
            return Explained::of("own socket");
        }
        let mapping = self.mappings.find_external(key.protocol, key.destination, key.destination_port);
        match mapping.and_then(|slot| self.mappings.get(slot)) {
            Some(mapping) => self.rule("mapping", Origin::Inbound(mapping.rule)),
            None => Explained::of("own address"),
        }
    }

    /// To another host.
    fn explain_outbound(&self, world: &mut dyn World, ingress: &Interface, key: &FlowKey) -> Explained {
        let query = RouteQuery {
            source: address(key.source),
            destination: address(key.destination),
            ingress: ingress.ifindex,
        };
        let route = world.route(query).ok().filter(|route| route.kind == RouteKind::Unicast);
        let Some(route) = route else { return Explained::of("no route") };
        let egress = self.interfaces.get(&route.ifindex);
        match egress.and_then(|egress| self.rules.snat(key, ingress, egress)) {
            Some((position, _)) => self.rule("snat", Origin::Snat(position)),
            None => Explained::of("no rule"),
        }
    }

    fn rule(&self, what: &'static str, origin: Origin) -> Explained {
        Explained { what, rule: Some(self.rules.name(origin)) }
    }
}
