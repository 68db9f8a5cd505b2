//! Loading: the object, its maps at the configured size, and the pins that let both outlive the
//! daemon.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use aya::maps::{Array, DevMap, HashMap, Map, MapData, MapError, PerCpuArray, RingBuf, XskMap};
use aya::programs::links::FdLink;
use aya::programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions};
use aya::{Ebpf, EbpfError, EbpfLoader};
use nat_common::abi::{self, Interface, LocalAddress, Settings, VlanKey};
use nat_common::activity::TICK_SHIFT;
use nat_common::delegate::{CELL_WORDS, CPUS, PORT_TABLES};
use nat_common::next_hop::NextHop;
use nat_common::shed;
use nat_common::table::Secret;
use nat_common::tunnel;
use nat_common::vlan::TAG;

use super::claims::Claims;
use super::delegation::Delegation;
use super::flows::FlowTable;
use super::grace::{MAKERS, Maps, Segments};
use super::held::Listing;
use super::lender::Lender;
use super::mapped::Mapped;
use super::migrate::Earlier;
use super::programs::Programs;

/// `BPF_F_MMAPABLE`.
pub(super) const MMAPABLE: u32 = 1 << 10;

/// The object that the build script made from nat-ebpf.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/natgw-ebpf"));

/// Maps that outlive the daemon: all that a program and it share.
pub(super) const PINNED: [&str; 26] = [
    "INDEX",
    "LEVEL",
    "LINES",
    "HOPS",
    "INTERFACE",
    "DEVICES",
    "SOCKETS",
    "LOCALS",
    "SETTINGS",
    "SOURCES",
    "DESTINATIONS",
    "ONE_TO_ONE",
    "FORWARDS",
    "COUNTERS",
    "EVENTS",
    "INJECTED",
    "GRANTED",
    "SLOTS",
    "SLEEP",
    "HELD",
    "SHED",
    "PORTS",
    "CELLS",
    "VLANS",
    "CLOCK",
    "NARROW",
];

