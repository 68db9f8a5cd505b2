//! A plain first packet from inside, of a host that the daemon knows: its session is opened here. See
//! [`nat_common::delegate`].

use aya_ebpf::{
    helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64},
    programs::XdpContext,
};
use nat_common::{
    Direction, FlowKey, FlowValue, Parsed, Realm,
    abi::{Interface, Settings},
    activity::TICK_SHIFT,
    delegate::{
        self, Cell, Grant, KNOWN, KNOWN_FOR, KnownWay, LentSlots, REFUSALS_TOLD, TakenPorts, Word as _,
    },
    flow::Rewrite,
    parse::Kind,
    report::{self, Report},
    table::{self, EMPTY, FlowLine, REMOVED, Secret},
    tcp, wire,
};

use crate::{
    atomic::Shared,
    enter::enter,
    fib::{self, Answer, Question},
    known::{place_of_rule, touch_place},
    lent::Lent,
    maps,
    sockets::{self, Taker},
};

/// Words from those of taken ports to those of resting ones.
const RESTING: usize = 1024;

/// Ports tried beside the host's own: where half are taken, one in 256 packets goes up for want of more.
const TRIES: u32 = 8;

/// What is returned for a packet that ends here: no line has this number.
pub const REFUSED: u32 = REMOVED;

/// Kind of origin and position of an snat rule, as the daemon writes them.
const SNAT: u16 = 1;

/// Opens a session for a packet whose rule and grant are remembered. The number of its line, or [`EMPTY`]: then the
/// packet is the daemon's, and nothing is claimed; or [`REFUSED`].
#[inline(always)]
pub fn open(ctx: &XdpContext, interface: &Interface, settings: &Settings, parsed: &Parsed) -> u32 {
    let key = &parsed.key;
    let opens = match key.protocol {
        wire::TCP => tcp::opens(parsed.tcp_flags),
        wire::UDP => true,
        _ => false,
    };
    if !opens || parsed.kind as u8 != Kind::Ported as u8 || parsed.ttl <= 1 {
        return EMPTY;
    }
    let Some(known) = place_of_rule(key) else { return EMPTY };
    // SAFETY: one of the rules of a map's value, which nothing but this CPU looks at, and nothing writes meanwhile.
    let (grant, rule) = unsafe { (&(*known).grant, u32::from((*known).rule)) };
    if grant.epoch != settings.epoch || grant.ingress != interface.ifindex {
        return EMPTY;
    }
    let table = grant.tables[usize::from(key.protocol == wire::UDP)];
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let (Some(ports), Some(lent)) = (maps::ports(table), maps::lent(cpu)) else { return EMPTY };
    if !leads(ctx, interface, settings, parsed, grant, lent) {
        return EMPTY;
    }
    if is_refused(parsed, ports, lent) {
        return REFUSED;
    }
    let port = choose(ports, u16::from_be(parsed.key.source_port), grant);
    if port == 0 {
        return EMPTY;
    }
    let opening = Opening::new(parsed, rule, grant, port);
    if opening.rewrite.source_port != parsed.key.source_port {
        // Another place than was asked for already.
        touch_place(opening.reply.words());
    }
    if grant.flags & Grant::ABSENT == 0
        && sockets::may_hold(key.protocol, port)
        && sockets::taker(ctx, &opening.reply) != Taker::Nobody
    {
        return EMPTY;
    }
    if !report::has_room(&Lent(lent)) {
        return EMPTY;
    }
    claim(&opening, ports, lent)
}

/// Whether a packet ends here because there is no port for it, and enough have told the daemon so: a flood of them must
/// not cost more than one of established flows.
#[inline(always)]
fn is_refused(parsed: &Parsed, ports: *mut TakenPorts, lent: *mut LentSlots) -> bool {
    let key = &parsed.key;
    // SAFETY: a live word of a map, which the daemon alone writes.
    if unsafe { (&raw const (*ports).full).read_volatile() } == 0 {
        return false;
    }
    let cell = Cell::of(key.protocol, key.source, key.source_port, &maps::secret());
    let Some(word) = maps::cell(cell.word) else { return false };
    // SAFETY: an aligned word of a map, which everybody writes by atomic operations.
    let word = unsafe { Shared::new(word) };
    // What rests may be this host's to have back, which the daemon knows.
    if !cell.is_free(&word) || is_resting(ports, u32::from(u16::from_be(key.source_port))) {
        return false;
    }
    // SAFETY: the helper has no preconditions.
    were_told(lent, unsafe { bpf_jiffies64() } >> TICK_SHIFT)
}

