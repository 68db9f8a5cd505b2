//! A packet without a flow: whose is it? The stack's, the daemon's, or nobody's.

use aya_ebpf::programs::XdpContext;
use nat_common::{
    FlowKey, Parsed, Reason,
    abi::{Interface, LocalAddress, Settings},
    classify::{
        FORWARDED, INSIDE, RuleSet, is_group, is_martian_destination, is_martian_source, protocol_class,
    },
    flow::Query,
    frame::Frame as _,
    parse::{ETHERNET, Kind},
    table::EMPTY,
    vlan::Tags,
    wire,
};

use crate::{
    flow,
    frame::PacketFrame,
    known, maps, open,
    sockets::{self, Taker},
    stateless,
    verdict::Verdict,
};

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;

/// Judges a packet that no flow covers.
#[inline(always)]
pub fn judge(ctx: &XdpContext, interface: &Interface, parsed: &Parsed) -> Verdict {
    if !maps::keep(packed(parsed)) {
        return Verdict::Punt;
    }
    match by_configuration(ctx, interface) {
        Verdict::Known => open(ctx, interface),
        verdict => verdict,
    }
}

/// Opens a session for a packet whose rule is known, if it can be opened here, and sends the packet as its first.
#[inline(always)]
fn open(ctx: &XdpContext, interface: &Interface) -> Verdict {
    let (Some(parsed), Some(settings)) = (kept(), maps::settings()) else { return Verdict::Punt };
    let line = match open::open(ctx, interface, settings, &parsed) {
        EMPTY if open::is_shed(&parsed) => return Verdict::Drop(Reason::DropSourceLimit),
        EMPTY => return Verdict::Punt,
        open::REFUSED => return Verdict::Drop(Reason::DropPortsExhausted),
        line => line,
    };
    let Some(flow) = maps::flow_of(line) else { return Verdict::Punt };
    let frame = PacketFrame::of_xdp(ctx);
    flow::forward(ctx, interface, &frame, &frame.skip(parsed.transport), &parsed, &flow)
}

/// What was parsed, in words.
#[inline(always)]
fn packed(parsed: &Parsed) -> [u64; 3] {
    let [addresses, rest] = parsed.key.words();
    let lengths = parsed.transport as u64
        | u64::from(parsed.total_length) << 8
        | u64::from(parsed.ttl) << 24
        | u64::from(parsed.tcp_flags) << 32
        | (parsed.kind as u64) << 40;
    [addresses, rest, lengths]
}

/// What was parsed, by way of memory, of which the verifier knows nothing: it walks what follows once, and not for each
/// way that led here.
#[inline(always)]
fn kept() -> Option<Parsed> {
    let [addresses, rest, lengths] = maps::kept()?;
    let kind = match (lengths >> 40) as u8 {
        kind if kind == Kind::Ported as u8 => Kind::Ported,
        kind if kind == Kind::Portless as u8 => Kind::Portless,
        kind if kind == Kind::IcmpOther as u8 => Kind::IcmpOther,
        kind if kind == Kind::FirstFragment as u8 => Kind::FirstFragment,
        _ => Kind::LaterFragment,
    };
    Some(Parsed {
        network: ETHERNET,
        // An IPv4 header ends before.
        transport: (lengths & 0x7f) as usize,
        tags: Tags::NONE,
        total_length: (lengths >> 8) as u16,
        ttl: (lengths >> 24) as u8,
        kind,
        tcp_flags: (lengths >> 32) as u8,
        key: FlowKey::of_words([addresses, rest]),
    })
}

