//! The machine: its CPUs, and what it is called.

use std::fs;

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Binds this thread, and with it the frames' whole way and the processes it starts, to one CPU.
pub(crate) fn pin(cpu: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).with_context(|| format!("run on CPU {cpu}"))
}

/// While it lives, the thread, and what it starts, may run on every CPU; afterwards where it was before.
pub(crate) struct Unpinned {
    before: CpuSet,
}

impl Unpinned {
    pub(crate) fn new(cpus: usize) -> anyhow::Result<Self> {
        let before = sched_getaffinity(None).context("ask for the thread's CPUs")?;
        let mut set = CpuSet::new();
        for cpu in 0..cpus {
            set.set(cpu);
        }
        sched_setaffinity(None, &set).context("run on every CPU")?;
        Ok(Self { before })
    }
}

impl Drop for Unpinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.before).expect("go back to the CPU the thread came from");
    }
}

/// The processor's name.
pub(crate) fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A number of a file whose lines are `name: number …`.
pub(crate) fn field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("read {path}"))?;
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(':')
            && key == name
        {
            let value = value.split_whitespace().next().unwrap_or_default();
            return value.parse().with_context(|| format!("{path}: {line}"));
        }
    }
    anyhow::bail!("{path} has no {name}")
}
