//! Both ends of the lanes: frames made in the kernel at the client's, counted at the server's.

use std::{ffi::CString, net::Ipv4Addr, time::Duration};

use anyhow::Context as _;
use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{Array, DevMap, Map, MapData, PerCpuArray, PerCpuValues},
    programs::{ProgramInfo, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode},
    util::nr_cpus,
};
use nat_bench_ebpf::{
    DELIVERED, ESTABLISHED, FIRST_CLIENT, FLOWS_SEEN, HOSTILE, IN_TURN, LENGTHS, NEWCOMERS, Plan, Progress,
    SLOTS, WRONG, ZIPF,
};

use crate::{
    busy::Helpers,
    topology::{CLIENT_MAC, EXTERNAL, LAN_MAC, SPARE, Topology, WAN_MAC},
    zipf,
};

/// Generator, sink, and the programs of the gateways that are the bench's own.
pub(crate) struct Generator {
    ebpf: Ebpf,
    plan_map: Array<MapData, PlanValue>,
    progress: PerCpuArray<MapData, ProgressValue>,
    quantiles: Array<MapData, u32>,
    counts: PerCpuArray<MapData, u64>,
    times: PerCpuArray<MapData, u64>,
    pub(super) plan: Plan,
    pub(super) inspections: u32,
    /// The flows that the quantiles are those of.
    ranked: u32,
    /// Frames the kernel makes before it flushes them to the interface.
    pub(crate) batch: u32,
    pub(crate) helpers: Helpers,
}

/// How many frames of a kind have been counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) delivered: u64,
    pub(crate) flows_seen: u64,
    pub(crate) wrong: u64,
    /// In a flood: of established flows.
    pub(crate) established: u64,
    /// In a flood: of hosts that open few flows.
    pub(crate) newcomers: u64,
}

impl Generator {
    /// Loads the programs and puts a sink at both ends of every lane.
    pub(crate) fn new(topology: &Topology, helpers: Helpers, zero_checksum: bool) -> anyhow::Result<Self> {
        let mut ebpf = EbpfLoader::new().load(OBJECT).context("load the bench's eBPF programs")?;
        for name in ["generate", "sink", "returned", "route", "discard"] {
            program(&mut ebpf, name)?.load().with_context(|| format!("load the program {name}"))?;
        }
        for (slot, lane) in (0..).zip(&topology.lanes) {
            {
                let _entered = topology.server.enter()?;
                attach(&mut ebpf, "sink", lane.name)?;
            }
            let _entered = topology.client.enter()?;
            attach(&mut ebpf, "returned", lane.name)?;
            send_by(&mut ebpf, "OUTS", slot, lane.client_index)?;
        }
        {
            // Attached nowhere, each run of it would have the kernel patch its dispatcher twice, and wait for all
            // CPUs: tens of milliseconds.
            let _entered = topology.client.enter()?;
            attach(&mut ebpf, "generate", SPARE)?;
        }
        let plan = Plan {
            macs: pair(LAN_MAC, CLIENT_MAC),
            delivered_mac: padded(WAN_MAC),
            returned_mac: padded(LAN_MAC),
            zero_checksum: zero_checksum.into(),
            ..Plan::default()
        };
        Ok(Self {
            plan_map: Array::try_from(take(&mut ebpf, "PLAN")?)?,
            progress: PerCpuArray::try_from(take(&mut ebpf, "PROGRESS")?)?,
            quantiles: Array::try_from(take(&mut ebpf, "QUANTILE")?)?,
            counts: PerCpuArray::try_from(take(&mut ebpf, "COUNTS")?)?,
            times: PerCpuArray::try_from(take(&mut ebpf, "TIMES")?)?,
            ebpf,
            plan,
            inspections: 0,
            ranked: 0,
            batch: BATCH,
            helpers,
        })
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
        let (source, source_mask) = if translates {
            (Ipv4Addr::from_bits(EXTERNAL.to_bits() & !0xff), !0xff_u32)
        } else {
            (Ipv4Addr::from_bits(FIRST_CLIENT), !0xff)
        };
        self.plan = Plan {
            pattern: pattern.kind,
            out: slot,
            first: pattern.first,
            flow_mask: pattern.flows - 1,
            endpoint_bits: pattern.endpoint_bits,
            stride: pattern.stride,
            // In a flood the address that floods is nobody else's.
            client_mask: if pattern.hostile { HOSTILE >> 1 } else { HOSTILE },
            remote_mask: if pattern.one_remote { 0 } else { u32::MAX },
            hostile: pattern.hostile.into(),
            mixed: pattern.mixed.into(),
            stamped: pattern.stamped.into(),
            reflected: pattern.reflected.into(),
            source: source.to_bits().to_be(),
            source_mask: source_mask.to_be(),
            inspection: 0,
            ..self.plan
        };
        self.write_plan()?;
        if pattern.kind == ZIPF && self.ranked != pattern.flows {
            for (quantile, rank) in (0..).zip(zipf::quantiles(pattern.flows)) {
                self.quantiles.set(quantile, &rank, 0).context("write the quantiles of flows")?;
            }
            self.ranked = pattern.flows;
        }
        let cpus = nr_cpus().map_err(|(path, error)| anyhow::anyhow!("{path}: {error}"))?;
        let start = |cpu: u32| {
            let cpu = u64::from(cpu);
            // In turn, two CPUs are far from each other.
            let counter = if pattern.kind == IN_TURN { cpu % 2 * u64::from(pattern.flows / 2) } else { 0 };
            let random = 0x9e37_79b9_7f4a_7c15 ^ (cpu << 20);
            ProgressValue(Progress { counter, random, ..Progress::default() })
        };
        let values = PerCpuValues::try_from((0..cpus.get()).map(start).collect::<Vec<_>>())?;
        self.progress.set(0, values, 0).context("start the generator anew")
    }