/// Whether a packet that the daemon would open nothing for ends here: its host is at a limit, and enough have told the
/// daemon so in this tick.
#[inline(always)]
pub fn is_shed(parsed: &Parsed) -> bool {
    // SAFETY: the helper has no preconditions.
    let tick = unsafe { bpf_jiffies64() } >> TICK_SHIFT;
    if parsed.kind as u8 != Kind::Ported as u8 || !maps::is_shed(parsed.key.source, tick as u32) {
        return false;
    }
    // SAFETY: as above.
    maps::lent(unsafe { bpf_get_smp_processor_id() }).is_some_and(|lent| were_told(lent, tick))
}

/// Counts a packet that is refused in this tick. Whether enough of them have gone up before.
#[inline(always)]
fn were_told(lent: *mut LentSlots, tick: u64) -> bool {
    // SAFETY: nothing but this CPU writes these words of a live value.
    unsafe {
        let before = if (*lent).refused_in == tick { (*lent).refused } else { 0 };
        (*lent).refused_in = tick;
        (*lent).refused = before + 1;
        before >= REFUSALS_TOLD
    }
}

/// Whether the packet's way is the one that was granted: the kernel's routing table is asked, unless it has told of the
/// destination a moment ago.
#[inline(always)]
fn leads(
    ctx: &XdpContext,
    interface: &Interface,
    settings: &Settings,
    parsed: &Parsed,
    grant: &Grant,
    lent: *mut LentSlots,
) -> bool {
    let destination = parsed.key.destination;
    // SAFETY: the helper has no preconditions.
    let tick = unsafe { bpf_jiffies64() >> TICK_SHIFT } as u32;
    // The compiler knows the bound and would leave it out, the verifier would not know.
    let place = KnownWay::place(destination);
    // SAFETY: a live variable; and one of the ways of a map's value, which nothing but this CPU looks at.
    let known = unsafe {
        let place = (&raw const place).read_volatile() & (KNOWN - 1);
        &mut *(&raw mut (*lent).ways).cast::<KnownWay>().add(place as usize)
    };
    if settings.by_destination != 0
        && known.destination == destination
        && known.epoch == grant.epoch
        && known.ingress == grant.ingress
        && known.egress == grant.egress
        && known.gateway == grant.gateway
        && tick.wrapping_sub(known.tick) < KNOWN_FOR
    {
        return true;
    }
    // Granted are next hops as wide as their interface.
    if maps::narrow(destination).is_some() {
        return false;
    }
    let question = Question {
        ifindex: interface.ifindex,
        protocol: parsed.key.protocol,
        source: parsed.key.source,
        destination,
    };
    let Answer::Way(way) = fib::ask(ctx.ctx.cast(), &question) else { return false };
    if way.ifindex != grant.egress || way.neighbour != grant.gateway {
        return false;
    }
    let Grant { epoch, ingress, egress, gateway, .. } = *grant;
    *known = KnownWay { destination, epoch, ingress, egress, gateway, tick };
    true
}

/// A session that may be opened.
struct Opening<'a> {
    key: &'a FlowKey,
    rewrite: Rewrite,
    reply: FlowKey,
    rule: u32,
    grant: &'a Grant,
    port: u32,
}

impl<'a> Opening<'a> {
    #[inline(always)]
    fn new(parsed: &'a Parsed, rule: u32, grant: &'a Grant, port: u32) -> Self {
        let key = &parsed.key;
        let rewrite = Rewrite {
            source: grant.external,
            destination: key.destination,
            source_port: (port as u16).to_be(),
            destination_port: key.destination_port,
        };
        let sent = FlowKey { source: rewrite.source, source_port: rewrite.source_port, ..*key };
        Self { key, rewrite, reply: sent.reversed(Realm::Outside), rule, grant, port }
    }
}

/// Claims the endpoint, the port and a slot, and writes the session. All or nothing.
#[inline(always)]
fn claim(opening: &Opening<'_>, ports: *mut TakenPorts, lent: *mut LentSlots) -> u32 {
    let secret = maps::secret();
    let key = opening.key;
    let cell = Cell::of(key.protocol, key.source, key.source_port, &secret);
    let Some(word) = maps::cell(cell.word) else { return EMPTY };
    // SAFETY: an aligned word of a map, which everybody writes by atomic operations.
    let word = unsafe { Shared::new(word) };
    if !cell.claim(&word) {
        return EMPTY;
    }
    let mut number = EMPTY;
    if take_port(ports, opening.port) {
        if let Some(session) = delegate::take_slot(&Lent(lent)) {
            number = write(session, opening, &secret, lent);
        }
        if number == EMPTY {
            give_port_back(ports, opening.port);
        }
    }
    if number == EMPTY {
        cell.give_up(&word);
    }
    number
}

