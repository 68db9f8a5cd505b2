//! What goes over the control socket. Field names are a promise to programs that read `--json`.

use std::borrow::Cow;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{PacketRates, SessionFilter, TopReport};
use crate::eventlog::Record;
use crate::trace::TraceLine;

/// The version of the protocol; a daemon refuses requests of another.
pub const VERSION: u32 = 1;

/// The line a client sends.
#[derive(Deserialize, Serialize)]
pub(super) struct Envelope<T> {
    pub(super) version: u32,
    pub(super) request: T,
}

/// A line the daemon sends.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Line<R, D> {
    Row(R),
    Done(D),
    Error(ApiError),
}

/// A [`Line`] whose content is looked at later, by whoever knows its type.
pub(super) type RawLine<'line> = Line<&'line RawValue, &'line RawValue>;

/// What a client may ask for.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Done is a [`StatusReport`].
    Status,
    /// Rows are [`SessionRow`]s, done is a [`Counted`].
    SessionList {
        /// Which sessions.
        #[serde(default)]
        filter: SessionFilter,
    },
    /// Done is a [`Counted`].
    SessionCount {
        /// Which sessions.
        #[serde(default)]
        filter: SessionFilter,
    },
    /// Done is a [`Deleted`]. A filter that names nothing is refused: that is `SessionFlush`.
    SessionDelete {
        /// Which sessions.
        filter: SessionFilter,
    },
    /// Deletes all sessions; done is a [`Deleted`].
    SessionFlush,
    /// Rows are [`Record`]s of sessions that begin, are established, close and are over, as they do; the answer does not end.
    SessionWatch {
        /// Which sessions.
        #[serde(default)]
        filter: SessionFilter,
    },
    /// Rows are [`TraceLine`]s of packets, as they pass; the answer does not end.
    Trace {
        /// Which packets, in tcpdump's words; empty for all.
        #[serde(default)]
        filter: String,
        /// Bytes of each frame that are sent along; none at 0.
        #[serde(default)]
        snap: u32,
        /// Packets a second; 0 for all.
        #[serde(default)]
        rate: u32,
    },
    /// Rows are [`TopReport`]s, one an interval; the answer does not end.
    Top {
        /// Milliseconds between two of them.
        interval: u32,
        /// At most so many hosts, remotes and rules.
        most: u32,
    },
    /// Rows are [`PoolRow`]s.
    PoolList,
    /// Rows are [`RuleRow`]s.
    RuleList,
    /// Adds a rule. Done is a [`Reloaded`], here and below.
    RuleAdd {
        /// `snat`, `static` or `forward`.
        kind: String,
        /// Its keys, as they stand in the configuration (TOML).
        keys: String,
        /// The ID or name of the rule that it is to be tried before; the last of its kind if none is named.
        #[serde(default)]
        before: Option<String>,
        /// Whether the configuration file is changed, too.
        #[serde(default)]
        save: bool,
    },
    /// Deletes a rule.
    RuleDelete {
        /// Its ID or name.
        rule: String,
        /// Whether the configuration file is changed, too.
        #[serde(default)]
        save: bool,
    },
    /// Rows are [`ServiceRow`]s.
    ServiceList,
    /// Changes a server's share; 0 drains it. Done is a [`ServiceRow`], here and below.
    ServiceWeight {
        /// The service's name.
        service: String,
        /// The server's endpoint.
        server: SocketAddrV4,
        /// Its share from now on.
        weight: u32,
    },
    /// Adds a server.
    ServiceAdd {
        /// The service's name.
        service: String,
        /// The server's endpoint.
        server: SocketAddrV4,
        /// Its share.
        weight: u32,
    },
    /// Takes a server out; its connections are reset.
    ServiceRemove {
        /// The service's name.
        service: String,
        /// The server's endpoint.
        server: SocketAddrV4,
    },
    /// Done is a [`Metrics`].
    Metrics,
    /// Reads the configuration file anew; done is a [`Reloaded`].
    Reload,
}

impl Request {
    /// Whether the answer goes on until the client goes.
    pub fn is_endless(&self) -> bool {
        matches!(self, Self::SessionWatch { .. } | Self::Trace { .. } | Self::Top { .. })
    }
}