/// What can go wrong while loading.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The verifier, a missing privilege, or a missing kernel feature.
    #[error("load the eBPF program: {0}")]
    Program(#[from] ProgramError),
    /// The object or its maps.
    #[error("load the eBPF object: {0}")]
    Object(#[from] EbpfError),
    /// A map that the object should have.
    #[error("map {0} is not in the eBPF object")]
    MissingMap(&'static str),
    /// A map that is there but cannot be used.
    #[error("use map {name}: {source}")]
    Map {
        /// Its name.
        name: &'static str,
        /// Why.
        source: MapError,
    },
    /// Memory of a map.
    #[error("map the memory of {name}: {source}")]
    Memory {
        /// Its name.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A map that cannot be pinned.
    #[error("pin map {name}: {source}")]
    Pin {
        /// Its name.
        name: &'static str,
        /// Why.
        source: aya::pin::PinError,
    },
    /// Another version of natgw has left its fast path there, and no description of it that this one can read.
    #[error(
        "take over {path}: it is the fast path of another version of natgw (layout {layout}, this one's is {own}), and does not \
         say how its sessions are to be read; \
         run that version and end it with `systemctl stop natgw` or SIGTERM, without --keep, or end its sessions with `rm -r {path}`",
        own = abi::VERSION
    )]
    OtherLayout {
        /// Its pins.
        path: PathBuf,
        /// What its tables are like.
        layout: u32,
    },
    /// The place for pins.
    #[error("prepare {path} for pins: {source}")]
    Pins {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The loaded programs and their maps.
pub struct Datapath {
    pub(super) ebpf: Ebpf,
    pub(super) programs: Programs,
    pub(super) pins: PathBuf,
    pub(super) secret: Secret,
    /// The pins of a fast path with another layout, until this one's programs are in their place.
    pub(super) earlier: Option<PathBuf>,
    /// Links by their pins. They are held as well, so that unmounting the pins' file system detaches nothing.
    pub(super) links: std::collections::HashMap<PathBuf, FdLink>,
    /// Whether the maps were another daemon's.
    pub taken_over: bool,
    /// The flow table.
    pub flows: FlowTable,
    /// What the program may open by itself.
    pub delegation: Delegation,
    /// Next hops.
    pub hops: Array<MapData, NextHop>,
    /// Interfaces by slot.
    pub interfaces: Array<MapData, Interface>,
    /// Interfaces by device and tags.
    pub vlans: HashMap<MapData, VlanKey, u32>,
    /// Devices to redirect to.
    pub devices: DevMap<MapData>,
    /// `AF_XDP` sockets by interface and queue.
    pub sockets: XskMap<MapData>,
    /// The gateway's addresses.
    pub locals: HashMap<MapData, u32, LocalAddress>,
    /// The rule set in force.
    pub settings: Array<MapData, Settings>,
    /// What the fast path counted.
    pub counters: PerCpuArray<MapData, u64>,
    /// TCP sessions whose timer changed, and that there are sessions which the program has opened.
    pub events: RingBuf<MapData>,
    clock: Mapped<u64>,
}

/// `struct xdp_md`, whose data pointers are offsets when a program is run by hand.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct XdpMd {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

impl XdpMd {
    /// The context of a frame that came in on an interface's first queue.
    fn received(ifindex: u32, frame: &[u8]) -> Self {
        Self {
            data: 0,
            data_end: u32::try_from(frame.len()).unwrap_or(0),
            data_meta: 0,
            ingress_ifindex: ifindex,
            rx_queue_index: 0,
            egress_ifindex: 0,
        }
    }
}

/// Takes a map out of the object.
fn take(ebpf: &mut Ebpf, name: &'static str) -> Result<Map, LoadError> {
    ebpf.take_map(name).ok_or(LoadError::MissingMap(name))
}

/// Takes a typed map out of the object.
pub(super) fn typed<T: TryFrom<Map, Error = MapError>>(
    ebpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    take(ebpf, name)?.try_into().map_err(|source| LoadError::Map { name, source })
}

/// CPUs that the program may run on: of what each has for itself there is no more.
pub(super) fn cpus() -> u32 {
    aya::util::nr_cpus().map_or(1, std::num::NonZero::get).min(CPUS)
}

/// The memory of an array of so many values. The array stays where programs that are yet to be loaded find it.
fn memory<T: Copy>(ebpf: &Ebpf, name: &'static str, entries: u32) -> Result<Mapped<T>, LoadError> {
    let Some(Map::Array(map)) = ebpf.map(name) else { return Err(LoadError::MissingMap(name)) };
    Mapped::new(map.fd(), entries).map_err(|source| LoadError::Memory { name, source })
}

/// A map of segments, and other handles of it for those who make them.
fn segments(ebpf: &mut Ebpf, name: &'static str) -> Result<(Segments, Vec<Segments>), LoadError> {
    let Map::ArrayOfMaps(map) = take(ebpf, name)? else { return Err(LoadError::MissingMap(name)) };
    let typed = |map| Map::ArrayOfMaps(map).try_into().map_err(|source| LoadError::Map { name, source });
    let handle = |_| {
        let handle = map.fd().as_fd().try_clone_to_owned();
        let handle = handle.map_err(|source| LoadError::Memory { name, source })?;
        typed(MapData::from_fd(handle).map_err(|source| LoadError::Map { name, source })?)
    };
    let handles = (0..MAKERS).map(handle).collect::<Result<_, _>>()?;
    Ok((typed(map)?, handles))
}

impl Datapath {
    /// Loads everything for at most `sessions` sessions, with pins below `bpffs`. Maps pinned
    /// there by a daemon of the same layout (which their path tells) are taken over; those of another that is attached
    /// are read, and what is in them put into new ones.
    ///
    /// The program may open as many sessions as `delegated` on each CPU before the daemon has taken note of them.
    ///
    /// `meanwhile` is done while the verifier walks the programs.
    pub fn load(
        bpffs: &Path,
        sessions: u32,
        delegated: u32,
        meanwhile: impl FnOnce(),
    ) -> Result<Self, LoadError> {
        let (pins, earlier) = super::attach::prepare_pins(bpffs)?;
        // With the first of its links a table of this layout is whole, whatever an earlier move has come to.
        let moves_in = earlier.as_ref().filter(|_| super::attach::pinned_links(&pins).is_empty());
        let taken_over = moves_in.is_none() && PINNED.iter().all(|name| pins.join(name).exists());
        if !taken_over {
            super::attach::remove_pins(&pins);
        }
        let secret = if taken_over { secret_of(&pins)? } else { new_secret()? };
        let mut loader = EbpfLoader::new();
        loader.override_global("SECRET", &secret.0, true);
        // Of the tracing programs, which have their own: as small as may be.
        loader.map_max_entries("TRACED", page_size());
        let cpus = cpus();
        loader.map_max_entries("SLOTS", cpus);
        for name in PINNED {
            loader.map_pin_path(name, pins.join(name));
        }
        let mut ebpf = loader.load(OBJECT)?;
        let (index, for_grace_index) = segments(&mut ebpf, "INDEX")?;
        let (lines, for_grace_lines) = segments(&mut ebpf, "LINES")?;
        let mut maps = Maps { index, lines };
        let for_grace = std::iter::zip(for_grace_index, for_grace_lines)
            .map(|(index, lines)| Maps { index, lines })
            .collect();
        let level = memory(&ebpf, "LEVEL", 1)?;
        let mut settings: Array<MapData, Settings> = typed(&mut ebpf, "SETTINGS")?;
        remember(&mut settings, secret)?;
        let clock = memory(&ebpf, "CLOCK", 1)?;
        // The verifier takes its time, and so does the kernel with each segment. Maps that are in use here stay open: the
        // programs are loaded with them.
        let (programs, flows) = std::thread::scope(|scope| {
            let programs = scope.spawn(|| Programs::ready(&mut ebpf, &pins));
            let flows = FlowTable::new(&mut maps, for_grace, level, sessions, secret);
            meanwhile();
            (programs.join().unwrap_or_else(|panic| resume_unwind(panic)), flows)
        });
        let (programs, mut flows) = (programs?, flows?);
        let lender = Lender::new(memory(&ebpf, "SLOTS", cpus)?, memory(&ebpf, "SLEEP", 1)?, cpus, delegated);
        if taken_over {
            // An earlier daemon's program had taken slots, and is still writing sessions.
            flows.wait_for_programs();
        }
        let claims =
            Claims::new(memory(&ebpf, "CELLS", CELL_WORDS)?, memory(&ebpf, "PORTS", PORT_TABLES)?, secret);
        let mut delegation = Delegation {
            claims: Rc::new(claims),
            lender,
            listing: Listing::new(memory(&ebpf, "HELD", Listing::WORDS)?),
            shed: memory(&ebpf, "SHED", shed::HOSTS)?,
            granted: typed(&mut ebpf, "GRANTED")?,
        };
        delegation.forget(|_| true);
        super::layout::Layout::describe(&pins)?;
        if let Some(earlier) = moves_in {
            earlier.move_into(&mut flows)?;
        }
        let taken_over = taken_over || moves_in.is_some();
        Ok(Self {
            flows,
            delegation,
            hops: typed(&mut ebpf, "HOPS")?,
            interfaces: typed(&mut ebpf, "INTERFACE")?,
            vlans: typed(&mut ebpf, "VLANS")?,
            secret,
            devices: typed(&mut ebpf, "DEVICES")?,
            sockets: typed(&mut ebpf, "SOCKETS")?,
            locals: typed(&mut ebpf, "LOCALS")?,
            settings,
            counters: typed(&mut ebpf, "COUNTERS")?,
            events: typed(&mut ebpf, "EVENTS")?,
            clock,
            ebpf,
            programs,
            pins,
            earlier: earlier.map(Earlier::into_pins),
            links: std::collections::HashMap::new(),
            taken_over,
        })
    }

    /// Jiffies now.
    pub fn jiffies(&self) -> Result<u64, LoadError> {
        self.programs.clock.test_run(TestRunOptions { data_in: Some(&[0; 64]), ..TestRunOptions::new() })?;
        Ok(self.clock.read(0).unwrap_or(0))
    }

    /// Hands a frame to the gateway's own stack, as if just received on `ifindex`.
    pub fn inject(&self, ifindex: u32, frame: &[u8]) -> Result<(), LoadError> {
        self.programs.inject.test_run(TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(bytemuck::bytes_of(&XdpMd::received(ifindex, frame))),
            repeat: 1,
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        })?;
        Ok(())
    }

    /// Runs the XDP program on a frame as if received on `ifindex`, first queue, and sends it
    /// nowhere. Returns the action and the frame as the program left it.
    pub fn test_run(&self, ifindex: u32, frame: &[u8]) -> Result<(u32, Vec<u8>), LoadError> {
        // A frame that is left to the tc hook has its mark in front; one that leaves by a VLAN or a tunnel is longer.
        let more = abi::MARK_LENGTH.max(2 * TAG).max(usize::from(tunnel::OVERHEAD));
        let mut left = vec![0; more + frame.len()];
        let result = self.programs.xdp.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut left),
            ctx_in: Some(bytemuck::bytes_of(&XdpMd::received(ifindex, frame))),
            repeat: 1,
            ..TestRunOptions::new()
        })?;
        left.truncate(usize::try_from(result.data_size_out).unwrap_or(0));
        let is_marked =
            left.len() == abi::MARK_LENGTH + frame.len() && left.starts_with(&abi::MARK.to_ne_bytes());
        Ok((result.return_value, left.split_off(if is_marked { abi::MARK_LENGTH } else { 0 })))
    }

    /// The epoch in force: an earlier daemon's, which its program may still go by, until there is another.
    pub fn epoch(&self) -> Result<u32, LoadError> {
        let settings = self.settings.get(&0, 0).map_err(|source| LoadError::Map { name: "SETTINGS", source });
        Ok(settings?.epoch)
    }

    /// Makes all grants of former epochs void, and says by what a packet's way is found.
    pub fn set_epoch(&mut self, epoch: u32, by_destination: bool) -> Result<(), LoadError> {
        let of_settings = |source| LoadError::Map { name: "SETTINGS", source };
        let before = self.settings.get(&0, 0).map_err(of_settings)?;
        self.settings
            .set(0, &Settings { epoch, by_destination: by_destination.into(), ..before }, 0)
            .map_err(of_settings)
    }

    /// Readable when [`Datapath::events`] has some.
    pub fn events_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the ring buffer owns the descriptor and lives as long as `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.events.as_raw_fd()) }
    }

    /// How long the attached programs have run, while the kernel measures that.
    pub fn run_time(&self) -> Option<Duration> {
        self.programs.run_time()
    }

    /// How many instructions the verifier looked at, in all programs.
    pub fn verified_instructions(&self) -> Option<u32> {
        self.programs.verified_instructions()
    }

    /// Whether the programs were another daemon's, too: of the same build.
    pub fn programs_taken_over(&self) -> bool {
        self.programs.taken_over
    }
}

/// Ticks of [`nat_common::activity`] in so many jiffies.
#[expect(clippy::cast_possible_truncation, reason = "ticks wrap after eight years and more")]
pub const fn ticks(jiffies: u64) -> u32 {
    (jiffies >> TICK_SHIFT) as u32
}

/// A typed program of the object.
pub(super) fn program<'a, T>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    Ok(ebpf.program_mut(name).ok_or(LoadError::MissingMap(name))?.try_into()?)
}

/// Bytes of a page, the smallest ring.
fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(1 << 16)
}

/// A secret that nobody can guess.
fn new_secret() -> Result<Secret, LoadError> {
    let mut bytes = [0; size_of::<Secret>()];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| LoadError::Memory { name: "SECRET", source: error.into() })?;
    Ok(bytemuck::cast(bytes))
}

/// The secret that an earlier daemon's table was made with.
fn secret_of(pins: &Path) -> Result<Secret, LoadError> {
    let of_settings = |source| LoadError::Map { name: "SETTINGS", source };
    let map = Map::Array(MapData::from_pin(pins.join("SETTINGS")).map_err(of_settings)?);
    let settings: Array<MapData, Settings> = map.try_into().map_err(of_settings)?;
    Ok(settings.get(&0, 0).map_err(of_settings)?.secret)
}

/// Leaves the secret to the next daemon.
fn remember(settings: &mut Array<MapData, Settings>, secret: Secret) -> Result<(), LoadError> {
    let of_settings = |source| LoadError::Map { name: "SETTINGS", source };
    let before = settings.get(&0, 0).map_err(of_settings)?;
    settings.set(0, &Settings { secret, ..before }, 0).map_err(of_settings)
}
