//! Where the kernel would send a packet, remembered until anything about routing changes.

use std::{io, net::Ipv4Addr};

use netlink_packet_core::{DecodeError, Parseable as _};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType},
    rule::{RuleAttribute, RuleMessage},
};
use rustix::io::Errno;

use super::netlink::{Channel, Message};
use crate::hash::HashMap;

/// A packet whose way is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteQuery {
    /// The packet's source address.
    pub source: Ipv4Addr,
    /// The packet's destination address.
    pub destination: Ipv4Addr,
    /// The interface it came in by; 0 for a packet of the gateway's own (then `source` plays no part).
    pub ingress: u32,
}

/// Where a packet goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// The interface it leaves by (the ingress or loopback one for [`RouteKind::Local`]).
    pub ifindex: u32,
    /// The router it is sent to; none if the destination is on the link.
    pub gateway: Option<Ipv4Addr>,
    /// The address of the gateway's own that a masquerading rule puts in as source.
    pub preferred_source: Option<Ipv4Addr>,
    /// The MTU the route sets, if it sets one.
    pub mtu: Option<u32>,
    /// What the destination is to the gateway.
    pub kind: RouteKind,
}

impl Route {
    /// The neighbour that a packet to `destination` is sent to.
    pub fn neighbour(&self, destination: Ipv4Addr) -> Ipv4Addr {
        self.gateway.unwrap_or(destination)
    }
}

/// What a destination is to the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouteKind {
    /// Another host.
    Unicast,
    /// The gateway itself.
    Local,
    /// All hosts of a link.
    Broadcast,
    /// A multicast group.
    Multicast,
}

/// Why a packet goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// No route, or one of type `unreachable`.
    #[error("no route to the destination")]
    Unreachable,
    /// A route or rule of type `prohibit`.
    #[error("a route prohibits the destination")]
    Prohibited,
    /// A route or rule of type `blackhole`.
    #[error("a blackhole route swallows the destination")]
    Blackhole,
    /// Anything else: `EXDEV` is a source that reverse-path filtering refuses, `EINVAL` one that no packet from
    /// outside may bear (an address of the gateway's own).
    #[error("route lookup: {0}")]
    Other(Errno),
}

/// Route lookups and the memory of their answers.
///
/// The answer of a multipath route is kept for its destination: all sources then share one path to it.
#[derive(Debug, Default)]
pub(super) struct Routes {
    /// Answers since the last turnover, and those of the turn before: together never more than [`CACHED`].
    young: HashMap<RouteQuery, Result<Route, RouteError>>,
    old: HashMap<RouteQuery, Result<Route, RouteError>>,
    /// Whether `ip rule` has more than the kernel's three: only then can the source matter.
    policy: bool,
}

impl Routes {
    /// Forgets every answer.
    pub(super) fn forget(&mut self) {
        self.young.clear();
        self.old.clear();
    }

    /// Whether `ip rule` has more than the kernel's three.
    pub(super) fn is_policy(&self) -> bool {
        self.policy
    }

    /// Reads the policy rules anew.
    pub(super) fn read_rules(&mut self, channel: &mut Channel) -> io::Result<()> {
        let mut request = RuleMessage::default();
        request.header.family = AddressFamily::Inet;
        let mut policy = false;
        channel.dump(RouteNetlinkMessage::GetRule(request), |message| {
            // A rule that does not decode is not one of the three.
            policy |= !RuleMessage::parse(message.payload).is_ok_and(|rule| is_default(&rule));
            Ok(())
        })?;
        self.policy = policy;
        self.forget();
        Ok(())
    }

    /// Looks a packet's way up as the kernel would forward it.
    pub(super) fn lookup(&mut self, channel: &mut Channel, query: RouteQuery) -> Result<Route, RouteError> {
        let source = if self.policy { query.source } else { Ipv4Addr::UNSPECIFIED };
        let key = RouteQuery { source, ..query };
        if let Some(answer) = self.young.get(&key) {
            return *answer;
        }
        let answer = match self.old.remove(&key) {
            Some(answer) => answer,
            None => ask(channel, query, self.policy),
        };
        if self.young.len() >= CACHED / 2 {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, answer);
        answer
    }
}

/// The way by one interface, as for a packet of the gateway's own from an address of it: other routes than the
/// best, and those that `ip rule` keeps for that address.
pub(super) fn lookup_by(
    channel: &mut Channel,
    egress: u32,
    source: Ipv4Addr,
    destination: Ipv4Addr,
) -> Result<Route, RouteError> {
    let mut question = output(destination);
    question.header.source_prefix_length = 32;
    question.attributes.push(RouteAttribute::Source(RouteAddress::Inet(source)));
    question.attributes.push(RouteAttribute::Oif(egress));
    ask_kernel(channel, question).map_err(route_error)
}

/// Whether a rule is one of the three that every namespace starts with.
fn is_default(rule: &RuleMessage) -> bool {
    let (mut priority, mut table) = (0, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            RuleAttribute::Protocol(_) | RuleAttribute::SuppressPrefixLen(u32::MAX) => {}
            _ => return false,
        }
    }
    rule.header.src_len == 0
        && rule.header.dst_len == 0
        && rule.header.tos == 0
        && matches!((priority, table), (0, 255) | (32_766, 254) | (32_767, 253))
}

