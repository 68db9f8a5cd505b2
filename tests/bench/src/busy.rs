//! How long CPUs worked on frames, whatever else the machine does meanwhile.
//!
//! Frames travel in softirqs: within the generator's system call, whose time the kernel measures without what it spent
//! on other processes, and on `ksoftirqd` when there is too much of it; a gateway's daemon adds its own. The sum is
//! what frames cost. Wall time would bill a neighbour's compiler as well, which a small machine is never quite free of.

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// Those who work on frames besides the generator's system call.
#[derive(Debug)]
pub(crate) struct Helpers {
    softirqd: Vec<String>,
    daemons: Vec<u32>,
}

impl Helpers {
    /// `ksoftirqd` of these CPUs; no daemons yet.
    pub(crate) fn new(cpus: &[usize]) -> anyhow::Result<Self> {
        let names: Vec<_> = cpus.iter().map(|cpu| format!("ksoftirqd/{cpu}\n")).collect();
        let mut softirqd = Vec::new();
        for entry in fs::read_dir("/proc").context("list /proc")? {
            let path = entry.context("list /proc")?.path();
            if fs::read_to_string(path.join("comm")).is_ok_and(|comm| names.contains(&comm)) {
                softirqd.push(path.display().to_string());
            }
        }
        ensure!(softirqd.len() == cpus.len(), "there is no ksoftirqd of some of the CPUs {cpus:?}");
        Ok(Self { softirqd, daemons: Vec::new() })
    }

    /// Counts these processes as well from now on, and no others.
    pub(crate) fn count(&mut self, daemons: Vec<u32>) {
        self.daemons = daemons;
    }

    /// How long they have been on a CPU in all their life.
    pub(crate) fn time(&self) -> anyhow::Result<Duration> {
        let mut time = self.daemon_time()?;
        for softirqd in &self.softirqd {
            time += time_on_cpu(Path::new(softirqd))?;
        }
        Ok(time)
    }

    /// How long the daemons have been on a CPU in all their life.
    pub(crate) fn daemon_time(&self) -> anyhow::Result<Duration> {
        let mut time = Duration::ZERO;
        for daemon in &self.daemons {
            let threads = fs::read_dir(format!("/proc/{daemon}/task"))
                .with_context(|| format!("list the threads of process {daemon}"))?;
            // A thread that ends meanwhile takes little with it.
            time += threads.filter_map(|thread| time_on_cpu(&thread.ok()?.path()).ok()).sum::<Duration>();
        }
        Ok(time)
    }

    /// The same with threads that have ended, to the hundredth of a second.
    pub(crate) fn daemon_time_in_all(&self) -> anyhow::Result<Duration> {
        let mut time = Duration::ZERO;
        for daemon in &self.daemons {
            let path = format!("/proc/{daemon}/stat");
            let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            // utime and stime after the name, in hundredths of a second whatever the kernel's own clock (proc(5), USER_HZ).
            let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
            let ticks: u64 = fields.filter_map(|field| field.parse::<u64>().ok()).sum();
            time += Duration::from_millis(ticks * 10);
        }
        Ok(time)
    }

    /// Waits until none of them has anything to do: not on a CPU while this thread slept.
    pub(crate) fn wait_idle(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + Duration::from_secs(1);
        let mut before = self.time()?;
        let mut naps = 0;
        while naps < 2 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(1));
            let now = self.time()?;
            // A daemon that wakes for its timers takes microseconds.
            naps = if now.saturating_sub(before) < Duration::from_micros(100) { naps + 1 } else { 0 };
            before = now;
        }
        Ok(())
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
