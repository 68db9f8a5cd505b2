//! Why a packet was counted: one number a reason, never used twice for different things.

/// What happened to a packet. The number is its slot in the per-CPU counter map.
///
/// Exactly one reason is counted for each packet a program or the daemon finishes with.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// Translated from its flow in the kernel.
    Translated = 0,
    /// Translated one-to-one, without a flow.
    TranslatedStatic = 1,
    /// Given to the gateway's own stack, untouched.
    Passed = 2,
    /// Given to the daemon for a decision.
    Punted = 3,
    /// Translated on the tc hook: the way out takes no redirected frame, or the checksum is partial.
    TranslatedByStack = 4,
    /// Sent on as it was to a server of a virtual server: by direct routing, or inside another packet.
    Relayed = 5,
    /// Not a packet's end: the event ring was full, and the daemon has to look at every TCP session.
    EventLost = 15,
    /// The daemon was not there or its ring was full.
    DropNoDaemon = 16,
    /// Frame shorter than its headers say.
    DropTruncated = 17,
    /// IPv4 header that contradicts itself (version, lengths).
    DropBadHeader = 18,
    /// IPv4 header checksum wrong.
    DropBadChecksum = 19,
    /// TCP, UDP or ICMP header that contradicts itself.
    DropBadTransport = 20,
    /// Source route option (RFC 5508 section 7.3, RFC 7126).
    DropSourceRoute = 21,
    /// Option list that does not end well.
    DropBadOption = 22,
    /// Source or destination that may not appear there (RFC 1812 5.3.7).
    DropMartian = 23,
    /// Addressed to the inside by an outside host that nobody asked.
    DropUninvited = 24,
    /// No mapping, forward or socket wants it.
    DropUnsolicited = 25,
    /// A mapping exists, but the filter does not let this remote in.
    DropFiltered = 26,
    /// TCP segment that belongs to no session and may not open one.
    DropNoSession = 27,
    /// No external port left.
    DropPortsExhausted = 28,
    /// Session table full.
    DropSessionsFull = 29,
    /// A source is at its limit.
    DropSourceLimit = 30,
    /// No route to the destination.
    DropNoRoute = 31,
    /// The next hop did not answer ARP.
    DropNoNeighbour = 32,
    /// Held for a neighbour or a fragment beyond what may be held.
    DropHoldFull = 33,
    /// Time to live ran out.
    DropTtl = 34,
    /// Too big for the way out, and not to be fragmented.
    DropTooBig = 35,
    /// A fragment whose first never came, or that contradicts itself.
    DropFragment = 36,
    /// ICMP error that quotes nothing natgw knows, or quotes it wrongly.
    DropIcmpError = 37,
    /// A protocol that the rule in force cannot carry.
    DropProtocol = 38,
    /// Sent from one of the gateway's own addresses, or spoofed from the other side.
    DropSpoofed = 39,
    /// No external address to translate to.
    DropNoAddress = 40,
    /// Handing the frame to the way out failed.
    DropTransmit = 41,
    /// The flow table refused the entry.
    DropTable = 42,
    /// The gateway's own packet would have used a flow that a client has.
    DropOwnClash = 43,
    /// A virtual server has no server that takes new connections.
    DropNoServer = 44,
    /// A server sent back what a virtual server had led to it.
    DropLoop = 45,
}

/// Slots in the counter map; reasons stay below.
pub const REASONS: u32 = 64;

/// Reason, its name in listings and metrics, and what it means with what to do about it.
macro_rules! reasons {
    ($($reason:ident, $name:literal, $description:literal;)*) => {
        impl Reason {
            /// Every reason, in order of its number.
            pub const ALL: &'static [Self] = &[$(Self::$reason),*];

            /// The stable name in listings and metrics.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$reason => $name),* }
            }

            /// One sentence for people.
            pub const fn description(self) -> &'static str {
                match self { $(Self::$reason => $description),* }
            }
        }
    };
}

reasons! {
    Translated, "translated", "translated in the kernel";
    TranslatedStatic, "translated_static", "translated one-to-one, without a table entry";
    Passed, "passed", "for the gateway itself or plain routing: handed to its stack untouched";
    Punted, "punted", "handed to the daemon for a decision";
    TranslatedByStack, "translated_by_stack", "translated on the tc hook";
    Relayed, "relayed", "sent on as it was to a server, by direct routing or in a tunnel";
    EventLost, "event_lost", "a TCP session changed, and the daemon was not told in time";
    DropNoDaemon, "no_daemon", "needed the daemon, which is not running or overloaded";
    DropTruncated, "truncated", "the frame ends before its headers do";
    DropBadHeader, "bad_header", "IPv4 header contradicts itself";
    DropBadChecksum, "bad_checksum", "IPv4 header checksum is wrong";
    DropBadTransport, "bad_transport", "TCP, UDP or ICMP header contradicts itself";
    DropSourceRoute, "source_route", "carries a source route option";
    DropBadOption, "bad_option", "IPv4 options contradict themselves";
    DropMartian, "martian", "source or destination address may not appear on a wire";
    DropUninvited, "uninvited", "an outside host addressed the inside directly";
    DropUnsolicited, "unsolicited", "no mapping, forward or socket wants it";
    DropFiltered, "filtered", "a mapping exists, but its filter does not let this remote in";
    DropNoSession, "no_session", "TCP segment of no session that may not open one";
    DropPortsExhausted, "ports_exhausted", "no external port left: add addresses or use endpoint-dependent mapping";
    DropSessionsFull, "sessions_full", "as many sessions or mappings as there may be: raise limits.sessions, limits.mappings";
    DropSourceLimit, "source_limit", "the source is at its limit, or there are as many sources as there may be";
    DropNoRoute, "no_route", "no route to the destination";
    DropNoNeighbour, "no_neighbour", "the next hop does not answer ARP";
    DropHoldFull, "hold_full", "more packets waited for a neighbour or a fragment than may wait";
    DropTtl, "ttl", "time to live ran out";
    DropTooBig, "too_big", "too big for the way out, and marked don't fragment";
    DropFragment, "fragment", "fragment without its first, or one that contradicts itself";
    DropIcmpError, "icmp_error", "ICMP error about no packet that natgw sent on";
    DropProtocol, "protocol", "a protocol that this rule cannot carry";
    DropSpoofed, "spoofed", "source address belongs to another side";
    DropNoAddress, "no_address", "no external address: the interface has none";
    DropTransmit, "transmit", "the way out did not take the frame";
    DropTable, "table", "the kernel's flow table refused the entry";
    DropOwnClash, "own_clash", "the gateway's own packet, from a port that a client has to the same remote";
    DropNoServer, "no_server", "no server of the virtual server is up and takes new connections: see `natgw service list`";
    DropLoop, "loop", "sent back by a server that does not have the virtual server's address: see method in [[service]]";
}

impl Reason {
    /// The slot in the counter map.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self as u32
    }

    /// Whether the packet ended here.
    pub const fn is_drop(self) -> bool {
        self as u32 >= 16
    }
}
