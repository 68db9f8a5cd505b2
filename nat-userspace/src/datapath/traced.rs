//! The tracing programs: loaded beside the others on the same maps, and in their place while somebody asks.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::SchedClassifierLink;
use aya::programs::xdp::XdpLink;
use aya::programs::{SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use nat_common::abi;
use nat_common::table::Secret;
use nat_common::trace::{Header, Spent, Tracing};

use super::attach::Cause;
use super::object::{Datapath, LoadError, OBJECT, PINNED, program, run_time, typed};

/// What the tracing programs are loaded beside.
#[derive(Clone, Debug)]
pub struct Beside {
    pins: PathBuf,
    secret: Secret,
}

/// The tracing programs, and what they are told and tell.
pub struct Traced {
    ebpf: Ebpf,
    tracing: Array<MapData, Tracing>,
    spent: PerCpuArray<MapData, Spent>,
    records: RingBuf<MapData>,
}

/// The map of VLANs is only the daemon's: it is pinned for as long as the loading takes.
const VLANS: &str = "VLANS";

impl Beside {
    /// Loads the tracing programs. That takes the verifier a while: not for the worker's thread.
    pub fn load(&self) -> Result<Traced, LoadError> {
        let mut loader = EbpfLoader::new();
        loader.override_global("SECRET", &self.secret.0, true);
        for name in PINNED.into_iter().chain([VLANS]) {
            loader.map_pin_path(name, self.pins.join(name));
        }
        let mut ebpf = loader.load(OBJECT)?;
        program::<Xdp>(&mut ebpf, abi::PROGRAM_XDP_TRACED)?.load()?;
        program::<SchedClassifier>(&mut ebpf, abi::PROGRAM_TC_TRACED)?.load()?;
        Ok(Traced {
            tracing: typed(&mut ebpf, "TRACING")?,
            spent: typed(&mut ebpf, "SPENT")?,
            records: typed(&mut ebpf, "TRACED")?,
            ebpf,
        })
    }

    fn vlans(&self) -> PathBuf {
        self.pins.join(VLANS)
    }
}

impl Traced {
    /// Says what is asked for.
    pub fn ask(&mut self, tracing: &Tracing) -> Result<(), LoadError> {
        self.tracing.set(0, tracing, 0).map_err(|source| LoadError::Map { name: "TRACING", source })
    }

    /// Packets that a query was not told of: beyond its rate, and for want of room.
    pub fn missed(&self, query: u32) -> [u64; 2] {
        let Ok(spent) = self.spent.get(&query, 0) else { return [0; 2] };
        [spent.iter().map(|spent| spent.suppressed).sum(), spent.iter().map(|spent| spent.lost).sum()]
    }

    /// Begins a query's count anew.
    pub fn forget(&mut self, query: u32) {
        if let Ok(spent) = self.spent.get(&query, 0)
            && let Ok(none) = aya::maps::PerCpuValues::try_from(vec![Spent::default(); spent.len()])
        {
            let _ = self.spent.set(query, none, 0);
        }
    }

    /// Readable when there is something to tell.
    pub fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns the descriptor and lives as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.records.as_raw_fd()) }
    }

    /// Hands over what is told next: what of, how it came, and how it left. `false` if there is nothing.
    pub fn next(&mut self, each: impl FnOnce(&Header, &[u8], &[u8])) -> bool {
        let Some(record) = self.records.next() else { return false };
        if let Some((header, frames)) = record.split_at_checked(size_of::<Header>())
            && let Ok(header) = bytemuck::try_pod_read_unaligned::<Header>(header)
        {
            let (before, after) = (header.kept_before as usize, header.kept_after as usize);
            if let Some((before, after)) = frames.get(..before + after).map(|both| both.split_at(before)) {
                each(&header, before, after);
            }
        }
        true
    }

    /// How long these programs have run, while the kernel measures that.
    pub fn run_time(&self) -> Option<Duration> {
        run_time(&self.ebpf, &[abi::PROGRAM_XDP_TRACED, abi::PROGRAM_TC_TRACED])
    }

    /// The verified instruction count of the XDP program.
    pub fn verified_instructions(&self) -> Option<u32> {
        self.ebpf.program(abi::PROGRAM_XDP_TRACED)?.info().ok()?.verified_instruction_count()
    }

    /// Puts these programs where the others are, between two packets.
    pub fn attach(&mut self, beside: &Beside) -> Result<(), LoadError> {
        replace(&mut self.ebpf, [abi::PROGRAM_XDP_TRACED, abi::PROGRAM_TC_TRACED], &beside.pins)
    }
}

impl Datapath {
    /// Prepares for the tracing programs to be loaded beside these; [`Datapath::close_beside`] ends that.
    pub fn open_beside(&self) -> Result<Beside, LoadError> {
        let beside = Beside { pins: self.pins.clone(), secret: self.secret };
        // What a daemon that was killed meanwhile has left would be another map.
        let _ = std::fs::remove_file(beside.vlans());
        self.vlans_handle.pin(beside.vlans()).map_err(|source| LoadError::Pin { name: VLANS, source })?;
        Ok(beside)
    }

    /// The tracing programs are loaded, or will not be.
    pub fn close_beside(&self, beside: &Beside) {
        let _ = std::fs::remove_file(beside.vlans());
    }

    /// Puts these programs back where the tracing ones are.
    pub fn replace_traced(&mut self) -> Result<(), LoadError> {
        replace(&mut self.ebpf, [abi::PROGRAM_XDP, abi::PROGRAM_TC], &self.pins)
    }
}

/// Has every pinned link run these programs, an XDP and a tc program.
fn replace(ebpf: &mut Ebpf, [xdp, tc]: [&'static str; 2], pins: &Path) -> Result<(), LoadError> {
    let Ok(entries) = std::fs::read_dir(pins) else { return Ok(()) };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some((kind, _)) = name.strip_prefix("link-").and_then(|kind| kind.rsplit_once('-')) else {
            continue;
        };
        let replaced = match kind {
            "xdp" | "xdp-generic" => replace_xdp(program(ebpf, xdp)?, &path),
            "tc" => replace_tc(program(ebpf, tc)?, &path),
            _ => Ok(()),
        };
        // The link of an interface that is gone cannot be changed, and need not be.
        if let Err(error) = replaced {
            tracing::debug!(%error, link = name, "the program of a link could not be replaced");
        }
    }
    Ok(())
}

fn replace_xdp(program: &mut Xdp, pin: &Path) -> Result<(), Cause> {
    let link = XdpLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    // The pin keeps it: a descriptor for each time would be many.
    drop(program.take_link(id)?);
    Ok(())
}

fn replace_tc(program: &mut SchedClassifier, pin: &Path) -> Result<(), Cause> {
    let link = SchedClassifierLink::try_from(FdLink::from(PinnedLink::from_pin(pin)?))?;
    let id = program.attach_to_link(link)?;
    drop(program.take_link(id)?);
    Ok(())
}