/// A row of a listing, as a handler hands it over.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Row<'row> {
    /// Of [`Request::SessionList`].
    Session(&'row SessionRow),
    /// Of [`Request::SessionWatch`].
    Event(&'row Record),
    /// Of [`Request::Trace`].
    Trace(&'row TraceLine),
    /// Of [`Request::Top`].
    Top(&'row TopReport),
    /// Of [`Request::PoolList`].
    Pool(&'row PoolRow),
    /// Of [`Request::RuleList`].
    Rule(&'row RuleRow),
    /// Of [`Request::ServiceList`].
    Service(&'row ServiceRow),
}

/// A session. For ICMP the identifier stands in the port's place; protocols without ports have 0.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct SessionRow {
    /// `tcp`, `udp`, `icmp` or a number.
    pub protocol: Cow<'static, str>,
    /// The inside host's endpoint.
    pub inside: SocketAddrV4,
    /// What it looks like outside.
    pub outside: SocketAddrV4,
    /// The remote endpoint.
    pub remote: SocketAddrV4,
    /// The remote endpoint as the inside host sees it.
    pub remote_inside: SocketAddrV4,
    /// Who began.
    pub direction: Direction,
    /// For TCP `opening`, `established`, `closing`, `reset`; else `active`.
    pub state: Cow<'static, str>,
    /// Whole seconds until it ends if nothing more comes.
    pub expires_in: u64,
    /// Whole seconds since it began.
    pub age: u64,
    /// Packets from inside to outside.
    pub packets_out: u64,
    /// Bytes from inside to outside, IP headers included.
    pub bytes_out: u64,
    /// Packets from outside to inside.
    pub packets_in: u64,
    /// Bytes from outside to inside, IP headers included.
    pub bytes_in: u64,
    /// The name of the rule that made it.
    pub rule: String,
    /// Whom its mapping lets in, in the words of the configuration; absent where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtering: Option<Cow<'static, str>>,
}

/// Who began a session.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The inside host.
    Outbound,
    /// The remote.
    Inbound,
}

impl Direction {
    /// The word of the listings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outbound => "outbound",
            Self::Inbound => "inbound",
        }
    }
}

/// How many sessions matched.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Counted {
    /// That many.
    pub sessions: u64,
}

/// How many sessions were deleted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// That many.
    pub deleted: u64,
}

/// Counters for Prometheus.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Metrics {
    /// In its text format, version 0.0.4.
    pub text: String,
}

/// What a reload did.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// Sessions that live on.
    pub kept: u64,
    /// Sessions that the new rules do not allow.
    pub ended: u64,
    /// What is different from before; a few words each.
    #[serde(default)]
    pub changes: Vec<String>,
    /// The file that was changed, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
    /// What is allowed but hardly wanted, and what waits for a restart; one sentence each.
    pub warnings: Vec<String>,
}

/// The daemon as a whole.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct StatusReport {
    /// Of the daemon's package.
    pub version: String,
    /// Of the daemon.
    pub pid: u32,
    /// Whole seconds since the daemon started.
    pub uptime: u64,
    /// All configured ones, attached or not.
    pub interfaces: Vec<InterfaceStatus>,
    /// How many rules of each kind.
    pub rules: RuleCounts,
    /// Sessions there are.
    pub sessions: u64,
    /// Sessions there may be.
    pub sessions_limit: u64,
    /// Packets that wait for a neighbour, and fragments for their first.
    pub waiting: u64,
    /// External ports in use: several sessions may hold one.
    pub mappings: u64,
    /// Ports of each external address.
    pub pools: Vec<PoolRow>,
    /// Packets by what became of them.
    pub packets: PacketTotals,
    /// The same a second, over the last second or two; over longer where the daemon had nothing to do.
    pub rates: PacketRates,
    /// Reasons that have dropped at least one packet.
    pub drops: Vec<DropRow>,
    /// What is wrong with the host or the configuration, one sentence each.
    pub warnings: Vec<String>,
}

