//! What a process takes, in its own memory and in the kernel's: counted, not estimated.

use std::{
    collections::BTreeSet,
    fs,
    os::fd::{AsFd as _, AsRawFd as _},
};

use anyhow::Context as _;
use aya::maps::{ArrayOfMaps, Map, MapData, MapInfo};

use crate::machine::field;

/// Bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Memory {
    /// The daemon's own.
    pub(crate) daemon: u64,
    /// The kernel's for it.
    pub(crate) kernel: u64,
}

impl Memory {
    pub(crate) fn all(self) -> u64 {
        self.daemon + self.kernel
    }
}

/// A process's anonymous and shared memory, and what the kernel has allocated for all eBPF maps it holds, those within
/// maps included. Maps that it has mapped are counted once, as the kernel's.
pub(super) fn of_process(process: u32) -> anyhow::Result<Memory> {
    let status = format!("/proc/{process}/status");
    let daemon = (field(&status, "RssAnon")? + field(&status, "RssShmem")?) * 1024;
    let mut maps = BTreeSet::new();
    let folder = format!("/proc/{process}/fdinfo");
    for entry in fs::read_dir(&folder).with_context(|| format!("list {folder}"))? {
        let path = entry.with_context(|| format!("list {folder}"))?.path();
        // A descriptor that is closed meanwhile, or is no map.
        if let Ok(id) = field(&path.display().to_string(), "map_id") {
            maps.insert(u32::try_from(id)?);
        }
    }
    let mut within = BTreeSet::new();
    for map in &maps {
        let data = MapData::from_id(*map).context("open one of the daemon's maps")?;
        if let Ok(map @ Map::ArrayOfMaps(_)) = Map::from_map_data(data) {
            let outer: ArrayOfMaps<MapData, MapData> = map.try_into()?;
            for slot in 0..outer.len() {
                let Ok(inner) = outer.get(&slot, 0) else { continue };
                within.insert(inner.info().context("ask for a map within a map")?.id());
            }
        }
    }
    maps.extend(within);
    let kernel = maps.iter().try_fold(0, |sum, map| anyhow::Ok(sum + allocated(*map)?))?;
    Ok(Memory { daemon, kernel })
}

/// The bytes the kernel has allocated for a map.
fn allocated(map: u32) -> anyhow::Result<u64> {
    let fd = MapInfo::from_id(map)?.fd().context("open a map")?;
    field(&format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()), "memlock")
}

/// All the kernel's own objects that it cannot give back, of the whole machine.
pub(super) fn of_kernel() -> anyhow::Result<Memory> {
    Ok(Memory { daemon: 0, kernel: field("/proc/meminfo", "SUnreclaim")? * 1024 })
}
