//! How long a CPU worked on frames, whatever else the machine does meanwhile.
//!
//! Frames travel in softirqs: within the generator's system call, whose time the kernel measures without what it spent
//! on other processes, and on `ksoftirqd` when there is too much of it; a gateway's daemon adds its own. The sum is
//! what frames cost. Wall time would bill a neighbour's compiler as well, which a small machine is never quite free of.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, bail};

/// Those who work on frames besides the generator's system call.
#[derive(Debug)]
pub(crate) struct Helpers {
    softirqd: String,
    daemons: Vec<u32>,
}

impl Helpers {
    /// `ksoftirqd` of a CPU; no daemons yet.
    pub(crate) fn new(cpu: usize) -> anyhow::Result<Self> {
        let name = format!("ksoftirqd/{cpu}\n");
        for entry in fs::read_dir("/proc").context("list /proc")? {
            let path = entry.context("list /proc")?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| comm == name) {
                return Ok(Self { softirqd: path.display().to_string(), daemons: Vec::new() });
            }
        }
        bail!("there is no {}", name.trim())
    }

    /// Counts these processes as well from now on, and no others.
    pub(crate) fn count(&mut self, daemons: Vec<u32>) {
        self.daemons = daemons;
    }

    /// How long they have been on a CPU in all their life.
    pub(crate) fn time(&self) -> anyhow::Result<Duration> {
        let mut time = time_on_cpu(Path::new(&self.softirqd))?;
        for daemon in &self.daemons {
            let threads = fs::read_dir(format!("/proc/{daemon}/task"))
                .with_context(|| format!("list the threads of process {daemon}"))?;
            // A thread that ends meanwhile takes little with it.
            time += threads.filter_map(|thread| time_on_cpu(&thread.ok()?.path()).ok()).sum::<Duration>();
        }
        Ok(time)
    }
}

/// How long a thread has been on a CPU.
fn time_on_cpu(thread: &Path) -> anyhow::Result<Duration> {
    let path = thread.join("schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let nanoseconds = text.split_whitespace().next().unwrap_or_default();
    let nanoseconds = nanoseconds.parse().with_context(|| format!("{}: {text}", path.display()))?;
    Ok(Duration::from_nanos(nanoseconds))
}