    /// Frames of a flood: those of established flows, and those of newcomers.
    pub(crate) fn flood_frames(&self) -> anyhow::Result<(u64, u64)> {
        let progress = self.progress.get(&0, 0).context("read where the generator is")?;
        let sum = |count: fn(&Progress) -> u64| progress.iter().map(|value| count(&value.0)).sum();
        Ok((sum(|progress| progress.established), sum(|progress| progress.newcomers)))
    }

    /// The counters of all CPUs.
    pub(crate) fn counts(&self) -> anyhow::Result<Counts> {
        let count = |counter: u32| -> anyhow::Result<u64> {
            Ok(self.counts.get(&counter, 0).context("read the sink's counters")?.iter().sum())
        };
        Ok(Counts {
            delivered: count(DELIVERED)?,
            flows_seen: count(FLOWS_SEEN)?,
            wrong: count(WRONG)?,
            established: count(ESTABLISHED)?,
            newcomers: count(NEWCOMERS)?,
        })
    }

    /// How often each slot of times was met.
    pub(crate) fn times(&self) -> anyhow::Result<Vec<u64>> {
        let slot = |slot| Ok(self.times.get(&slot, 0).context("read the sink's times")?.iter().sum());
        (0..SLOTS).map(slot).collect()
    }

    /// Sends frames and answers the time that took, as the kernel has measured it: without setting the run up and
    /// tearing it down, and without the time other processes had meanwhile.
    ///
    /// May be called on several CPUs at a time.
    pub(crate) fn send(&self, frames: u32) -> anyhow::Result<Duration> {
        let length = if self.plan.mixed == 0 { LENGTHS[0] } else { LENGTHS[2] };
        let frame = vec![0; length.into()];
        let options = TestRunOptions {
            data_in: Some(&frame),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(self.batch),
            ..TestRunOptions::default()
        };
        let program = self.ebpf.program("generate").context("the object has no program generate")?;
        let program: &Xdp = program.try_into()?;
        let result = program.test_run(options).context("generate frames")?;
        Ok(result.duration * frames)
    }

    pub(super) fn write_plan(&mut self) -> anyhow::Result<()> {
        self.plan_map.set(0, &PlanValue(self.plan), 0).context("write the generator's plan")
    }
}

impl Counts {
    /// Frames that have come to the end of their way.
    pub(crate) fn all(self) -> u64 {
        self.delivered + self.wrong
    }

    pub(crate) fn since(self, before: Self) -> Self {
        Self {
            delivered: self.delivered - before.delivered,
            flows_seen: self.flows_seen - before.flows_seen,
            wrong: self.wrong - before.wrong,
            established: self.established - before.established,
            newcomers: self.newcomers - before.newcomers,
        }
    }
}

/// Which flows, in what order, in what frames; what is left out is [`Pattern::PLAIN`].
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each can be had with any other")]
pub(crate) struct Pattern {
    /// `IN_TURN`, `RANDOM`, `ZIPF`, `FRESH` or `FLOOD`.
    pub(crate) kind: u32,
    /// A power of two.
    pub(crate) flows: u32,
    /// See [`Plan::endpoint_bits`].
    pub(crate) endpoint_bits: u32,
    /// See [`Plan::stride`].
    pub(crate) stride: u32,
    /// See [`Plan::first`].
    pub(crate) first: u32,
    /// All flows go to one remote.
    pub(crate) one_remote: bool,
    /// See [`Plan::hostile`].
    pub(crate) hostile: bool,
    /// See [`Plan::mixed`].
    pub(crate) mixed: bool,
    /// See [`Plan::stamped`].
    pub(crate) stamped: bool,
    /// See [`Plan::reflected`].
    pub(crate) reflected: bool,
}

impl Pattern {
    /// UDP of 60 bytes, one way, to several remotes.
    pub(crate) const PLAIN: Self = Self {
        kind: IN_TURN,
        flows: 1,
        endpoint_bits: 14,
        stride: 0,
        first: 0,
        one_remote: false,
        hostile: false,
        mixed: false,
        stamped: false,
        reflected: false,
    };
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

fn pair(first: [u8; 6], second: [u8; 6]) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&first);
    macs[6..].copy_from_slice(&second);
    macs
}

fn padded(mac: [u8; 6]) -> [u8; 8] {
    let mut padded = [0; 8];
    padded[..6].copy_from_slice(&mac);
    padded
}

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
/// What NAPI takes at a time.
pub(crate) const BATCH: u32 = 64;
