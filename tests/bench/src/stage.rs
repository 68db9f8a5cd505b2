//! The lanes with their gateways, ready to measure.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use aya::programs::ProgramInfo;

use crate::{
    Contender,
    busy::Helpers,
    gateways::{self, Gateway, Natgw, Readiness, Setup},
    generator::{Generator, Pattern},
    machine::field,
    namespace::Entered,
    report::{FigureReport, quotient},
    topology::Topology,
    traffic::Sample,
};

/// What holds for all figures.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) contenders: Vec<Contender>,
    /// The CPU that everything runs on.
    pub(crate) cpu: usize,
    /// How many the machine has.
    pub(crate) cpus: usize,
    pub(crate) zero_checksum: bool,
    pub(crate) quick: bool,
    pub(crate) round: Duration,
    pub(crate) rounds: u32,
    pub(crate) interrupted: Arc<AtomicBool>,
}

impl Settings {
    pub(crate) fn check_interrupt(&self) -> anyhow::Result<()> {
        ensure!(!self.interrupted.load(Ordering::Relaxed), "interrupted");
        Ok(())
    }

    /// A second CPU, if there is one.
    pub(crate) fn other_cpu(&self) -> Option<usize> {
        (0..self.cpus).find(|cpu| *cpu != self.cpu)
    }

    /// Numbers the rounds, tells how far they are, and ends them if someone wants that.
    pub(crate) fn rounds(&self, figure: &'static str) -> impl Iterator<Item = anyhow::Result<u32>> {
        (1..=self.rounds).map(move |round| {
            self.check_interrupt()?;
            eprintln!("{figure}: round {round} of {}", self.rounds);
            Ok(round)
        })
    }
}

/// What is measured on, made when it is first needed.
///
/// The gateways go first when it is dropped: natgw stops before its namespace goes.
pub(crate) struct Stage {
    pub(crate) gateways: Vec<(&'static str, Box<dyn Gateway>)>,
    pub(crate) generator: Generator,
    /// The client's namespace, where frames are made.
    _client: Entered,
    pub(crate) topology: Topology,
}

impl Stage {
    /// Lanes with as many queues as there are CPUs to send on.
    pub(crate) fn new(settings: &Settings, cpus: &[usize]) -> anyhow::Result<Self> {
        let mut names = vec![FLOOR];
        names.extend(settings.contenders.iter().map(|contender| contender.name()));
        let topology = Topology::new(&names, cpus.len())?;
        let mut generator = Generator::new(&topology, Helpers::new(cpus)?, settings.zero_checksum)?;
        let mut gateways = Vec::new();
        let (floor, lanes) = topology.lanes.split_first().context("no lanes")?;
        {
            let _entered = floor.gateway.enter()?;
            generator.attach("discard", "lan")?;
        }
        for (contender, lane) in settings.contenders.iter().zip(lanes) {
            gateways.push((lane.name, gateways::start(*contender, lane, &mut generator)?));
        }
        let client = topology.client.enter()?;
        Ok(Self { gateways, generator, _client: client, topology })
    }

    /// Makes the gateways ready, with no flows, and answers the numbers of those that take part.
    pub(crate) fn prepare_all(
        &mut self,
        setup: &Setup,
        report: &mut FigureReport,
    ) -> anyhow::Result<Vec<usize>> {
        let mut taking_part = Vec::new();
        for number in 0..self.gateways.len() {
            match self.prepare(number, setup)? {
                Readiness::Ready => taking_part.push(number),
                Readiness::Absent(reason) => report.absent(self.name(number), reason),
            }
        }
        Ok(taking_part)
    }

    /// Makes a gateway ready, with no flows.
    pub(crate) fn prepare(&mut self, number: usize, setup: &Setup) -> anyhow::Result<Readiness> {
        let (_, gateway) = &mut self.gateways[number];
        let readiness = gateway.prepare(&self.topology.lanes[number + 1], setup)?;
        self.generator.helpers.count(gateway.processes());
        Ok(readiness)
    }

    /// Aims at a gateway; the numbers of flows start anew.
    pub(crate) fn aim(&mut self, number: usize, pattern: Pattern) -> anyhow::Result<()> {
        let (_, gateway) = &self.gateways[number];
        self.generator.helpers.count(gateway.processes());
        self.generator.aim(u32::try_from(number + 1)?, gateway.translates(), pattern)
    }

    /// Aims at a gateway's virtual server, which leaves sources as they are.
    pub(crate) fn aim_at_service(&mut self, number: usize, pattern: Pattern) -> anyhow::Result<()> {
        let (_, gateway) = &self.gateways[number];
        self.generator.helpers.count(gateway.processes());
        self.generator.aim(u32::try_from(number + 1)?, false, pattern)
    }

    /// Aims at the lane that drops everything at its entrance.
    pub(crate) fn aim_at_floor(&mut self, pattern: Pattern) -> anyhow::Result<()> {
        self.generator.helpers.count(Vec::new());
        self.generator.aim(0, false, pattern)
    }

    /// Opens a pattern's flows at a rate the gateway can take, and checks what it makes of them.
    pub(crate) fn open(
        &mut self,
        number: usize,
        pattern: Pattern,
        report: &mut FigureReport,
    ) -> anyhow::Result<()> {
        let name = self.name(number);
        let flows = pattern.flows;
        eprintln!("{}: {name}: opening {flows} flows", report.name());
        self.aim(number, pattern)?;
        let counts = self.generator.open_flows(flows, self.gateways[number].1.helping())?;
        if counts.wrong > 0 {
            report.fault(format!("{name}: {} frames arrived wrong", counts.wrong));
        }
        if counts.flows_seen < flows.into() {
            report.fault(format!("{name}: {} of {flows} flows opened", counts.flows_seen));
        }
        Ok(())
    }

    pub(crate) fn name(&self, number: usize) -> &'static str {
        self.gateways[number].0
    }

    /// New flows to offer a gateway at a time.
    pub(crate) fn helping(&self, number: usize) -> u32 {
        self.gateways[number].1.helping()
    }

    /// natgw's number and its daemon, if it takes part.
    pub(crate) fn natgw(&mut self) -> Option<(usize, &mut Natgw)> {
        let mut gateways = self.gateways.iter_mut().enumerate();
        gateways.find_map(|(number, (_, gateway))| Some((number, gateway.daemon()?)))
    }

    /// The XDP program of a gateway, if it runs one.
    pub(crate) fn program(&mut self, number: usize) -> anyhow::Result<Option<ProgramInfo>> {
        self.gateways[number].1.program(&self.topology.lanes[number + 1], &mut self.generator)
    }
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::Nft => "nft",
            Self::Iptables => "iptables",
            Self::Natgw => "natgw",
        }
    }
}

/// What the kernel has counted of a program, while its statistics are on.
pub(crate) struct RunTime {
    pub(crate) nanoseconds: u64,
    pub(crate) runs: u64,
}

impl RunTime {
    pub(crate) fn of(program: &ProgramInfo) -> anyhow::Result<Self> {
        let fd = program.fd().context("open a program")?;
        let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
        Ok(Self { nanoseconds: field(&path, "run_time_ns")?, runs: field(&path, "run_cnt")? })
    }
}

/// Nanoseconds a frame.
pub(crate) fn nanoseconds_each(sample: &Sample) -> f64 {
    quotient(nanoseconds(sample.busy), sample.frames)
}

pub(crate) fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// The lane that drops everything at its entrance.
pub(crate) const FLOOR: &str = "generator";
