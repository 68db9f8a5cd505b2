//! A group of processes of the lab's own whose memory is limited: what it takes beyond that ends it, by the kernel's own
//! out-of-memory killer.

use std::{fs, io, path::PathBuf, process};

/// Where the kernel has the groups, and what the files are called.
const HIERARCHIES: [Hierarchy; 2] = [
    Hierarchy {
        root: "/sys/fs/cgroup/memory",
        usage: "memory.usage_in_bytes",
        limit: "memory.limit_in_bytes",
        unlimited: "-1",
        events: "memory.oom_control",
    },
    Hierarchy {
        root: "/sys/fs/cgroup",
        usage: "memory.current",
        limit: "memory.max",
        unlimited: "max",
        events: "memory.events",
    },
];

#[derive(Clone, Copy, Debug)]
struct Hierarchy {
    root: &'static str,
    usage: &'static str,
    limit: &'static str,
    unlimited: &'static str,
    events: &'static str,
}

/// The group.
#[derive(Debug)]
pub(super) struct MemoryGroup {
    folder: PathBuf,
    hierarchy: Hierarchy,
}

impl MemoryGroup {
    /// A group that limits nothing yet. None where the kernel limits no memory.
    pub(super) fn new() -> Option<Self> {
        HIERARCHIES.into_iter().find_map(|hierarchy| {
            let folder = PathBuf::from(hierarchy.root).join(format!("natgw-test-{}", process::id()));
            fs::create_dir(&folder).ok()?;
            let group = Self { folder, hierarchy };
            group.folder.join(hierarchy.limit).exists().then_some(group)
        })
    }

    /// Moves a process in: what it takes from now on counts.
    pub(super) fn take_in(&self, process: u32) -> io::Result<()> {
        fs::write(self.folder.join("cgroup.procs"), process.to_string())
    }

    /// Limits the group to so many bytes more than it has: maps of former daemons are charged to it.
    pub(super) fn limit(&self, bytes: u64) -> io::Result<()> {
        let usage = fs::read_to_string(self.folder.join(self.hierarchy.usage))?;
        let usage: u64 = usage.trim().parse().map_err(io::Error::other)?;
        fs::write(self.folder.join(self.hierarchy.limit), (usage + bytes).to_string())
    }

    /// Limits it no more.
    pub(super) fn free(&self) -> io::Result<()> {
        fs::write(self.folder.join(self.hierarchy.limit), self.hierarchy.unlimited)
    }

    /// How many processes the kernel has ended for want of memory.
    pub(super) fn killed(&self) -> u64 {
        let events = fs::read_to_string(self.folder.join(self.hierarchy.events)).unwrap_or_default();
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok());
        count.unwrap_or_default()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}
