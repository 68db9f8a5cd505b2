//! The configuration: a TOML file in, a [`Config`] whose every value is already judged out.
//!
//! `file` is the shape of the file, `validate` and `rules` turn it into the types below,
//! `conflicts` looks at rules against each other.
//! What is wrong is gathered as a whole, so that one look at the answer mends the file.

#![deny(unsafe_code)]

mod address;
mod conflicts;
mod deterministic;
mod differences;
mod edit;
mod error;
mod file;
mod log;
mod ports;
mod rules;
mod selector;
mod services;
#[cfg(test)]
mod tests;
mod timeouts;
mod validate;
mod words;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::Ipv4Net;
use nat_common::delegate::LENT;

pub use self::address::{AddressPool, AddressRange, PortRange, show_prefix};
pub use self::deterministic::{Beyond, Deterministic};
pub use self::differences::differences;
pub use self::edit::{Edit, EditError};
pub use self::error::{ConfigError, Problem};
pub use self::log::{EventClass, EventClasses, Log, LogTarget};
pub use self::ports::{PortSet, Ports};
pub use self::selector::{ProtocolSet, Selector, protocol_name, protocol_number};
pub use self::services::{Check, ServerConfig, ServiceRule};
pub use self::timeouts::Timeouts;
pub use self::words::{
    AttachMode, CheckKind, Filtering, Mapping, Method, Pooling, Scheduler, Side, Unmatched,
};

/// Where `natgw run` and `natgw check` look for the configuration.
pub const DEFAULT_PATH: &str = "/etc/natgw/natgw.toml";

/// Where the daemon's control socket lies unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/natgw/natgw.sock";

/// Where maps and links are pinned unless the configuration says otherwise.
pub const DEFAULT_BPFFS: &str = "/sys/fs/bpf/natgw";

/// A valid configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// At least one inside and one outside interface, names unique.
    pub interfaces: Vec<InterfaceConfig>,
    /// Source translation in file order; the first match wins.
    pub snat: Vec<SnatRule>,
    /// One-to-one translation; neither side of one overlaps that of another.
    pub statics: Vec<StaticRule>,
    /// Port forwards in file order; the first match wins.
    pub forwards: Vec<ForwardRule>,
    /// Virtual servers; no two have one endpoint.
    pub services: Vec<ServiceRule>,
    /// How long idle state is kept.
    pub timeouts: Timeouts,
    /// How much state is kept.
    pub limits: Limits,
    /// What becomes of a packet from outside that matches no session and no rule.
    pub unmatched_outside: Unmatched,
    /// What becomes of a packet from inside that matches nothing and whose source is not reached by
    /// an inside interface.
    pub unmatched_forged: Unmatched,
    /// Where the daemon is reached and what it leaves in the file system.
    pub control: Control,
    /// Where counters are served.
    pub metrics: Metrics,
    /// What is recorded of translations.
    pub log: Log,
    /// What is allowed but hardly wanted, one sentence each, for `check` and `run` to show.
    pub warnings: Vec<String>,
}

impl Config {
    /// What is in it, by numbers.
    pub fn summary(&self) -> String {
        format!(
            "{} interfaces, {} snat, {} static, {} forward, {} service",
            self.interfaces.len(),
            self.snat.len(),
            self.statics.len(),
            self.forwards.len(),
            self.services.len()
        )
    }

    /// Reads and judges a configuration file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Ok(Self::read(path)?.1)
    }

    /// Reads a file and judges it; its text goes along.
    pub fn read(path: &Path) -> Result<(String, Self), ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::read(path, source))?;
        let config = Self::parse(&text, &path.display().to_string())?;
        Ok((text, config))
    }

    /// Judges the text of a configuration; `origin` names it in errors.
    pub fn parse(text: &str, origin: &str) -> Result<Self, ConfigError> {
        validate::config(text)
            .map_err(|problems| ConfigError::Invalid { origin: origin.to_owned(), problems })
    }
}

/// An interface natgw attaches to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceConfig {
    /// Kernel name, at most 15 bytes.
    pub name: String,
    /// Which side of the translation it is on.
    pub side: Side,
    /// How the XDP program is attached.
    pub mode: AttachMode,
    /// The largest MSS that SYNs which come or leave by it may announce.
    pub mss_clamp: Option<u16>,
    /// What VLAN it is, where the configuration says so.
    pub vlan: Option<VlanConfig>,
}

/// Of which device an interface is a VLAN.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VlanConfig {
    /// Kernel name of the device that the tagged frames pass.
    pub parent: String,
    /// The VLAN's number, 1 to 4094.
    pub number: u16,
    /// That of the provider's VLAN that it is in (IEEE 802.1ad).
    pub outer: Option<u16>,
}