/// In the order of the configuration: one-to-one, the gateway's own addresses, then rules.
#[inline(always)]
fn by_configuration(ctx: &XdpContext, interface: &Interface) -> Verdict {
    let Some(parsed) = kept() else { return Verdict::Punt };
    if is_group(parsed.key.destination) {
        return Verdict::Pass;
    }
    if is_martian_source(parsed.key.source) || is_martian_destination(parsed.key.destination) {
        return Verdict::Drop(Reason::DropMartian);
    }
    let Some(settings) = maps::settings() else { return Verdict::Pass };
    let outside = interface.flags & Interface::OUTSIDE != 0;
    if !outside {
        if parsed.kind == Kind::Ported {
            known::expect(&parsed);
        }
        if known::is_known(settings, &parsed) {
            return Verdict::Known;
        }
    }
    let frame = PacketFrame::of_xdp(ctx);
    match in_order(ctx, interface, &frame, &frame.skip(parsed.transport), &parsed, settings) {
        Verdict::Rule(rule) if known::remember(settings, &parsed, rule) => Verdict::Known,
        Verdict::Rule(_) => Verdict::Punt,
        verdict => verdict,
    }
}

/// The same for a packet of which nothing is known: whose it is, or the rule that it is translated by.
#[inline(always)]
fn in_order(
    ctx: &XdpContext,
    interface: &Interface,
    frame: &PacketFrame,
    transport: &PacketFrame,
    parsed: &Parsed,
    settings: &Settings,
) -> Verdict {
    let outside = interface.flags & Interface::OUTSIDE != 0;
    if outside && is_forged(settings, parsed.key.source) {
        return Verdict::Drop(Reason::DropSpoofed);
    }
    let one_to_one = settings.flags & Settings::ONE_TO_ONE != 0;
    if one_to_one && let Some(mapping) = maps::one_to_one(settings.generation, true, parsed.key.destination) {
        return stateless::inbound(ctx, interface, frame, transport, parsed, mapping);
    }
    if let Some(local) = maps::local(parsed.key.destination) {
        return for_gateway(ctx, settings, parsed, local, outside);
    }
    if one_to_one
        && !outside
        && let Some(mapping) = maps::one_to_one(settings.generation, false, parsed.key.source)
    {
        return stateless::outbound(ctx, interface, frame, transport, parsed, mapping);
    }
    by_rules(ctx, interface, settings, parsed, outside)
}

/// Whether a source cannot be outside: the gateway's own, or of an inside network (RFC 2827).
#[inline(always)]
fn is_forged(settings: &Settings, source: u32) -> bool {
    maps::local(source).is_some() || is_inside(settings, source)
}

/// Whether an address is of an inside network.
#[inline(always)]
fn is_inside(settings: &Settings, address: u32) -> bool {
    maps::rules_from(settings.generation, address).is_some_and(|rules| rules.contains(INSIDE))
}

/// Addressed to the gateway: its connections first, then forwards, its services, mappings, and
/// then its stack.
#[inline(always)]
fn for_gateway(
    ctx: &XdpContext,
    settings: &Settings,
    parsed: &Parsed,
    local: &LocalAddress,
    outside: bool,
) -> Verdict {
    if local.flags & LocalAddress::EXTERNAL == 0 {
        return Verdict::Pass;
    }
    let key = &parsed.key;
    // To the stack, an address that no interface has is another host's: it would send the packet
    // back to the router that it came from, and so on until its TTL ends (behaviour POL-09).
    let absent = local.flags & LocalAddress::ABSENT != 0;
    let stack = if absent { Verdict::Drop(Reason::DropUnsolicited) } else { Verdict::Pass };
    match parsed.kind {
        Kind::Ported if key.protocol == wire::ICMP => {
            // A request is the gateway's to answer (behaviour ICQ-07); a reply may be a mapping's.
            if key.query == Query::Request as u8 { stack } else { Verdict::Punt }
        }
        Kind::Ported => {
            let forwarded = local.flags & LocalAddress::FORWARDS != 0 && maps::is_forwarded(key);
            // A socket that is bound to no address seems to take what is for an absent one.
            if !absent {
                match sockets::taker(ctx, key) {
                    Taker::Connection => return Verdict::Pass,
                    Taker::Service if !forwarded => return Verdict::Pass,
                    Taker::Service | Taker::Nobody => {}
                }
            }
            let port = u16::from_be(key.destination_port);
            let may_be_mapped = port >= local.first_port && port <= local.last_port;
            if may_be_mapped || forwarded {
                Verdict::Punt
            } else if outside && settings.flags & Settings::DROP_UNMATCHED_OUTSIDE != 0 {
                Verdict::Drop(Reason::DropUnsolicited)
            } else {
                stack
            }
        }
        // Errors name their flow in the quote, fragments in their first: the daemon looks, and
        // gives the stack what is its own.
        Kind::IcmpOther | Kind::FirstFragment | Kind::LaterFragment => Verdict::Punt,
        Kind::Portless => stack,
    }
}