fn ask(channel: &mut Channel, query: RouteQuery, policy: bool) -> Result<Route, RouteError> {
    // The kernel takes a multicast packet in only for groups it has joined: ask where it would send one.
    if query.ingress == 0 || query.destination.is_multicast() {
        return ask_kernel(channel, output(query.destination)).map_err(route_error);
    }
    match ask_kernel(channel, input(query)) {
        Ok(route) if route.kind == RouteKind::Unicast => {
            let preferred_source = preferred_source(channel, query, &route, policy);
            Ok(Route { preferred_source, ..route })
        }
        Ok(route) => Ok(route),
        // Also the answer of an interface that does not forward, which natgw does not need it to.
        Err(Errno::HOSTUNREACH) => ask_kernel(channel, output(query.destination)).map_err(route_error),
        // Either the destination is swallowed, or the source is one that cannot come from outside.
        Err(Errno::INVAL) => match ask_kernel(channel, output(query.destination)) {
            Err(Errno::INVAL) => Err(RouteError::Blackhole),
            _ => Err(RouteError::Other(Errno::INVAL)),
        },
        Err(errno) => Err(route_error(errno)),
    }
}

/// The gateway's own address on the way out. A lookup for forwarding does not tell it.
fn preferred_source(
    channel: &mut Channel,
    query: RouteQuery,
    route: &Route,
    policy: bool,
) -> Option<Ipv4Addr> {
    if policy {
        // A `src` in a table that only this packet's rule leads to.
        let mut exact = input(query);
        exact.header.flags |= RouteFlags::FibMatch;
        let source = ask_kernel(channel, exact).ok().and_then(|route| route.preferred_source);
        if source.is_some() {
            return source;
        }
    }
    let mut own = output(query.destination);
    own.attributes.push(RouteAttribute::Oif(route.ifindex));
    ask_kernel(channel, own).ok()?.preferred_source
}

/// The question for a packet of the gateway's own.
fn output(destination: Ipv4Addr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = RouteHeader {
        address_family: AddressFamily::Inet,
        destination_prefix_length: 32,
        ..RouteHeader::default()
    };
    message.attributes.push(RouteAttribute::Destination(RouteAddress::Inet(destination)));
    message
}

/// The question for a packet that came in.
fn input(query: RouteQuery) -> RouteMessage {
    let mut message = output(query.destination);
    message.header.source_prefix_length = 32;
    message.attributes.push(RouteAttribute::Source(RouteAddress::Inet(query.source)));
    message.attributes.push(RouteAttribute::Iif(query.ingress));
    message
}

fn ask_kernel(channel: &mut Channel, question: RouteMessage) -> Result<Route, Errno> {
    let mut of_the_route = question.clone();
    let (mut route, is_learnt) = ask_once(channel, question)?;
    if is_learnt {
        // A path MTU the gateway's own connections learnt expires unannounced, and the kernel does not hold
        // forwarded packets to it: to what the route itself says, which the answer does not tell then.
        of_the_route.header.flags |= RouteFlags::FibMatch;
        route.mtu = ask_once(channel, of_the_route).map_or(None, |(route, _)| route.mtu);
    }
    Ok(route)
}

/// The way, and whether its MTU is one that was learnt.
fn ask_once(channel: &mut Channel, question: RouteMessage) -> Result<(Route, bool), Errno> {
    let mut answer = Err(Errno::NODATA);
    channel
        .query(RouteNetlinkMessage::GetRoute(question), |message| {
            answer = parse(&message)?;
            Ok(())
        })
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::BADMSG))?;
    answer
}

fn parse(message: &Message<'_>) -> Result<Result<(Route, bool), Errno>, DecodeError> {
    let message = RouteMessage::parse(message.payload)?;
    let kind = match message.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local | RouteType::Anycast => RouteKind::Local,
        RouteType::Broadcast => RouteKind::Broadcast,
        RouteType::Multicast => RouteKind::Multicast,
        RouteType::Prohibit => return Ok(Err(Errno::ACCESS)),
        RouteType::BlackHole => return Ok(Err(Errno::INVAL)),
        _ => return Ok(Err(Errno::NETUNREACH)),
    };
    let mut route = Route { ifindex: 0, gateway: None, preferred_source: None, mtu: None, kind };
    let mut learnt = false;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)) => route.gateway = Some(*gateway),
            RouteAttribute::PrefSource(RouteAddress::Inet(source)) => route.preferred_source = Some(*source),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            RouteAttribute::CacheInfo(info) => learnt = info.expires != 0,
            // An IPv4 route by an IPv6 router: there is no ARP entry to send to.
            RouteAttribute::Via(_) => return Ok(Err(Errno::AFNOSUPPORT)),
            _ => {}
        }
    }
    Ok(Ok((route, learnt)))
}

fn route_error(errno: Errno) -> RouteError {
    match errno {
        Errno::NETUNREACH | Errno::HOSTUNREACH => RouteError::Unreachable,
        Errno::ACCESS => RouteError::Prohibited,
        Errno::INVAL => RouteError::Blackhole,
        errno => RouteError::Other(errno),
    }
}

/// Answers kept.
const CACHED: usize = 65_536;