/// An interface of the configuration.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct InterfaceStatus {
    /// Kernel name.
    pub name: String,
    /// `inside` or `outside`.
    pub side: String,
    /// Kernel index; 0 while there is no such interface.
    pub index: u32,
    /// How the XDP program is attached: `native` or `generic`.
    pub mode: String,
    /// Receive queues served.
    pub queues: u32,
    /// Its IPv4 addresses.
    pub addresses: Vec<Ipv4Addr>,
    /// `up`, `down` or `missing`.
    pub state: String,
}

/// How many rules there are.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct RuleCounts {
    /// `[[snat]]`
    pub snat: u64,
    /// `[[static]]`
    pub r#static: u64,
    /// `[[forward]]`
    pub forward: u64,
    /// `[[service]]`
    #[serde(default)]
    pub service: u64,
}

/// Packets since the fast path was attached.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct PacketTotals {
    /// Rewritten and sent on.
    pub translated: u64,
    /// Left to the kernel's stack.
    pub passed: u64,
    /// Sent up to the daemon for a decision.
    pub punted: u64,
    /// Dropped, with a reason.
    pub dropped: u64,
}

/// Packets dropped for one reason.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DropRow {
    /// A stable name.
    pub reason: String,
    /// What it means.
    pub description: String,
    /// How many.
    pub packets: u64,
}

/// The ports of one external address and protocol.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct PoolRow {
    /// The external address.
    pub address: Ipv4Addr,
    /// The interface that has it, if one does.
    pub interface: Option<String>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: Cow<'static, str>,
    /// Ports held by a mapping.
    pub used: u64,
    /// Ports that a new mapping may take.
    pub free: u64,
    /// Ports that were freed and rest before they are used anew.
    pub quarantined: u64,
}

/// A virtual server.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServiceRow {
    /// Given or made up.
    pub name: String,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// Where clients reach it, as in the configuration.
    pub external: String,
    /// As in the configuration.
    pub method: String,
    /// As in the configuration.
    pub scheduler: String,
    /// Whole seconds that a client which has gone keeps its server.
    pub persistence: u64,
    /// The kind of its health check.
    pub check: String,
    /// Its servers, in order.
    pub servers: Vec<ServerRow>,
}

/// A server of a virtual server.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct ServerRow {
    /// Its own endpoint.
    pub address: SocketAddrV4,
    /// Its share.
    pub weight: u32,
    /// `up`, `down` or `draining`.
    pub state: String,
    /// Whole seconds since its checks found it up, or down.
    pub since: u64,
    /// How often it went down.
    pub falls: u64,
    /// Connections it has now.
    pub active: u64,
    /// Connections it was given.
    pub connections: u64,
    /// New connections a second, over the last five.
    pub rate: f64,
    /// Packets to the server.
    pub packets_in: u64,
    /// Bytes to the server, IP headers included.
    pub bytes_in: u64,
    /// Packets from the server that came by the gateway.
    pub packets_out: u64,
    /// Bytes from the server that came by the gateway, IP headers included.
    pub bytes_out: u64,
}

/// A rule. What a kind does not have is absent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct RuleRow {
    /// Counted from 1 in the order rules are tried.
    pub id: u32,
    /// `static`, `forward`, `service` or `snat`.
    pub kind: String,
    /// Given or made up.
    pub name: String,
    /// Sources it holds for; `any` for all.
    pub source: String,
    /// Destinations it holds for, as they are before translation.
    pub destination: String,
    /// `any` or names and numbers.
    pub protocol: String,
    /// The interface it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out: Option<String>,
    /// What the address becomes.
    pub to: String,
    /// External ports it may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<String>,
    /// As in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mapping: Option<String>,
    /// As in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filtering: Option<String>,
    /// As in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pooling: Option<String>,
    /// As in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<bool>,
    /// As in the configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub masquerade_source: Option<bool>,
    /// First packets that matched: sessions it has opened, ever.
    pub packets: u64,
    /// Sessions it has now.
    pub sessions: u64,
}

/// Why a request failed.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What was tried, on what, why it failed.
    pub message: String,
    /// What to do.
    pub hint: String,
}

impl ApiError {
    /// An error with what to do about it.
    pub fn new(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

/// The client went away or does not read: it will hardly see this, the log may.
impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> Self {
        Self::new(format!("send the answer: {error}"), "the client stopped reading; ask again")
    }
}
