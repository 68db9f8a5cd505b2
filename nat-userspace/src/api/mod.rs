//! The control interface: one request a connection on a Unix socket, JSON lines both ways.
//!
//! The client sends `{"version":1,"request":{"verb":"session-list","filter":{}}}`.
//! The daemon answers with any number of `{"row":{…}}` and closes with `{"done":{…}}` or
//! `{"error":{"message":"…","hint":"…"}}`.
//! Rows are sent as they are found: neither side ever holds a whole listing.

#![deny(unsafe_code)]

mod client;
mod filter;
mod peer;
mod protocol;
mod rules;
mod server;
#[cfg(test)]
mod tests;
mod top;

pub use self::client::{Client, ClientError};
pub use self::filter::{EndpointFilter, SessionFilter};
pub use self::protocol::{
    ApiError, Counted, Deleted, Direction, DropRow, InterfaceStatus, Metrics, PacketTotals, PoolRow,
    Reloaded, Request, Row, RuleCounts, RuleRow, ServerRow, ServiceRow, SessionRow, StatusReport, VERSION,
};
pub use self::rules::rule_rows;
pub use self::server::{Handler, Reply, Server, ServerError};
pub use self::top::{CpuUse, PacketRates, TopDrop, TopReport, TopRow, Traffic};
