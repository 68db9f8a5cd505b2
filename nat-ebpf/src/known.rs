//! What a CPU's program remembers of first packets, and what of memory it asks for before it needs it: a new flow's
//! packet touches half a dozen lines that nothing has touched for long, and reading them one after the other is most of
//! what it costs.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_jiffies64};
use nat_common::{
    FlowKey, Parsed, Realm,
    abi::Settings,
    activity::TICK_SHIFT,
    delegate::{Cell, Grant, KnownRule, LENT, RULES, Ring as _},
    table, wire,
};

use crate::{lent::Lent, maps};

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
pub fn touch_place(words: [u64; 2]) {
    let hash = table::hash(words, &maps::secret());
    if let Some((word, _)) = maps::place(table::place(hash, maps::level(), 0)) {
        touch(word);
    }
}

/// Whether a CPU has found a moment ago by which rule a packet is translated, and what its host is granted.
#[inline(always)]
pub fn is_known(settings: &Settings, parsed: &Parsed) -> bool {
    let Some(known) = place_of_rule(&parsed.key) else { return false };
    // SAFETY: one of the rules of a map's value, which nothing but this CPU looks at; the helper has no preconditions.
    let (known, tick) = unsafe { (&*known, bpf_jiffies64() >> TICK_SHIFT) };
    let key = &parsed.key;
    let is_known = known.source == key.source
        && known.destination == key.destination
        && known.generation == settings.generation
        && known.grant.epoch == settings.epoch
        && known.protocol == u16::from(key.protocol)
        && (tick as u32).wrapping_sub(known.tick) < KnownRule::HOLDS_FOR;
    if is_known && !is_full(known, key.protocol) {
        // The answer's place is asked of memory already: most keep their port.
        let sent = FlowKey { source: known.grant.external, ..*key };
        touch_place(sent.reversed(Realm::Outside).words());
        touch_next_lines();
    }
    is_known
}

/// Whether there is no port to be had: then nothing will be entered.
#[inline(always)]
fn is_full(known: &KnownRule, protocol: u8) -> bool {
    let table = known.grant.tables[usize::from(protocol == wire::UDP)];
    // SAFETY: a live word of a map, which the daemon alone writes.
    maps::ports(table).is_some_and(|ports| unsafe { (&raw const (*ports).full).read_volatile() } != 0)
}

/// Asks memory for the lines of the session that this CPU opens next.
#[inline(always)]
fn touch_next_lines() {
    // SAFETY: the helper has no preconditions.
    let Some(lent) = maps::lent(unsafe { bpf_get_smp_processor_id() }) else { return };
    let lent = Lent(lent);
    let place = lent.taken() as u32 & (LENT - 1);
    // SAFETY: one of the ring's places.
    let slot = unsafe { (&raw const (*lent.0).slots).cast::<u64>().add(place as usize).read_volatile() };
    if let Some(lines) = maps::lines((slot as u32) << 1) {
        touch(lines.cast());
        // SAFETY: a session has two lines.
        touch(unsafe { lines.add(1) }.cast());
    }
}

/// Remembers the rule that a packet is translated by, and what its host is granted under it. Whether it could.
#[inline(always)]
pub fn remember(settings: &Settings, parsed: &Parsed, rule: u32) -> bool {
    let Some(known) = place_of_rule(&parsed.key) else { return false };
    let FlowKey { source, destination, protocol, .. } = parsed.key;
    // Another epoch's: nothing that holds.
    let none = Grant { epoch: !settings.epoch, ..Grant::default() };
    let grant = maps::grant(source, rule).copied().unwrap_or(none);
    // SAFETY: as above.
    unsafe {
        *known = KnownRule {
            source,
            destination,
            generation: settings.generation,
            tick: (bpf_jiffies64() >> TICK_SHIFT) as u32,
            rule: rule as u16,
            protocol: protocol.into(),
            grant,
            pad: [0; 2],
        };
    }
    true
}

/// Where a CPU remembers the rule of a packet's addresses.
#[inline(always)]
pub fn place_of_rule(key: &FlowKey) -> Option<*mut KnownRule> {
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
