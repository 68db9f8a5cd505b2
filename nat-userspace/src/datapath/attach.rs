//! Attaching: XDP natively where the driver can, on skbs where it cannot; the tc program beside it.
//! Links are pinned, so that the fast path goes on when the daemon is gone, and replaced in place,
//! so that a new daemon's programs take over between two packets.

use std::io;
use std::path::{Path, PathBuf};

use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::tc::{SchedClassifierLink, TcAttachType};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramError, XdpMode};
use nat_common::abi;

use super::filters;
use super::migrate::Earlier;
use super::object::{Datapath, LoadError};
use super::programs::Programs;
use crate::config::AttachMode;
use crate::hash::HashSet;

/// `f_type` of a bpffs.
const BPF_FS_MAGIC: u64 = 0xcafe_4a11;

/// How an interface was attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver.
    Native,
    /// On skbs.
    Generic,
}

/// Why an interface could not be attached.
#[derive(Debug, thiserror::Error)]
#[error("attach {what} to {interface}: {source}")]
pub struct AttachError {
    what: &'static str,
    interface: String,
    source: Box<Cause>,
}

/// What the kernel or aya said.
#[derive(Debug, thiserror::Error)]
pub(super) enum Cause {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error(transparent)]
    Pin(#[from] aya::pin::PinError),
}

impl AttachError {
    /// Whether another XDP program is attached already.
    pub fn is_busy(&self) -> bool {
        matches!(&*self.source, Cause::Program(ProgramError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::EBUSY))
    }
}

impl Datapath {
    /// Attaches the programs to an interface, in place of those of an earlier daemon.
    pub fn attach(&mut self, name: &str, ifindex: u32, mode: AttachMode) -> Result<Attached, AttachError> {
        let at = |what| {
            move |source: Cause| AttachError { what, interface: name.to_owned(), source: source.into() }
        };
        // The tc program first: what XDP leaves to it must not find the hook empty.
        self.attach_tc(ifindex, "tc", TcAttachType::Ingress).map_err(at("the tc program"))?;
        self.attach_own(name, ifindex)?;
        match mode {
            AttachMode::Native => {
                self.attach_xdp(ifindex, XdpMode::Driver).map_err(at("XDP natively (mode = \"native\")"))?;
                Ok(Attached::Native)
            }
            AttachMode::Generic => {
                self.attach_xdp(ifindex, XdpMode::Skb).map_err(at("XDP on skbs (mode = \"generic\")"))?;
                Ok(Attached::Generic)
            }
            AttachMode::Auto => match self.attach_xdp(ifindex, XdpMode::Driver) {
                Ok(()) => Ok(Attached::Native),
                Err(error) => {
                    let error = at("XDP natively")(error);
                    if error.is_busy() {
                        return Err(error);
                    }
                    tracing::warn!(
                        interface = name,
                        %error,
                        "no native XDP here: attached on skbs instead, which costs about four times as much a packet"
                    );
                    self.attach_xdp(ifindex, XdpMode::Skb).map_err(at("XDP on skbs"))?;
                    Ok(Attached::Generic)
                }
            },
        }
    }

    /// Attaches what watches the gateway's own packets: to a VLAN's device as well, where they have no tag yet.
    pub fn attach_own(&mut self, name: &str, ifindex: u32) -> Result<(), AttachError> {
        self.attach_tc(ifindex, "tc-own", TcAttachType::Egress).map_err(|source| AttachError {
            what: "the tc program of the gateway's own packets",
            interface: name.to_owned(),
            source: source.into(),
        })
    }

    fn attach_xdp(&mut self, ifindex: u32, mode: XdpMode) -> Result<(), Cause> {
        let kind = if matches!(mode, XdpMode::Skb) { "xdp-generic" } else { "xdp" };
        let pin = self.link_pin(kind, ifindex);
        let xdp = &mut self.programs.xdp;
        if let Ok(pinned) = PinnedLink::from_pin(&pin) {
            // A pin whose interface is gone gives a link that cannot be updated.
            let link = XdpLink::try_from(FdLink::from(pinned))?;
            if let Ok(id) = xdp.attach_to_link(link) {
                let link = FdLink::try_from(xdp.take_link(id)?)?;
                self.links.insert(pin, link);
                return Ok(());
            }
            let _ = std::fs::remove_file(&pin);
        }
        let id = xdp.attach(ifindex, mode)?;
        let link = FdLink::try_from(xdp.take_link(id)?)?;
        self.links.insert(pin.clone(), link.pin(&pin)?.into());
        Ok(())
    }

    fn attach_tc(&mut self, ifindex: u32, kind: &str, hook: TcAttachType) -> Result<(), Cause> {
        let pin = self.link_pin(kind, ifindex);
        let Programs { tc, own, .. } = &mut self.programs;
        let tc = if matches!(hook, TcAttachType::Egress) { own } else { tc };
        if filters::are_needed() {
            return Ok(filters::attach(tc, ifindex, hook, &self.pins)?);
        }
        if let Ok(pinned) = PinnedLink::from_pin(&pin) {
            let link = SchedClassifierLink::try_from(FdLink::from(pinned))?;
            if let Ok(id) = tc.attach_to_link(link) {
                let link = FdLink::try_from(tc.take_link(id)?)?;
                self.links.insert(pin, link);
                return Ok(());
            }
            let _ = std::fs::remove_file(&pin);
        }
        let id = tc.attach(ifindex, hook)?;
        let link = FdLink::try_from(tc.take_link(id)?)?;
        self.links.insert(pin.clone(), link.pin(&pin)?.into());
        Ok(())
    }

