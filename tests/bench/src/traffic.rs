//! Ways to send: as fast as it goes, in helpings, at a rate, on several CPUs.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use nat_bench_ebpf::{IN_TURN, Plan};

use crate::{
    generator::{Counts, Generator},
    machine::pin,
};

/// What came of some frames.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sample {
    pub(crate) frames: u64,
    pub(crate) delivered: u64,
    /// How long CPUs worked for that.
    pub(crate) busy: Duration,
    /// How long it took.
    pub(crate) elapsed: Duration,
}

impl Generator {
    /// Sends as fast as it goes, until that has taken some time.
    pub(crate) fn blast(&mut self, time: Duration) -> anyhow::Result<Sample> {
        self.blast_by(BLAST, time)
    }

    /// Sends `helping` frames a system call as fast as it goes, until that has taken some time.
    pub(crate) fn blast_by(&mut self, helping: u32, time: Duration) -> anyhow::Result<Sample> {
        let (before, helped, start) = (self.counts()?, self.helpers.time()?, Instant::now());
        let mut sample = Sample::default();
        while sample.busy < time {
            sample.busy += self.send(helping)?;
            sample.frames += u64::from(helping);
        }
        sample.elapsed = start.elapsed();
        self.conclude(sample, before, helped)
    }

    /// Sends on several CPUs at a time as fast as it goes.
    pub(crate) fn blast_on(&mut self, cpus: &[usize], time: Duration) -> anyhow::Result<Sample> {
        let (before, helped, start) = (self.counts()?, self.helpers.time()?, Instant::now());
        let generator = &*self;
        let send_on = |cpu: usize| -> anyhow::Result<Sample> {
            pin(cpu)?;
            let mut sample = Sample::default();
            while start.elapsed() < time {
                sample.busy += generator.send(BLAST / 4)?;
                sample.frames += u64::from(BLAST / 4);
            }
            Ok(sample)
        };
        let mut sample = Sample::default();
        thread::scope(|scope| -> anyhow::Result<()> {
            let threads: Vec<_> = cpus.iter().map(|cpu| scope.spawn(move || send_on(*cpu))).collect();
            for thread in threads {
                let part = thread.join().ok().context("a generator has panicked")??;
                sample.frames += part.frames;
                sample.busy += part.busy;
            }
            Ok(())
        })?;
        sample.elapsed = start.elapsed();
        self.conclude(sample, before, helped)
    }

    /// Sends `helping` frames at a time and waits for them to arrive: what suits a gateway that has to think.
    ///
    /// A gateway that lets nothing through is given up.
    pub(crate) fn feed(&mut self, frames: u64, helping: u32) -> anyhow::Result<Sample> {
        let (before, helped, start) = (self.counts()?, self.helpers.time()?, Instant::now());
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
        sample.elapsed = start.elapsed();
        self.conclude(sample, before, helped)
    }

    /// Sends `helping` frames at a time that are not to arrive, and waits until the gateway has nothing to do.
    pub(crate) fn feed_in_vain(&mut self, frames: u64, helping: u32) -> anyhow::Result<Sample> {
        let (before, helped, start) = (self.counts()?, self.helpers.time()?, Instant::now());
        let mut sample = Sample::default();
        while sample.frames < frames {
            sample.busy += self.send(helping)?;
            sample.frames += u64::from(helping);
            self.helpers.wait_idle()?;
        }
        sample.elapsed = start.elapsed();
        self.conclude(sample, before, helped)
    }

