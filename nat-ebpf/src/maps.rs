//! Every map: key → value, who writes, who reads, what happens when it is full.

use core::ffi::c_void;

use aya_ebpf::{
    Global,
    btf_maps::{self, ArrayOfMaps},
    helpers::generated::bpf_loop,
    macros::{btf_map, map},
    maps::{Array, DevMap, HashMap, LpmTrie, PerCpuArray, RingBuf, XskMap, lpm_trie::Key},
};
use nat_common::{
    FlowKey, FlowValue,
    abi::{
        FORWARD_PREFIXES, ForwardKey, INTERFACE_SLOTS, INTERFACES, Interface, LOCAL_ADDRESSES, LocalAddress,
        NARROW_PREFIXES, NEXT_HOPS, QUEUES, SELECTOR_PREFIXES, STATICS, SelectorKey, Settings, StaticKey,
        StaticValue, VlanKey,
    },
    classify::RuleSet,
    delegate::{CELL_WORDS, CPUS, GRANTS, Grant, GrantKey, LentSlots, PORT_TABLES, TakenPorts},
    held::{self, HeldPorts},
    next_hop::NextHop,
    reason::REASONS,
    search::{Index, Search},
    shed,
    table::{self, BUCKET, Bucket, EMPTY, FlowLine, INDEX_SEGMENTS, PLACES, SEGMENT, SEGMENTS, Secret},
    vlan::Tags,
};

/// `BPF_F_NO_PREALLOC`: memory follows the sessions there are, not those there may be.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: the daemon reads and writes it as memory.
const MMAPABLE: u32 = 1 << 10;

/// A segment of the index.
type Places = btf_maps::Array<Bucket, { (PLACES / BUCKET) as usize }, { MMAPABLE as usize }>;

/// Hash of a packet as it arrives → number of its line, see [`table`]. Written by the daemon as memory; segments are
/// added as it grows. A live flow is never evicted, a full table refuses the new one.
#[btf_map]
static INDEX: ArrayOfMaps<Places, { INDEX_SEGMENTS as usize }> = ArrayOfMaps::new();

/// One entry: the level of the index that is in force, and how many entries were moved. Written by the daemon as memory.
#[map]
static LEVEL: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// A segment of lines: key and verdict written by the daemon, what packets did by the program, both as memory.
///
/// An array of lines rather than the struct of them: before 6.2 the kernel tells maps whose value's type it knows to be
/// a struct from others (`bpf_map_meta_equal`), and those that the daemon adds say nothing about types.
type Segment = btf_maps::Array<[FlowLine; 2], { SEGMENT as usize }, { MMAPABLE as usize }>;

/// Number of a line → the line. Segments are added by the daemon as sessions come. A segment that is set anew, to
/// itself, is how the daemon waits until no program holds a line that it has let go of.
#[btf_map]
static LINES: ArrayOfMaps<Segment, { SEGMENTS as usize }> = ArrayOfMaps::new();

/// The secret of the index's hash; set at load time.
#[unsafe(no_mangle)]
static SECRET: Global<[u32; 4]> = Global::new([0; 4]);

/// Next-hop index → neighbour. Written by the daemon, as memory, on every change.
#[map]
static HOPS: Array<NextHop> = Array::with_max_entries(NEXT_HOPS, 0);

/// `ifindex % INTERFACE_SLOTS` → interface. Written by the daemon when interfaces change.
#[map]
static INTERFACE: Array<Interface> = Array::with_max_entries(INTERFACE_SLOTS, 0);

/// Device and tags → index of the VLAN's interface. Written by the daemon; looked at for frames with a tag alone.
#[map]
static VLANS: HashMap<VlanKey, u32> = HashMap::with_max_entries(INTERFACES, NO_PREALLOC);

/// One entry a CPU: the tags that the frame in hand came with.
#[map]
static TAGS: PerCpuArray<Tags> = PerCpuArray::with_max_entries(1, 0);

/// One entry a CPU, see [`keep`].
#[map]
static PARSED: PerCpuArray<[u64; 3]> = PerCpuArray::with_max_entries(1, 0);

/// Port of an interface → device to redirect to.
#[map]
pub static DEVICES: DevMap = DevMap::with_max_entries(INTERFACES, 0);

/// Interface's first slot + queue → `AF_XDP` socket. Emptied by the kernel when the daemon dies.
#[map]
pub static SOCKETS: XskMap = XskMap::with_max_entries(INTERFACES * QUEUES, 0);

/// Addresses of the gateway and of its pools → what may live on them.
#[map]
static LOCALS: HashMap<u32, LocalAddress> = HashMap::with_max_entries(LOCAL_ADDRESSES, NO_PREALLOC);

