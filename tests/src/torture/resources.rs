//! What a daemon holds.

use std::{fs, time::Duration};

use crate::Gateway;

/// File descriptors, threads, memory and pins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Resources {
    pub(super) descriptors: u64,
    pub(super) threads: u64,
    /// Resident, in KiB.
    pub(super) memory: u64,
    pub(super) pins: u64,
}

impl Resources {
    /// Of a natgw that runs; nothing of one that does not.
    pub(super) fn of(gateway: &Gateway) -> Self {
        let Some(id) = gateway.id() else { return Self::default() };
        let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name));
            value.and_then(|value| value.split_whitespace().next()?.parse().ok()).unwrap_or_default()
        };
        let descriptors = fs::read_dir(format!("/proc/{id}/fd")).map_or(0, |folder| folder.count() as u64);
        Self {
            descriptors,
            threads: field("Threads:"),
            memory: field("VmRSS:"),
            pins: gateway.pins().len() as u64,
        }
    }

    /// The larger of each.
    pub(super) fn most(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.max(other.descriptors),
            threads: self.threads.max(other.threads),
            memory: self.memory.max(other.memory),
            pins: self.pins.max(other.pins),
        }
    }
}

/// How long it has been on a CPU since it was started.
pub(super) fn processor_time(gateway: &Gateway) -> Duration {
    // utime and stime, in hundredths of a second whatever the kernel's own clock (proc(5), USER_HZ).
    let stat =
        gateway.id().and_then(|id| fs::read_to_string(format!("/proc/{id}/stat")).ok()).unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace().skip(11).take(2);
    Duration::from_millis(fields.filter_map(|field| field.parse::<u64>().ok()).sum::<u64>() * 10)
}