/// Translates the source of what goes from inside to outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnatRule {
    /// Unique among all rules; `snat-1`, `snat-2`, … by place in the file if not given.
    pub name: String,
    /// Inside sources it holds for.
    pub source: Selector,
    /// Destinations it holds for.
    pub destination: Selector,
    /// IP protocols it holds for.
    pub protocols: ProtocolSet,
    /// Only what leaves by this interface: an inside one hides remotes from the inside.
    pub out: Option<String>,
    /// Which external addresses are used.
    pub to: SnatTarget,
    /// External ports and ICMP identifiers that may be used.
    pub ports: PortRange,
    /// Which of them, where others share the external addresses (RFC 7597).
    pub port_set: Option<PortSet>,
    /// A block of ports for each subscriber, by arithmetic.
    pub deterministic: Option<Deterministic>,
    /// How widely one external port is reused (RFC 4787 section 4.1).
    pub mapping: Mapping,
    /// Who may answer (RFC 4787 section 5); never looser than `mapping` can tell apart.
    pub filtering: Filtering,
    /// How an external address is chosen for a host.
    pub pooling: Pooling,
    /// Whether inside hosts reach each other by their external endpoints.
    pub hairpin: bool,
}

impl SnatRule {
    /// The external address and ports that are an inside host's by arithmetic.
    pub fn block(&self, inside: Ipv4Addr) -> Option<(Ipv4Addr, PortRange)> {
        match &self.to {
            SnatTarget::Pool(pool) => self.deterministic?.block(inside, pool, self.ports),
            _ => None,
        }
    }

    /// The inside host whose a port of an external address is by arithmetic.
    pub fn owner(&self, external: Ipv4Addr, port: u16) -> Option<Ipv4Addr> {
        match &self.to {
            SnatTarget::Pool(pool) => self.deterministic?.owner(external, port, pool, self.ports),
            _ => None,
        }
    }

    /// Where subscribers have blocks of ports beyond their own, if they may have any.
    pub fn beyond(&self) -> Option<Beyond> {
        match &self.to {
            SnatTarget::Pool(pool) => self.deterministic?.beyond(pool, self.ports),
            _ => None,
        }
    }

    /// The ports and identifiers that it may use.
    pub fn allowed_ports(&self) -> Ports {
        Ports { range: self.ports, set: self.port_set }
    }
}

/// External addresses of a [`SnatRule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnatTarget {
    /// The egress interface's address, whatever it is.
    Masquerade,
    /// Addresses given in the file.
    Pool(AddressPool),
    /// No translation: an exemption from later rules.
    None,
    /// No translation, but a session: only what belongs to one comes back in.
    Track,
}

impl SnatTarget {
    /// Whether addresses change.
    pub fn translates(&self) -> bool {
        matches!(self, Self::Masquerade | Self::Pool(_))
    }
}

/// Maps a prefix to another of the same length, address by address, without state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticRule {
    /// Unique among all rules; `static-1`, … if not given.
    pub name: String,
    /// What the outside sees; a single address is a /32.
    pub external: Ipv4Net,
    /// What is inside; as long as `external`.
    pub internal: Ipv4Net,
}

/// Sends what comes to an external endpoint to an inside host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardRule {
    /// Unique among all rules; `forward-1`, … if not given.
    pub name: String,
    /// TCP, UDP or both.
    pub protocols: ProtocolSet,
    /// Where the packets come in.
    pub external: ForwardAddress,
    /// At which ports.
    pub external_ports: PortRange,
    /// The host that gets them.
    pub internal: Ipv4Addr,
    /// Its ports, as many as the external ones: port n of the one is port n of the other.
    pub internal_ports: PortRange,
    /// Remotes it holds for.
    pub source: Selector,
    /// Whether the remote appears inside as the gateway's own inside address.
    pub masquerade_source: bool,
}

/// The external address of a [`ForwardRule`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ForwardAddress {
    /// A fixed one.
    Address(Ipv4Addr),
    /// Whatever address this outside interface has.
    Interface(String),
}

/// Bounds on state. Zero means no bound, except for `sessions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sessions altogether, 1 to 67 108 864.
    pub sessions: u32,
    /// Mappings altogether.
    pub mappings: u32,
    /// Inside addresses that have sessions.
    pub sources: u32,
    /// Sessions of one inside address.
    pub sessions_per_source: u32,
    /// New sessions of one inside address in a second.
    pub new_per_second_per_source: u32,
    /// Sessions that each CPU may open before the daemon has taken note of them.
    pub delegated: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 1_048_576,
            mappings: 0,
            sources: 0,
            sessions_per_source: 0,
            new_per_second_per_source: 0,
            delegated: LENT,
        }
    }
}

/// Counters for Prometheus.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Where `/metrics` is served by HTTP; nowhere if none.
    pub listen: Option<SocketAddr>,
}

/// Where the daemon is reached and where it pins its maps and links. Both paths are absolute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// The Unix socket of the control interface, at most 107 bytes.
    pub socket: PathBuf,
    /// A directory on a BPF file system.
    pub bpffs: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into(), bpffs: DEFAULT_BPFFS.into() }
    }
}