/// One entry: which rule set is in force, and its sets.
#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Source prefix → rules whose source selector holds there.
#[map]
static SOURCES: LpmTrie<SelectorKey, RuleSet> = LpmTrie::with_max_entries(SELECTOR_PREFIXES, 0);

/// Destination prefix → rules whose destination selector holds there.
#[map]
static DESTINATIONS: LpmTrie<SelectorKey, RuleSet> = LpmTrie::with_max_entries(SELECTOR_PREFIXES, 0);

/// One-to-one prefixes, keyed from both sides.
#[map]
static ONE_TO_ONE: LpmTrie<StaticKey, StaticValue> = LpmTrie::with_max_entries(STATICS, 0);

/// Prefixes of routes that set an MTU → the smallest that any route to an address there may set. Written by the daemon
/// when routes change. Too many: one entry for all addresses.
#[map]
static NARROW: LpmTrie<u32, u32> = LpmTrie::with_max_entries(NARROW_PREFIXES, 0);

/// External endpoints of forwards, port ranges as prefixes. The value says nothing.
#[map]
static FORWARDS: LpmTrie<ForwardKey, u32> = LpmTrie::with_max_entries(FORWARD_PREFIXES, 0);

/// Reason → packets, per CPU: no shared cache line.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);

/// TCP sessions whose timer changed, and that the daemon is to wake. Full: the loss of the former is counted, and the
/// daemon looks at all.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// Inside host and rule → what its sessions may be opened with. Written by the daemon. Full: a host's first packets go up.
#[map]
static GRANTED: HashMap<GrantKey, Grant> = HashMap::with_max_entries(GRANTS, NO_PREALLOC);

/// CPU → slots lent to it, and what it opened in them. Either writes what the other reads, both as memory. No slot, or no
/// place for a report: first packets go up.
#[map]
static SLOTS: Array<LentSlots> = Array::with_max_entries(CPUS, MMAPABLE);

/// Number of a table → ports taken of one external address and protocol. Written by both, as memory, by atomic
/// operations.
#[map]
static PORTS: Array<TakenPorts> = Array::with_max_entries(PORT_TABLES, MMAPABLE);

/// Of TCP, of UDP → ports that sockets of the gateway may hold. Written by both, as memory, by atomic operations.
#[map]
static HELD: Array<HeldPorts> = Array::with_max_entries(held::TABLES, MMAPABLE);

/// Place of an inside host → until when its first packets are refused, see [`shed`]. Written by the daemon, as memory.
#[map]
static SHED: Array<u64> = Array::with_max_entries(shed::HOSTS, MMAPABLE);

/// One entry: 1 while the daemon sleeps and no report has woken it. Written by both, as memory, by atomic operations.
#[map]
pub static SLEEP: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// Cells of inside endpoints, 32 in a word: which have a mapping. Written by both, as memory, by atomic operations.
#[map]
static CELLS: Array<u64> = Array::with_max_entries(CELL_WORDS, MMAPABLE);

/// One entry: jiffies when the daemon last asked. Read by the daemon as memory.
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU: 1 while a frame is on its way from `natgw_inject` into the stack.
#[map]
pub static INJECTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// A flow: the line of its direction, and that of the other.
///
/// The daemon gives a line to another session only after every program that may hold it has ended, so both stay
/// what they are while this one runs.
pub struct Flow {
    /// Number of its line.
    pub number: u32,
    /// Its line.
    pub line: *mut FlowLine,
    /// The other direction's.
    pub other: *mut FlowLine,
}

impl Flow {
    /// What to do with its packets.
    #[inline(always)]
    pub fn value(&self) -> &FlowValue {
        // SAFETY: see above; the daemon changes no more than single fields of a verdict in force.
        unsafe { &(*self.line).value }
    }
}

/// The flow of a packet.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<Flow> {
    match search(key.words()) {
        EMPTY => None,
        number => flow_of(number),
    }
}

/// Both lines of a session, one of which has this number.
#[inline(always)]
pub fn lines(number: u32) -> Option<*mut FlowLine> {
    let (segment, at) = table::segment_of(number);
    Some(LINES.get_value_ptr_mut(segment, &at)?.cast::<FlowLine>())
}

/// The flow whose line has this number.
#[inline(always)]
pub fn flow_of(number: u32) -> Option<Flow> {
    let lines = lines(number)?;
    let direction = (number & 1) as usize;
    // SAFETY: a session has two lines.
    Some(unsafe { Flow { number, line: lines.add(direction), other: lines.add(direction ^ 1) } })
}

/// Places looked at before the search becomes a loop: nine keys of ten are found by then at half load.
const UNROLLED: u32 = 3;

