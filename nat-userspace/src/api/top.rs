//! What `natgw top` shows: rates over an interval, and who has most of them.

use serde::{Deserialize, Serialize};

/// The gateway over an interval. Rates are a second's.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TopReport {
    /// UTC, to the second.
    pub time: String,
    /// Seconds that the rates are taken over.
    pub interval: f64,
    /// Whole seconds since the daemon started.
    pub uptime: u64,
    /// Sessions there are.
    pub sessions: u64,
    /// Sessions there may be.
    pub sessions_limit: u64,
    /// Sessions opened.
    pub new: f64,
    /// Packets by what became of them.
    pub packets: PacketRates,
    /// What sessions carried, in all.
    pub traffic: Traffic,
    /// What it cost.
    pub cpu: CpuUse,
    /// Inside hosts, the busiest first.
    pub hosts: Vec<TopRow>,
    /// Remotes, likewise.
    pub remotes: Vec<TopRow>,
    /// Rules, likewise.
    pub rules: Vec<TopRow>,
    /// Reasons that have dropped packets, the most frequent first.
    pub drops: Vec<TopDrop>,
}

/// Packets a second.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct PacketRates {
    /// Rewritten and sent on.
    pub translated: f64,
    /// Left to the kernel's stack.
    pub passed: f64,
    /// Sent up to the daemon for a decision.
    pub punted: f64,
    /// Dropped.
    pub dropped: f64,
}

/// Packets and bits a second, from the inside and to it. IP headers are included, Ethernet's are not.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Traffic {
    /// From inside to outside.
    pub packets_out: f64,
    /// From outside to inside.
    pub packets_in: f64,
    /// From inside to outside.
    pub bits_out: f64,
    /// From outside to inside.
    pub bits_in: f64,
}

/// Percent of one CPU.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct CpuUse {
    /// The programs in the kernel; absent where it does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fast_path: Option<f64>,
    /// The daemon.
    pub slow_path: f64,
}

/// A host, a remote or a rule.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TopRow {
    /// Its address or name.
    pub name: String,
    /// Sessions it has.
    pub sessions: u64,
    /// Sessions opened a second.
    pub new: f64,
    /// What they carried.
    #[serde(flatten)]
    pub traffic: Traffic,
}

/// Drops for a reason.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct TopDrop {
    /// A stable name.
    pub reason: String,
    /// What it means.
    pub description: String,
    /// Packets a second.
    pub rate: f64,
    /// Packets since the fast path was attached.
    pub packets: u64,
}
