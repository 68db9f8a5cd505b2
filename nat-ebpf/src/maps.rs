//! Every map: key → value, who writes, who reads, what happens when it is full.

use aya_ebpf::{
    macros::map,
    maps::{Array, DevMap, HashMap, LpmTrie, PerCpuArray, RingBuf, XskMap, lpm_trie::Key},
};
use nat_common::{
    FlowKey, FlowValue,
    abi::{
        FORWARD_PREFIXES, ForwardKey, INTERFACE_SLOTS, INTERFACES, Interface, LOCAL_ADDRESSES, LocalAddress,
        NEXT_HOPS, QUEUES, SELECTOR_PREFIXES, STATICS, SelectorKey, Settings, StaticKey, StaticValue,
    },
    activity::Activity,
    classify::RuleSet,
    next_hop::NextHop,
    reason::REASONS,
};

/// `BPF_F_NO_PREALLOC`: memory follows the sessions there are, not those there may be.
const NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`: the daemon reads and writes it as memory.
const MMAPABLE: u32 = 1 << 10;

/// Packet as it arrives → what to do with it. Written by the daemon; sized at load time to twice
/// the session limit. Never LRU: a live flow is not evicted, a full table refuses the new one.
#[map]
static FLOWS: HashMap<FlowKey, FlowValue> = HashMap::with_max_entries(1 << 21, NO_PREALLOC);

/// Session slot → what its packets did. Written by the program, read by the daemon as memory.
/// Sized at load time to the session limit.
#[map]
static ACTIVITY: Array<Activity> = Array::with_max_entries(1 << 20, MMAPABLE);

/// Next-hop index → neighbour. Written by the daemon, as memory, on every change.
#[map]
static HOPS: Array<NextHop> = Array::with_max_entries(NEXT_HOPS, 0);

/// `ifindex % INTERFACE_SLOTS` → interface. Written by the daemon when interfaces change.
#[map]
static INTERFACE: Array<Interface> = Array::with_max_entries(INTERFACE_SLOTS, 0);

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

/// External endpoints of forwards, port ranges as prefixes. The value says nothing.
#[map]
static FORWARDS: LpmTrie<ForwardKey, u32> = LpmTrie::with_max_entries(FORWARD_PREFIXES, 0);

/// Reason → packets, per CPU: no shared cache line.
#[map]
pub static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(REASONS, 0);

/// TCP sessions whose timer changed. Full: the loss is counted, and the daemon looks at all.
#[map]
pub static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// One entry: jiffies when the daemon last asked. Read by the daemon as memory.
#[map]
pub static CLOCK: Array<u64> = Array::with_max_entries(1, MMAPABLE);

/// One entry a CPU: 1 while a frame is on its way from `natgw_inject` into the stack.
#[map]
pub static INJECTED: PerCpuArray<u32> = PerCpuArray::with_max_entries(1, 0);

/// The flow of a packet.
#[inline(always)]
pub fn flow(key: &FlowKey) -> Option<&'static FlowValue> {
    let words = key.words();
    // SAFETY: the words are the key's bytes. Without preallocation a removed element is freed after
    // an RCU grace period, so the value cannot change into another flow's while this program runs.
    unsafe { FLOWS.get(&*(&raw const words).cast::<FlowKey>()) }
}

/// The line of a session.
#[inline(always)]
pub fn activity(session: u32) -> Option<*mut Activity> {
    ACTIVITY.get_ptr_mut(session)
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