/// The index and the lines behind it, as a search reads them.
struct Table;

impl Index for Table {
    #[inline(always)]
    fn in_force(&self) -> u64 {
        in_force()
    }

    #[inline(always)]
    fn entry(&self, place: u32) -> u32 {
        let (segment, at) = table::segment_of_place(place);
        let Some(bucket) = INDEX.get_value(segment, &(at / BUCKET)) else { return EMPTY };
        bucket[(at % BUCKET) as usize]
    }

    #[inline(always)]
    fn has_key(&self, line: u32, words: [u64; 2]) -> bool {
        let (segment, at) = table::segment_of(line);
        let Some(lines) = LINES.get_value_ptr_mut(segment, &at) else { return false };
        // SAFETY: a session has two lines; a key is two words at the beginning of its line.
        let [first, second] =
            unsafe { *lines.cast::<FlowLine>().add((line & 1) as usize).cast::<[u64; 2]>() };
        first == words[0] && second == words[1]
    }
}

/// The number of the line that has this key, or [`EMPTY`].
///
/// Only a number leaves the search: pointers found in different rounds would have the verifier walk all that follows
/// once for each. For the same reason all but the first rounds are `bpf_loop`'s (kernel 5.17), whose body is walked
/// once.
#[inline(always)]
pub fn search(words: [u64; 2]) -> u32 {
    let mut search = Search::new(words, &secret(), &Table);
    let ended = (0..UNROLLED).any(|_| search.look(&Table));
    if search.number != EMPTY {
        return search.number;
    }
    // No round, which is no call, where all has been seen: calls keep what a new flow's packet needs next from being read
    // meanwhile. Without a branch, behind which the verifier would walk everything once more.
    let is_over = u32::from(ended) & u32::from(in_force() == search.in_force);
    let rounds = Search::AT_MOST & is_over.wrapping_sub(1);
    search.ended = u32::from(ended);
    let context = (&raw mut search).cast::<c_void>();
    // SAFETY: the context lives as long as the loop, whose body takes it for what it is.
    unsafe { bpf_loop(rounds, look_further as *mut c_void, context, 0) };
    search.number
}

/// The body of the search's loop: 1 ends it.
extern "C" fn look_further(_round: u32, context: *mut c_void) -> i64 {
    // SAFETY: `search` gives its context and nothing else calls this.
    let search = unsafe { &mut *context.cast::<Search>() };
    i64::from(search.look_further(&Table))
}

/// The secret of the index's hash, and of the cells'.
#[inline(always)]
pub fn secret() -> Secret {
    Secret(SECRET.load())
}

/// The level of the index that is in force.
#[inline(always)]
pub fn level() -> u32 {
    table::level_of(in_force())
}

/// The same, and how many entries have been moved so far: see [`table::in_force`].
#[inline(always)]
pub fn in_force() -> u64 {
    // SAFETY: an aligned word of a map, which the daemon writes as a whole. Volatile: it may be another a moment later.
    LEVEL.get_ptr(0).map_or(0, |word| unsafe { word.read_volatile() })
}

/// The word of the index that a place and its neighbour are in, and how far the place is shifted there.
#[inline(always)]
pub fn place(place: u32) -> Option<(*mut u64, u32)> {
    let (segment, at) = table::segment_of_place(place);
    let bucket = INDEX.get_value_ptr_mut(segment, &(at / BUCKET))?;
    #[expect(clippy::cast_ptr_alignment, reason = "a map's values are aligned to eight bytes")]
    let bucket = bucket.cast::<u64>();
    let half = if cfg!(target_endian = "little") { at & 1 } else { at & 1 ^ 1 };
    // SAFETY: within its bucket.
    Some((unsafe { bucket.add((at % BUCKET / 2) as usize) }, half * 32))
}

/// What an inside host's sessions may be opened with under a rule.
#[inline(always)]
pub fn grant(address: u32, rule: u32) -> Option<&'static Grant> {
    // SAFETY: as for `flow`; an entry that is taken out meanwhile was good when it was found.
    unsafe { GRANTED.get(&GrantKey { address, rule }) }
}

/// The ports taken in a table; table 0 is none.
#[inline(always)]
pub fn ports(table: u16) -> Option<*mut TakenPorts> {
    if table == 0 { None } else { PORTS.get_ptr_mut(u32::from(table)) }
}

/// Ports of a protocol that sockets of the gateway may hold.
#[inline(always)]
pub fn held(protocol: u8) -> Option<*mut HeldPorts> {
    HELD.get_ptr_mut(held::table(protocol))
}

