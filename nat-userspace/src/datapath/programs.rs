//! The programs, pinned beside their maps. A daemon of the same build takes them as they are: having the verifier
//! walk them again would take longer than all else that a start does.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::MapInfo;
use aya::programs::{Program, ProgramError, ProgramInfo, SchedClassifier, Xdp};
use aya_obj::programs::XdpAttachType;
use nat_common::abi;

use super::object::{LoadError, OBJECT, PINNED};

/// What their pins' names begin with.
const PIN: &str = "program-";

/// What runs on XDP.
const ON_XDP: [&str; 3] = [abi::PROGRAM_XDP, abi::PROGRAM_CLOCK, abi::PROGRAM_INJECT];
/// What runs on the tc hooks.
const ON_TC: [&str; 2] = [abi::PROGRAM_TC, abi::PROGRAM_OWN];

/// The loaded programs.
pub(super) struct Programs {
    pub(super) xdp: Xdp,
    pub(super) tc: SchedClassifier,
    pub(super) own: SchedClassifier,
    pub(super) clock: Xdp,
    pub(super) inject: Xdp,
    /// Whether they are an earlier daemon's.
    pub(super) taken_over: bool,
}

impl Programs {
    /// Those that are pinned, if they are of this build and work on the maps that are pinned; loaded ones otherwise.
    pub(super) fn ready(ebpf: &mut Ebpf, pins: &Path) -> Result<Self, LoadError> {
        match Self::pinned(pins, true) {
            Ok(programs) if programs.are_on(pins) => return Ok(programs),
            Ok(_) => tracing::warn!("the pinned programs work on other maps than those that are pinned"),
            Err(error) => tracing::debug!(%error, "no programs of this build are pinned"),
        }
        load_all(ebpf)?;
        // What is attached stays, whether it is pinned or not.
        remove(pins);
        for name in ON_XDP.into_iter().chain(ON_TC) {
            let loaded = ebpf.program_mut(name).ok_or(LoadError::MissingMap(name))?;
            loaded.pin(pin(pins, name)).map_err(|source| LoadError::Pin { name, source })?;
            unload(loaded)?;
        }
        Ok(Self::pinned(pins, false)?)
    }

    fn pinned(pins: &Path, taken_over: bool) -> Result<Self, ProgramError> {
        let xdp = |name| Xdp::from_pin(pin(pins, name), XdpAttachType::Interface);
        let tc = |name| SchedClassifier::from_pin(pin(pins, name));
        Ok(Self {
            xdp: xdp(abi::PROGRAM_XDP)?,
            tc: tc(abi::PROGRAM_TC)?,
            own: tc(abi::PROGRAM_OWN)?,
            clock: xdp(abi::PROGRAM_CLOCK)?,
            inject: xdp(abi::PROGRAM_INJECT)?,
            taken_over,
        })
    }

    fn infos(&self) -> Result<[ProgramInfo; 5], ProgramError> {
        let Self { xdp, tc, own, clock, inject, taken_over: _ } = self;
        Ok([xdp.info()?, tc.info()?, own.info()?, clock.info()?, inject.info()?])
    }

    /// Whether each map that a program works on is the one that is pinned under its name, if one is.
    fn are_on(&self, pins: &Path) -> bool {
        let id = |name| Some((name, MapInfo::from_pin(pins.join(name)).ok()?.id()));
        let pinned: HashMap<&str, u32> = PINNED.into_iter().filter_map(id).collect();
        let is_pinned = |id| {
            let Ok(info) = MapInfo::from_id(id) else { return false };
            let name = info.name_as_str().unwrap_or_default();
            pinned.get(name).is_none_or(|pinned| *pinned == id)
        };
        let of_program = |info: &ProgramInfo| Some(info.map_ids().ok()??.into_iter().all(is_pinned));
        self.infos().is_ok_and(|infos| infos.iter().all(|info| of_program(info) == Some(true)))
    }

    /// How many instructions the verifier looked at, in all of them.
    pub(super) fn verified_instructions(&self) -> Option<u32> {
        self.infos().ok()?.iter().map(ProgramInfo::verified_instruction_count).sum()
    }

    /// How long those that see packets have run, while the kernel measures that.
    pub(super) fn run_time(&self) -> Option<Duration> {
        let [xdp, tc, own, ..] = self.infos().ok()?;
        Some([xdp, tc, own].iter().map(ProgramInfo::run_time).sum())
    }
}

/// Loads all of them at once: the verifier walks each for itself, on a CPU of its own if there is one.
fn load_all(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let is_ours = |name: &str| ON_XDP.contains(&name) || ON_TC.contains(&name);
    let load = |program: &mut Program| match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        _ => Ok(()),
    };
    std::thread::scope(|scope| {
        let programs = ebpf.programs_mut().filter(|(name, _)| is_ours(name));
        let loads: Vec<_> = programs.map(|(_, program)| scope.spawn(move || load(program))).collect();
        let joined = loads.into_iter().map(|load| load.join().unwrap_or_else(|panic| resume_unwind(panic)));
        joined.collect()
    })
}

/// Where a program of this build is pinned: another object has other names.
fn pin(pins: &Path, name: &str) -> PathBuf {
    let mut hasher = DefaultHasher::new();
    (OBJECT, abi::VERSION).hash(&mut hasher);
    pins.join(format!("{PIN}{name}-{:016x}", hasher.finish()))
}

/// Removes pinned programs, whichever build's.
fn remove(pins: &Path) {
    let Ok(entries) = std::fs::read_dir(pins) else { return };
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(PIN)) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Closes the descriptor of a program that is pinned.
fn unload(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(xdp) => xdp.unload(),
        Program::SchedClassifier(tc) => tc.unload(),
        _ => Ok(()),
    }
}
