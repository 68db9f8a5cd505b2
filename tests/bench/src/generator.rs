//! Both ends of the lanes: frames made in the kernel at the client's, counted at the server's.

use std::{
    ffi::CString,
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, DevMap, Map, MapData, PerCpuArray},
    programs::{ProgramInfo, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
};
use nat_bench_ebpf::{DELIVERED, FIRST_CLIENT, FLOWS_SEEN, IN_TURN, Plan, Probe, Progress, WRONG};

use crate::{
    busy::Helpers,
    topology::{CLIENT_MAC, EXTERNAL, LAN_MAC, Topology, WAN_MAC},
};

/// Generator, sink, and the programs of the gateways that are the bench's own.
pub(crate) struct Generator {
    ebpf: Ebpf,
    plan_map: Array<MapData, PlanValue>,
    progress: Array<MapData, ProgressValue>,
    counts: PerCpuArray<MapData, u64>,
    plan: Plan,
    inspections: u32,
    pub(crate) helpers: Helpers,
}

/// How many frames of a kind the sink has counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) delivered: u64,
    pub(crate) flows_seen: u64,
    pub(crate) wrong: u64,
}

/// What came of some frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) frames: u64,
    pub(crate) delivered: u64,
    /// How long the CPU worked for that.
    pub(crate) busy: Duration,
}

impl Generator {
    /// Loads the programs and puts a sink at the server's end of every lane.
    pub(crate) fn new(topology: &Topology, helpers: Helpers, zero_checksum: bool) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the bench's eBPF programs")?;
        for name in ["generate", "sink", "route", "discard"] {
            program(&mut ebpf, name)?.load().with_context(|| format!("load the program {name}"))?;
        }
        for (slot, lane) in (0..).zip(&topology.lanes) {
            {
                let _entered = topology.server.enter()?;
                attach(&mut ebpf, "sink", lane.name)?;
            }
            let _entered = topology.client.enter()?;
            send_by(&mut ebpf, "OUTS", slot, lane.client_index)?;
        }
        let plan_map = Array::try_from(take(&mut ebpf, "PLAN")?)?;
        let progress = Array::try_from(take(&mut ebpf, "PROGRESS")?)?;
        let counts = PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?)?;
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&LAN_MAC);
        macs[6..].copy_from_slice(&CLIENT_MAC);
        let mut delivered_mac = [0; 8];
        delivered_mac[..6].copy_from_slice(&WAN_MAC);
        let plan = Plan { macs, delivered_mac, zero_checksum: zero_checksum.into(), ..Plan::default() };
        Ok(Self { ebpf, plan_map, progress, counts, plan, inspections: 0, helpers })
    }

    /// Attaches `route` or `discard` to a gateway's interface; call it in the gateway's namespace.
    pub(crate) fn attach(&mut self, name: &str, interface: &str) -> anyhow::Result<()> {
        attach(&mut self.ebpf, name, interface)
    }

    /// Lets `route` send by an interface; call it in the gateway's namespace.
    pub(crate) fn route_by(&mut self, ifindex: u32) -> anyhow::Result<()> {
        send_by(&mut self.ebpf, "LINKS", ifindex, ifindex)
    }

    /// One of the bench's programs, as the kernel knows it.
    pub(crate) fn program(&mut self, name: &str) -> anyhow::Result<ProgramInfo> {
        Ok(program(&mut self.ebpf, name)?.info()?)
    }

    /// Aims at a lane, with a pattern of flows; the numbers of flows start anew.
    pub(crate) fn aim(&mut self, slot: u32, translates: bool, pattern: Pattern) -> anyhow::Result<()> {
        let Pattern { kind, flows, endpoint_bits, stride } = pattern;
        let (source, source_mask) =
            if translates { (EXTERNAL, u32::MAX) } else { (Ipv4Addr::from_bits(FIRST_CLIENT), !0xff) };
        self.plan = Plan {
            pattern: kind,
            out: slot,
            flow_mask: flows - 1,
            endpoint_bits,
            stride,
            source: source.to_bits().to_be(),
            source_mask: source_mask.to_be(),
            inspection: 0,
            ..self.plan
        };
        self.write_plan()?;
        let start = Progress { counter: 0, random: 0x9e37_79b9_7f4a_7c15 };
        self.progress.set(0, &ProgressValue(start), 0).context("start the generator anew")
    }

    /// Sends as fast as it goes, until that has taken some time.
    pub(crate) fn blast(&mut self, time: Duration) -> anyhow::Result<Sample> {
        let before = self.counts()?;
        let helped = self.helpers.time()?;
        let mut sample = Sample::default();
        while sample.busy < time {
            sample.busy += self.send(BLAST)?;
            sample.frames += u64::from(BLAST);
        }
        let after = self.settled(before.all() + sample.frames)?;
        sample.busy += self.helpers.time()?.saturating_sub(helped);
        sample.delivered = after.delivered - before.delivered;
        Ok(sample)
    }

    /// Sends `helping` frames at a time and waits for them to arrive: what suits a gateway that has to think.
    ///
    /// A gateway that lets nothing through is given up.
    pub(crate) fn feed(&mut self, frames: u64, helping: u32) -> anyhow::Result<Sample> {
        let before = self.counts()?;
        let helped = self.helpers.time()?;
        let mut sample = Sample::default();
        let mut arrived = before.all();
        let mut in_vain = 0;
        while sample.frames < frames && in_vain < PATIENCE_HELPINGS {
            sample.busy += self.send(helping)?;
            sample.frames += u64::from(helping);
            let counts = self.settled(arrived + u64::from(helping))?;
            in_vain = if counts.all() == arrived { in_vain + 1 } else { 0 };
            arrived = counts.all();
        }
        sample.busy += self.helpers.time()?.saturating_sub(helped);
        sample.delivered = self.counts()?.delivered - before.delivered;
        Ok(sample)
    }

    /// Opens flows 0 to `flows` - 1 and checks what arrives, until the sink has seen each of them or no more come.
    pub(crate) fn open_flows(&mut self, flows: u32, helping: u32) -> anyhow::Result<Counts> {
        self.inspections += 1;
        let plan = self.plan;
        self.plan = Plan { pattern: IN_TURN, inspection: self.inspections, ..plan };
        self.write_plan()?;
        let before = self.counts()?;
        let mut counts = Counts::default();
        for _ in 0..OPENING_PASSES {
            let sample = self.feed(flows.into(), helping)?;
            counts = self.counts()?.since(before);
            if counts.flows_seen >= flows.into() || sample.delivered == 0 {
                break;
            }
        }
        self.plan = plan;
        self.write_plan()?;
        Ok(counts)
    }

    /// The sink's counters.
    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        let count = |counter: u32| -> anyhow::Result<u64> {
            Ok(self.counts.get(&counter, 0).context("read the sink's counters")?.iter().sum())
        };
        Ok(Counts { delivered: count(DELIVERED)?, flows_seen: count(FLOWS_SEEN)?, wrong: count(WRONG)? })
    }

    /// Waits until the sink has counted `expected` frames, or none for [`PATIENCE`].
    fn settled(&self, expected: u64) -> anyhow::Result<Counts> {
        let mut counts = self.counts()?;
        let mut progress = Instant::now();
        while counts.all() < expected && progress.elapsed() < PATIENCE {
            // The gateway's daemon and the kernel's threads run on this CPU as well.
            std::thread::yield_now();
            let now = self.counts()?;
            if now.all() > counts.all() {
                progress = Instant::now();
            }
            counts = now;
        }
        Ok(counts)
    }

    /// Sends frames and answers the time that took, as the kernel has measured it: without setting the run up and
    /// tearing it down, which takes tens of milliseconds, and without the time other processes had meanwhile.
    fn send(&mut self, frames: u32) -> anyhow::Result<Duration> {
        let frame = [0; size_of::<Probe>()];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::default()
        };
        let result = program(&mut self.ebpf, "generate")?.test_run(options).context("generate frames")?;
        Ok(result.duration * frames)
    }

    fn write_plan(&mut self) -> anyhow::Result<()> {
        self.plan_map.set(0, &PlanValue(self.plan), 0).context("write the generator's plan")
    }
}

