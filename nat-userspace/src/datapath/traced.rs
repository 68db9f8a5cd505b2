//! The tracing programs: loaded beside the others on the same maps, and in their place while somebody asks.

use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::maps::{Array, MapData, PerCpuArray, RingBuf};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachType};
use aya::programs::xdp::XdpLink;
use aya::programs::{Program, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use nat_common::abi;
use nat_common::table::Secret;
use nat_common::trace::{Header, Spent, Tracing};

use super::attach::Cause;
use super::filters;
use super::object::{Datapath, LoadError, OBJECT, PINNED, cpus, program, typed};

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

impl Beside {
    /// Loads the tracing programs. That takes the verifier a while: not for the worker's thread.
    pub fn load(&self) -> Result<Traced, LoadError> {
        let mut loader = EbpfLoader::new();
        loader.override_global("SECRET", &self.secret.0, true);
        loader.map_max_entries("SLOTS", cpus());
        for name in PINNED {
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
        let names = [abi::PROGRAM_XDP_TRACED, abi::PROGRAM_TC_TRACED];
        names.into_iter().map(|name| Some(self.ebpf.program(name)?.info().ok()?.run_time())).sum()
    }

    /// The verified instruction count of the XDP program.
    pub fn verified_instructions(&self) -> Option<u32> {
        self.ebpf.program(abi::PROGRAM_XDP_TRACED)?.info().ok()?.verified_instruction_count()
    }

    /// Puts these programs where the others are, between two packets.
    pub fn attach(&mut self, beside: &Beside) -> Result<(), LoadError> {
        let (mut xdp, mut tc) = (None, None);
        for (name, program) in self.ebpf.programs_mut() {
            match program {
                Program::Xdp(program) if name == abi::PROGRAM_XDP_TRACED => xdp = Some(program),
                Program::SchedClassifier(program) if name == abi::PROGRAM_TC_TRACED => tc = Some(program),
                _ => {}
            }
        }
        let xdp = xdp.ok_or(LoadError::MissingMap(abi::PROGRAM_XDP_TRACED))?;
        let tc = tc.ok_or(LoadError::MissingMap(abi::PROGRAM_TC_TRACED))?;
        replace(xdp, tc, &beside.pins);
        Ok(())
    }
}

impl Datapath {
    /// What the tracing programs are loaded beside.
    pub fn beside(&self) -> Beside {
        Beside { pins: self.pins.clone(), secret: self.secret }
    }

    /// Puts these programs back where the tracing ones are.
    pub fn replace_traced(&mut self) {
        replace(&mut self.programs.xdp, &mut self.programs.tc, &self.pins);
    }
}

/// Has every pinned link run these programs.
fn replace(xdp: &mut Xdp, tc: &mut SchedClassifier, pins: &Path) {
    let Ok(entries) = std::fs::read_dir(pins) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let Some((kind, ifindex)) = name.strip_prefix("link-").and_then(|kind| kind.rsplit_once('-')) else {
            continue;
        };
        let replaced = match (kind, ifindex.parse()) {
            // Filters have no pins; they are where the others are.
            ("xdp" | "xdp-generic", Ok(ifindex)) if filters::are_needed() => {
                let replaced = filters::attach(tc, ifindex, TcAttachType::Ingress, pins).map_err(Cause::from);
                replaced.and_then(|()| replace_xdp(xdp, &path))
            }
            ("xdp" | "xdp-generic", _) => replace_xdp(xdp, &path),
            ("tc", _) => replace_tc(tc, &path),
            _ => Ok(()),
        };
        // The link of an interface that is gone cannot be changed, and need not be.
        if let Err(error) = replaced {
            tracing::debug!(%error, link = name, "the program of a link could not be replaced");
        }
    }
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