/// The slots lent to a CPU.
#[inline(always)]
pub fn lent(cpu: u32) -> Option<*mut LentSlots> {
    SLOTS.get_ptr_mut(cpu)
}

/// A word of cells.
#[inline(always)]
pub fn cell(word: u32) -> Option<*mut u64> {
    CELLS.get_ptr_mut(word)
}

/// Whether an inside host's first packets are refused in this tick.
#[inline(always)]
pub fn is_shed(host: u32, tick: u32) -> bool {
    // SAFETY: an aligned word of a map, which the daemon writes as a whole.
    SHED.get_ptr(shed::place(host))
        .is_some_and(|word| shed::is_refused(unsafe { word.read_volatile() }, host, tick))
}

/// A next hop.
#[inline(always)]
pub fn next_hop(index: u32) -> Option<&'static NextHop> {
    HOPS.get(index)
}

/// The interface with this index, if natgw serves it.
#[inline(always)]
pub fn interface(ifindex: u32) -> Option<&'static Interface> {
    INTERFACE.get(ifindex % INTERFACE_SLOTS).filter(|interface| interface.ifindex == ifindex)
}

/// The interface of a VLAN.
#[inline(always)]
pub fn vlan(device: u32, tags: Tags) -> Option<u32> {
    // SAFETY: as for `flow`.
    unsafe { VLANS.get(&VlanKey { tags: tags.vlan(), device, pad: 0 }) }.copied()
}

/// Keeps some words about the packet in hand. Whether it could.
#[inline(always)]
pub fn keep(words: [u64; 3]) -> bool {
    let Some(place) = PARSED.get_ptr_mut(0) else { return false };
    let place = place.cast::<u64>();
    // SAFETY: three words that are this CPU's own; volatile, lest the compiler sees through it.
    unsafe {
        place.write_volatile(words[0]);
        place.add(1).write_volatile(words[1]);
        place.add(2).write_volatile(words[2]);
    }
    true
}

/// The same words, of which the verifier knows nothing any more.
#[inline(always)]
pub fn kept() -> Option<[u64; 3]> {
    let place = PARSED.get_ptr(0)?.cast::<u64>();
    // SAFETY: as above.
    Some(unsafe { [place.read_volatile(), place.add(1).read_volatile(), place.add(2).read_volatile()] })
}

/// Remembers the tags of the frame in hand.
#[inline(always)]
pub fn remember_tags(tags: Tags) {
    if let Some(remembered) = TAGS.get_ptr_mut(0) {
        // SAFETY: the slot is this CPU's own.
        unsafe { *remembered = tags };
    }
}

/// The tags that the frame in hand came with; only where it came with some.
#[inline(always)]
pub fn remembered_tags() -> Tags {
    // SAFETY: the slot is this CPU's own.
    TAGS.get_ptr(0).map_or(Tags::NONE, |remembered| unsafe { *remembered })
}

/// What natgw knows of an address that is the gateway's or a pool's.
#[inline(always)]
pub fn local(address: u32) -> Option<&'static LocalAddress> {
    // SAFETY: as for `flow`.
    unsafe { LOCALS.get(&address) }
}

/// The settings in force.
#[inline(always)]
pub fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Rules whose source selector holds for an address.
#[inline(always)]
pub fn rules_from(generation: u32, address: u32) -> Option<&'static RuleSet> {
    SOURCES.get(&Key::new(64, SelectorKey { generation, address }))
}

/// Rules whose destination selector holds for an address.
#[inline(always)]
pub fn rules_to(generation: u32, address: u32) -> Option<&'static RuleSet> {
    DESTINATIONS.get(&Key::new(64, SelectorKey { generation, address }))
}

/// The one-to-one rule of an address seen from one side.
#[inline(always)]
pub fn one_to_one(generation: u32, inbound: bool, address: u32) -> Option<&'static StaticValue> {
    ONE_TO_ONE
        .get(&Key::new(64, StaticKey { generation: generation as u16, inbound: u16::from(inbound), address }))
}

/// The smallest MTU that a route to an address may set, if one sets any. Which of them is in force the daemon knows:
/// `bpf_fib_lookup` tells only of MTUs that are locked or learnt.
#[inline(always)]
pub fn narrow(destination: u32) -> Option<u32> {
    NARROW.get(&Key::new(32, destination)).copied()
}

/// Whether a packet is to the external endpoint of a forward.
#[inline(always)]
pub fn is_forwarded(key: &FlowKey) -> bool {
    let endpoint = ForwardKey {
        address: key.destination,
        protocol: u16::from(key.protocol).to_be(),
        port: key.destination_port,
    };
    FORWARDS.get(&Key::new(64, endpoint)).is_some()
}