impl Counts {
    fn all(self) -> u64 {
        self.delivered + self.wrong
    }

    fn since(self, before: Self) -> Self {
        Self {
            delivered: self.delivered - before.delivered,
            flows_seen: self.flows_seen - before.flows_seen,
            wrong: self.wrong - before.wrong,
        }
    }
}

/// Which flows, in what order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// `IN_TURN`, `RANDOM` or `FRESH`.
    pub(crate) kind: u32,
    /// A power of two.
    pub(crate) flows: u32,
    /// See [`Plan::endpoint_bits`].
    pub(crate) endpoint_bits: u32,
    /// See [`Plan::stride`].
    pub(crate) stride: u32,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct PlanValue(Plan);

#[derive(Clone, Copy)]
#[repr(transparent)]
struct ProgressValue(Progress);

// SAFETY: `repr(C)` integers and byte arrays without padding between or after them.
unsafe impl Pod for PlanValue {}
// SAFETY: as above.
unsafe impl Pod for ProgressValue {}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    let program = ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    Ok(program.try_into()?)
}

fn take(ebpf: &mut Ebpf, name: &str) -> anyhow::Result<Map> {
    ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))
}

/// Attaches a program to an interface of the namespace the thread is in.
fn attach(ebpf: &mut Ebpf, name: &str, interface: &str) -> anyhow::Result<()> {
    program(ebpf, name)?
        .attach(CString::new(interface)?.as_c_str(), XdpMode::Driver)
        .with_context(|| format!("attach {name} to {interface}"))?;
    Ok(())
}

/// Puts an interface of the namespace the thread is in into a map of interfaces.
fn send_by(ebpf: &mut Ebpf, map: &str, slot: u32, ifindex: u32) -> anyhow::Result<()> {
    let links = ebpf.map_mut(map).with_context(|| format!("the object has no map {map}"))?;
    DevMap::try_from(links)?
        .set(slot, ifindex, None, 0)
        .with_context(|| format!("put interface {ifindex} into the map {map}"))
}

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-bench-ebpf"));
/// Frames the kernel makes before it flushes them to the interface: what NAPI takes at a time.
const BATCH: u32 = 64;
/// Frames a system call: enough for its own cost not to count.
const BLAST: u32 = 1 << 17;
/// How long the sink may see nothing until what is missing counts as lost. Others may want the CPU, too.
const PATIENCE: Duration = Duration::from_millis(100);
/// Helpings in a row of which nothing arrives, until the gateway is given up.
const PATIENCE_HELPINGS: u32 = 8;
/// How often flows that did not open are tried again.
const OPENING_PASSES: u32 = 10;