/// Addressed to someone else: translated if a rule says so, plain routing if none does, and
/// never from the outside to an inside that rules hide.
#[inline(always)]
fn by_rules(
    ctx: &XdpContext,
    interface: &Interface,
    settings: &Settings,
    parsed: &Parsed,
    outside: bool,
) -> Verdict {
    let class = protocol_class(parsed.key.protocol);
    let protocols = match class {
        0 => &settings.protocols[0],
        1 => &settings.protocols[1],
        2 => &settings.protocols[2],
        _ => &settings.protocols[3],
    };
    let mut rules = matching(settings, protocols, parsed.key.source, parsed.key.destination);
    if outside {
        rules = rules.and(&settings.inward);
    }
    if !rules.is_empty() {
        if rules.first_is_in(&settings.exempt) {
            return Verdict::Pass;
        }
        return if outside { Verdict::Punt } else { Verdict::Rule(rules.lowest()) };
    }
    if outside {
        // Would the answer be translated? Then this is an uninvited packet to a hidden host. Is
        // it exempt, or no rule's, then both directions are plain routing (behaviour POL-05).
        let reverse = matching(settings, protocols, parsed.key.destination, parsed.key.source);
        if !reverse.is_empty() && !reverse.first_is_in(&settings.exempt) {
            let whose_session =
                matches!(parsed.kind, Kind::IcmpOther | Kind::FirstFragment | Kind::LaterFragment);
            if whose_session && settings.flags & Settings::TRACKS != 0 {
                return Verdict::Punt;
            }
            return if offers_address(interface, settings, &parsed.key) {
                Verdict::Pass
            } else {
                Verdict::Drop(Reason::DropUninvited)
            };
        }
        // The host's answers would look like those to a forward's packets: the daemon, who knows
        // of both, keeps them apart (behaviour PFW-07).
        if maps::rules_to(settings.generation, parsed.key.destination)
            .is_some_and(|rules| rules.contains(FORWARDED))
        {
            return Verdict::Punt;
        }
    }
    // Plainly routed: the rest of a network may see it with this source (RFC 2827).
    if !outside
        && settings.flags & Settings::PASS_FORGED == 0
        && !is_inside(settings, parsed.key.source)
        && stateless::comes_from_outside(ctx, interface, parsed)
    {
        return Verdict::Drop(Reason::DropSpoofed);
    }
    Verdict::Pass
}

/// Whether a DHCP server may be speaking to the gateway's own client: to the address that the
/// interface is about to get (RFC 2131 section 4.1), as long as it has none.
#[inline(always)]
fn offers_address(interface: &Interface, settings: &Settings, key: &FlowKey) -> bool {
    interface.flags & Interface::UNNUMBERED != 0
        && key.protocol == wire::UDP
        && key.source_port == DHCP_SERVER.to_be()
        && key.destination_port == DHCP_CLIENT.to_be()
        && !is_inside(settings, key.destination)
}

/// Rules whose selectors hold for a source, a destination and a protocol.
#[inline(always)]
fn matching(settings: &Settings, protocols: &RuleSet, source: u32, destination: u32) -> RuleSet {
    // The bit that is no rule is in no set of destinations or protocols.
    let (Some(from), Some(to)) =
        (maps::rules_from(settings.generation, source), maps::rules_to(settings.generation, destination))
    else {
        return RuleSet::EMPTY;
    };
    from.and(to).and(protocols)
}
