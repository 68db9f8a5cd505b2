//! A plain first packet from inside, of a host that the daemon knows: its session is opened here. See
//! [`nat_common::delegate`].

use core::ffi::c_void;

use aya_ebpf::{
    helpers::generated::{bpf_get_prandom_u32, bpf_get_smp_processor_id, bpf_jiffies64, bpf_loop},
    programs::XdpContext,
};
use nat_common::{
    Direction, FlowKey, FlowValue, Parsed, Realm,
    abi::{Interface, Settings, WakeEvent},
    activity::TICK_SHIFT,
    delegate::{
        self, Cell, Grant, KNOWN, KNOWN_FOR, KnownRule, KnownWay, LENT, LentSlots, REFUSALS_TOLD, RULES,
        Report, Reports, Ring, TakenPorts, Word as _,
    },
    flow::Rewrite,
    parse::Kind,
    table::{self, EMPTY, FlowLine, REMOVED, SEARCHED, Secret},
    tcp, wire,
};

use crate::{
    atomic::{self, Shared},
    fib::{self, Answer, Question},
    maps,
    miss::NO_RULE,
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

/// Asks memory for the cell of a packet's inside endpoint, long before it is needed: it comes while rules are looked up.
#[inline(always)]
pub fn expect(parsed: &Parsed) {
    let key = &parsed.key;
    let cell = Cell::of(key.protocol, key.source, key.source_port, &maps::secret());
    if let Some(word) = maps::cell(cell.word) {
        touch(word);
    }
}

/// Reads a word of which nothing is wanted but that it is near by when it is needed.
#[inline(always)]
fn touch(word: *mut u64) {
    // SAFETY: a live word of a map; volatile, so that it is read at all.
    let _ = unsafe { word.read_volatile() };
}

/// Asks memory for the place where a search for a key begins.
#[inline(always)]
fn touch_place(words: [u64; 2]) {
    let hash = table::hash(words, &maps::secret());
    if let Some((word, _)) = maps::place(table::place(hash, maps::level(), 0)) {
        touch(word);
    }
}

/// The rule that a packet is translated by, if its CPU has found that a moment ago; else [`NO_RULE`].
#[inline(always)]
pub fn known_rule(settings: &Settings, parsed: &Parsed) -> u32 {
    let Some(known) = place_of_rule(&parsed.key) else { return NO_RULE };
    // SAFETY: one of the rules of a map's value, which nothing but this CPU looks at; the helper has no preconditions.
    let (known, tick) = unsafe { (&*known, bpf_jiffies64() >> TICK_SHIFT) };
    let key = &parsed.key;
    if known.source == key.source
        && known.destination == key.destination
        && known.generation == settings.generation
        && known.epoch == settings.epoch
        && known.protocol == u16::from(key.protocol)
        && (tick as u32).wrapping_sub(known.tick) < KnownRule::HOLDS_FOR
    {
        return u32::from(known.rule);
    }
    NO_RULE
}

/// Remembers it.
#[inline(always)]
pub fn remember_rule(settings: &Settings, parsed: &Parsed, rule: u32) {
    let FlowKey { source, destination, protocol, .. } = parsed.key;
    if !matches!(protocol, wire::TCP | wire::UDP) {
        return;
    }
    let Some(known) = place_of_rule(&parsed.key) else { return };
    let Settings { generation, epoch, .. } = *settings;
    let (rule, protocol) = (rule as u16, u16::from(protocol));
    // SAFETY: as above.
    unsafe {
        let tick = (bpf_jiffies64() >> TICK_SHIFT) as u32;
        *known = KnownRule { source, destination, generation, epoch, tick, rule, protocol };
    }
}

/// Where a CPU remembers the rule of a packet's addresses.
#[inline(always)]
fn place_of_rule(key: &FlowKey) -> Option<*mut KnownRule> {
    // SAFETY: the helper has no preconditions.
    let lent = maps::lent(unsafe { bpf_get_smp_processor_id() })?;
    let place = KnownRule::place(key.source, key.destination);
    // The compiler knows the bound and would leave it out, the verifier would not know.
    // SAFETY: a live variable; and one of the rules of a live value.
    unsafe {
        let place = (&raw const place).read_volatile() & (RULES - 1);
        Some((&raw mut (*lent).rules).cast::<KnownRule>().add(place as usize))
    }
}

/// Opens a session for a packet that this rule translates. The number of its line, or [`EMPTY`]: then the packet is the
/// daemon's, and nothing is claimed; or [`REFUSED`].
#[inline(always)]
pub fn open(ctx: &XdpContext, interface: &Interface, settings: &Settings, parsed: &Parsed, rule: u32) -> u32 {
    let key = &parsed.key;
    let opens = match key.protocol {
        wire::TCP => tcp::opens(parsed.tcp_flags),
        wire::UDP => true,
        _ => false,
    };
    if !opens || parsed.kind as u8 != Kind::Ported as u8 || parsed.ttl <= 1 {
        return EMPTY;
    }
    let Some(grant) = maps::grant(key.source, rule) else { return EMPTY };
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
    // Its place is asked of memory while the gateway's sockets are.
    touch_place(opening.reply.words());
    if grant.flags & Grant::ABSENT == 0 && sockets::taker(ctx, &opening.reply) != Taker::Nobody {
        return EMPTY;
    }
    if !delegate::has_room(&Lent(lent)) {
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
    // SAFETY: the helper has no preconditions; nothing but this CPU writes these words.
    unsafe {
        let tick = bpf_jiffies64() >> TICK_SHIFT;
        let before = if (*lent).refused_in == tick { (*lent).refused } else { 0 };
        (*lent).refused_in = tick;
        (*lent).refused = before + 1;
        before >= REFUSALS_TOLD
    }
}

/// Reports a session, and wakes the daemon if it sleeps: whoever finds it asleep does, and nobody after that.
#[inline(always)]
fn report(report: Report, lent: *mut LentSlots) {
    delegate::report(&Lent(lent), report.packed());
    let Some(sleep) = maps::SLEEP.get_ptr_mut(0) else { return };
    // SAFETY: an aligned word of a map, which everybody writes by atomic operations.
    if unsafe { atomic::load(sleep) != 0 && atomic::swap(sleep, 0) != 0 } {
        // Full: then the daemon has other reasons to be awake.
        let _ = maps::EVENTS.output(&WakeEvent { pad: 0 }, 0);
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

/// What this CPU has been lent.
struct Lent(*mut LentSlots);

impl Ring for Lent {
    const PLACES: u32 = LENT;

    #[inline(always)]
    fn swap(&self, place: u32, value: u64) -> u64 {
        // SAFETY: one of the ring's places, an aligned word of a map, which everybody writes by atomic operations.
        unsafe { atomic::swap((&raw mut (*self.0).slots).cast::<u64>().add(place as usize), value) }
    }

    #[inline(always)]
    fn taken(&self) -> u64 {
        // SAFETY: a live word of a map, which nothing but this CPU writes.
        unsafe { (*self.0).taken }
    }

    #[inline(always)]
    fn set_taken(&self, taken: u64) {
        // SAFETY: as above.
        unsafe { (*self.0).taken = taken }
    }
}

impl Reports for Lent {
    const PLACES: u32 = LENT;

    #[inline(always)]
    fn reported(&self) -> u64 {
        // SAFETY: a live word of a map, which nothing but this CPU writes.
        unsafe { (*self.0).reported }
    }

    #[inline(always)]
    fn set_reported(&self, reported: u64) {
        // SAFETY: as above. A swap, after which all that was written before it is to be seen, and before what is read
        // next.
        let _ = unsafe { atomic::swap(&raw mut (*self.0).reported, reported) };
    }

    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: a live word of a map, which the daemon writes as a whole.
        unsafe { atomic::load(&raw const (*self.0).read) }
    }

    /// The daemon's.
    #[inline(always)]
    fn set_read(&self, _read: u64) {}

    #[inline(always)]
    fn report(&self, place: u32) -> u64 {
        // SAFETY: one of the ring's places.
        unsafe { (&raw const (*self.0).reports).cast::<u64>().add(place as usize).read() }
    }

    #[inline(always)]
    fn set_report(&self, place: u32, report: u64) {
        // SAFETY: as above, which the daemon does not read before it is counted.
        unsafe { (&raw mut (*self.0).reports).cast::<u64>().add(place as usize).write(report) };
    }
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
    let level = maps::level();
    let reply_at_home = enter(reply.words(), numbers[1], secret, level);
    let at_home = [enter(key.words(), numbers[0], secret, level), reply_at_home];
    report(Report { session, epoch: grant.epoch as u16, level, at_home }, lent);
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

/// A place being looked for; the loop's context.
struct Place {
    hash: u64,
    level: u32,
    step: u32,
    entry: u32,
}

/// Enters a line into a level of the index, at the first place where none ever was. Whether that is where searches for it
/// begin: so it is more often than not.
#[inline(always)]
fn enter(words: [u64; 2], number: u32, secret: &Secret, level: u32) -> bool {
    let hash = table::hash(words, secret);
    let mut place = Place { hash, level, step: 0, entry: table::entry(hash, number) };
    let Some((pair, shift)) = maps::place(table::place(hash, level, 0)) else { return false };
    // SAFETY: an aligned word of a map, whose halves everybody writes as a whole.
    let before = unsafe { atomic::load(pair) };
    if (before >> shift) as u32 == EMPTY
        // SAFETY: as above. Where its neighbour has changed meanwhile the place is tried again below.
        && unsafe { atomic::exchange(pair, before, before | u64::from(place.entry) << shift) }
    {
        return true;
    }
    let context = (&raw mut place).cast::<c_void>();
    // SAFETY: the context lives as long as the loop, whose body takes it for what it is.
    unsafe { bpf_loop(SEARCHED, try_place as *mut c_void, context, 0) };
    false
}

/// The body of the loop: 1 ends it.
extern "C" fn try_place(_round: u32, context: *mut c_void) -> i64 {
    // SAFETY: `enter` gives its context and nothing else calls this.
    let place = unsafe { &mut *context.cast::<Place>() };
    let Some((pair, shift)) = maps::place(table::place(place.hash, place.level, place.step)) else {
        return 1;
    };
    // SAFETY: an aligned word of a map, whose halves everybody writes as a whole.
    let before = unsafe { atomic::load(pair) };
    // Not where one was removed: the daemon moves others there.
    if (before >> shift) as u32 != EMPTY {
        place.step += 1;
        return 0;
    }
    // SAFETY: as above. Where its neighbour has changed meanwhile the place is tried again.
    i64::from(unsafe { atomic::exchange(pair, before, before | u64::from(place.entry) << shift) })
}