    /// How an interface is attached, by this daemon or an earlier one.
    pub fn attached(&self, ifindex: u32) -> Option<Attached> {
        let kinds = [("xdp", Attached::Native), ("xdp-generic", Attached::Generic)];
        let pinned = kinds.into_iter().find(|(kind, _)| self.link_pin(kind, ifindex).exists());
        pinned.map(|(_, attached)| attached)
    }

    fn link_pin(&self, kind: &str, ifindex: u32) -> PathBuf {
        self.pins.join(format!("link-{kind}-{ifindex}"))
    }

    /// Takes the programs off an interface.
    pub fn detach(&mut self, ifindex: u32) {
        for kind in ["xdp", "xdp-generic", "tc", "tc-own"] {
            let pin = self.link_pin(kind, ifindex);
            let _ = std::fs::remove_file(&pin);
            self.links.remove(&pin);
        }
        if filters::are_needed() {
            filters::detach(ifindex, &self.pins);
        }
    }

    /// Takes the programs off all interfaces but these, whoever attached them.
    pub fn detach_all_but(&mut self, interfaces: &HashSet<u32>) {
        for path in pinned_links(&self.pins) {
            let ifindex = path.to_str().and_then(|path| path.rsplit_once('-')?.1.parse().ok());
            if let Some(ifindex) = ifindex.filter(|ifindex| !interfaces.contains(ifindex)) {
                self.detach(ifindex);
            }
        }
    }

    /// Takes every program off and every map away.
    pub fn remove(mut self) {
        self.links.clear();
        remove_pins(&self.pins);
        let _ = std::fs::remove_dir(&self.pins);
        // A mount point, or what holds other things, stays.
        let _ = self.pins.parent().map(std::fs::remove_dir);
    }
}

/// The folder for this layout's pins, on a bpffs that is mounted if it is not yet; and the fast path of another layout
/// that is attached.
pub(super) fn prepare_pins(bpffs: &Path) -> Result<(PathBuf, Option<Earlier>), LoadError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| LoadError::Pins { path, source }
    };
    if !is_bpffs(bpffs) {
        // Below an existing bpffs a folder will do; elsewhere it has to be mounted. In sysfs no folder can be made: there it
        // is mounted at its usual place first, where nobody has done so yet, as in `ip netns exec`.
        if let (Err(_), Some(place)) = (std::fs::create_dir_all(bpffs), bpffs.parent()) {
            if place.is_dir() && !is_bpffs(place) {
                mount(place).map_err(failed(place))?;
            }
            std::fs::create_dir_all(bpffs).map_err(failed(bpffs))?;
        }
        if !is_bpffs(bpffs) {
            mount(bpffs).map_err(failed(bpffs))?;
        }
    }
    let earlier = other_layout(bpffs)
        .map(|(path, layout)| Earlier::of(path.clone()).ok_or(LoadError::OtherLayout { path, layout }));
    let earlier = earlier.transpose()?;
    let pins = bpffs.join(format!("v{}", abi::VERSION));
    std::fs::create_dir_all(&pins).map_err(failed(&pins))?;
    Ok((pins, earlier))
}

/// A fast path of another version of natgw that is attached, and must not be cut off.
fn other_layout(bpffs: &Path) -> Option<(PathBuf, u32)> {
    other_layouts(bpffs).into_iter().find(|(path, _)| !pinned_links(path).is_empty())
}

/// The folders of other layouts' pins.
pub(super) fn other_layouts(bpffs: &Path) -> Vec<(PathBuf, u32)> {
    let entries = std::fs::read_dir(bpffs).into_iter().flatten().flatten();
    let layouts = entries.filter_map(|entry| {
        let layout = entry.file_name().to_str()?.strip_prefix('v')?.parse().ok()?;
        (layout != abi::VERSION).then(|| (entry.path(), layout))
    });
    layouts.collect()
}

/// The pins of links.
pub(super) fn pinned_links(pins: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(pins).into_iter().flatten().flatten();
    let links = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("link-"));
    links.map(|entry| entry.path()).collect()
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path)
        .is_ok_and(|stat| u64::try_from(stat.f_type).is_ok_and(|kind| kind == BPF_FS_MAGIC))
}

fn mount(path: &Path) -> io::Result<()> {
    rustix::mount::mount("bpf", path, "bpf", rustix::mount::MountFlags::empty(), c"mode=0700")?;
    Ok(())
}

/// Removes what is pinned: links first, so that no program runs on maps that are gone.
pub(super) fn remove_pins(pins: &Path) {
    let Ok(entries) = std::fs::read_dir(pins) else { return };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort_by_key(|path| {
        !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-"))
    });
    for path in paths {
        let _ = std::fs::remove_file(path);
    }
}