    /// Sends at a rate, as far as the machine reaches it: in bursts of what is due, at least one batch.
    pub(crate) fn pace(&mut self, rate: f64, time: Duration) -> anyhow::Result<Sample> {
        let (before, helped, start) = (self.counts()?, self.helpers.time()?, Instant::now());
        let mut sample = Sample::default();
        while start.elapsed() < time {
            let due = Duration::from_secs_f64(rounded(sample.frames + u64::from(self.batch)) / rate);
            if let Some(early) = due.checked_sub(start.elapsed()) {
                // A sleep takes longer than that; the CPU is left to others all the same.
                if early < SHORTEST_SLEEP {
                    thread::yield_now();
                } else {
                    thread::sleep(early.min(time));
                }
                continue;
            }
            let late = start.elapsed().saturating_sub(due).as_secs_f64();
            let batches = 1 + whole(late * rate / f64::from(self.batch)).min(MOST_BATCHES);
            let frames = batches * self.batch;
            sample.busy += self.send(frames)?;
            sample.frames += u64::from(frames);
        }
        sample.elapsed = start.elapsed();
        self.conclude(sample, before, helped)
    }

    /// Opens flows 0 to `flows` - 1 and checks what arrives, until each of them was seen or no more come.
    pub(crate) fn open_flows(&mut self, flows: u32, helping: u32) -> anyhow::Result<Counts> {
        self.inspect(flows, helping, OPENING_PASSES)
    }

    /// Sends a frame of each of flows 0 to `flows` - 1, and checks what arrives.
    pub(crate) fn open_flows_once(&mut self, flows: u32, helping: u32) -> anyhow::Result<Counts> {
        self.inspect(flows, helping, 1)
    }

    fn inspect(&mut self, flows: u32, helping: u32, passes: u32) -> anyhow::Result<Counts> {
        self.inspections += 1;
        let plan = self.plan;
        self.plan =
            Plan { pattern: IN_TURN, flow_mask: flows - 1, inspection: self.inspections, stamped: 0, ..plan };
        self.write_plan()?;
        let before = self.counts()?;
        let mut counts = Counts::default();
        for _ in 0..passes {
            let sample = self.feed(flows.into(), helping.min(flows))?;
            counts = self.counts()?.since(before);
            if counts.flows_seen >= flows.into() || sample.delivered == 0 {
                break;
            }
        }
        self.plan = plan;
        self.write_plan()?;
        Ok(counts)
    }

    /// Waits for what is under way, and adds up.
    fn conclude(&self, mut sample: Sample, before: Counts, helped: Duration) -> anyhow::Result<Sample> {
        let after = self.settled(before.all() + sample.frames)?;
        sample.busy += self.helpers.time()?.saturating_sub(helped);
        sample.delivered = after.delivered - before.delivered;
        Ok(sample)
    }

    /// Waits until `expected` frames have been counted, or none for [`PATIENCE`].
    fn settled(&self, expected: u64) -> anyhow::Result<Counts> {
        let mut counts = self.counts()?;
        let mut progress = Instant::now();
        while counts.all() < expected && progress.elapsed() < PATIENCE {
            // The gateway's daemon and the kernel's threads run on this CPU as well.
            thread::yield_now();
            let now = self.counts()?;
            if now.all() > counts.all() {
                progress = Instant::now();
            }
            counts = now;
        }
        Ok(counts)
    }
}

#[expect(clippy::cast_precision_loss, reason = "frames of a minute, not of a million years")]
fn rounded(frames: u64) -> f64 {
    frames as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and is limited then")]
fn whole(batches: f64) -> u32 {
    batches as u32
}

/// Frames a system call: enough for its own cost not to count.
const BLAST: u32 = 1 << 17;
/// Batches that are made up for at a time, when the generator is late.
const MOST_BATCHES: u32 = 63;
/// What a timer is too coarse for.
const SHORTEST_SLEEP: Duration = Duration::from_micros(60);
/// How long nothing may arrive until what is missing counts as lost. Others may want the CPU, too.
const PATIENCE: Duration = Duration::from_millis(100);
/// Helpings in a row of which nothing arrives, until the gateway is given up.
const PATIENCE_HELPINGS: u32 = 8;
/// How often flows that did not open are tried again.
const OPENING_PASSES: u32 = 10;