/// A port that is free: the host's own if it is, else a random one of the same parity (RFC 4787 REQ-4). 0 if none was
/// found.
#[inline(always)]
fn choose(ports: *mut TakenPorts, wanted: u16, grant: &Grant) -> u32 {
    let (first, last) = (u32::from(grant.first_port), u32::from(grant.last_port));
    let mut port = u32::from(wanted);
    // Well-known ports stay such, and others never become that (RFC 4787 REQ-3a): the daemon's.
    if wanted < 1024 || first < 1024 || last < first || is_resting(ports, port) {
        return 0;
    }
    for _ in 0..=TRIES {
        if port >= first && port <= last && !is_taken(ports, port) {
            return port;
        }
        // SAFETY: the helper has no preconditions.
        let random = unsafe { bpf_get_prandom_u32() };
        let span = u64::from(last - first + 1);
        port = (first + ((u64::from(random) * span) >> 32) as u32) & !1 | u32::from(wanted) & 1;
    }
    0
}

/// The word of a port, or of whether it rests, and its bit there.
#[inline(always)]
fn bit_of(ports: *mut TakenPorts, port: u32, behind: usize) -> (Shared, u64) {
    // The compiler knows that a port has 16 bits and leaves the mask out, the verifier does not: read like this, neither.
    // SAFETY: a live variable.
    let port = unsafe { (&raw const port).read_volatile() };
    // SAFETY: one of the table's 1,024 words of either kind, aligned, which everybody writes by atomic operations.
    let word = unsafe { Shared::new(ports.cast::<u64>().add((port >> 6 & 1023) as usize + behind)) };
    (word, 1 << (port & 63))
}

#[inline(always)]
fn is_resting(ports: *mut TakenPorts, port: u32) -> bool {
    let (word, bit) = bit_of(ports, port, RESTING);
    word.load() & bit != 0
}

#[inline(always)]
fn is_taken(ports: *mut TakenPorts, port: u32) -> bool {
    let (word, bit) = bit_of(ports, port, 0);
    word.load() & bit != 0
}

#[inline(always)]
fn take_port(ports: *mut TakenPorts, port: u32) -> bool {
    let (word, bit) = bit_of(ports, port, 0);
    delegate::take_port(&word, bit)
}

#[inline(always)]
fn give_port_back(ports: *mut TakenPorts, port: u32) {
    let (word, bit) = bit_of(ports, port, 0);
    word.keep(!bit);
}

/// Writes the session's lines, enters them into the index, the reply first, and reports them. Where one of them finds no
/// place at once the daemon finds it one: until then its packets go up.
#[inline(always)]
fn write(session: u32, opening: &Opening<'_>, secret: &Secret, lent: *mut LentSlots) -> u32 {
    let Opening { key, rewrite, reply, rule, grant, .. } = opening;
    let numbers = Direction::BOTH.map(|direction| table::line_of(session, direction));
    let Some(lines) = maps::lines(numbers[0]) else { return EMPTY };
    let back = Rewrite {
        source: key.destination,
        destination: key.source,
        source_port: key.destination_port,
        destination_port: key.source_port,
    };
    let values = [
        FlowValue::translate(key, rewrite, grant.next_hops[0]),
        FlowValue::translate(reply, &back, grant.next_hops[1]),
    ];
    // SAFETY: a session has two lines, and this one's are nobody's else before they are in the index.
    unsafe {
        fill(lines, key, values[0], SNAT);
        fill(lines.add(1), reply, values[1], *rule as u16);
    }
    let in_force = maps::in_force();
    let back = enter(reply.words(), numbers[1], secret, in_force);
    let entered = [enter(key.words(), numbers[0], secret, in_force), back];
    crate::lent::report(Report { session, epoch: grant.epoch as u16, entered, in_force }, lent);
    numbers[0]
}

/// Writes a line of which no packet has come yet.
///
/// # Safety
///
/// The line must be live, and nobody else's.
#[inline(always)]
unsafe fn fill(line: *mut FlowLine, key: &FlowKey, value: FlowValue, origin: u16) {
    // SAFETY: the caller's; the fields lie behind each other. Volatile: a run of zeroes would be filled byte by byte.
    unsafe {
        (&raw mut (*line).key).write(*key);
        (&raw mut (*line).value).write(value);
        (&raw mut (*line).origin).write(origin);
        (&raw mut (*line).seen).write_volatile(0);
        (&raw mut (*line).pad).write_volatile(0);
        (&raw mut (*line).packets).write_volatile(0);
        (&raw mut (*line).bytes).write_volatile(0);
        (&raw mut (*line).last_seen).write_volatile(0);
        (&raw mut (*line).acknowledged).write_volatile(0);
    }
}
