//! What natgw's privileged tests are made of: packets, a lab of network namespaces, taps on its wires, and the
//! gateway under test.
//!
//! A test reads as an experiment: build a [`lab::Lab`], start a [`gateway::Gateway`] in it, send a
//! [`packet::Packet`] through a [`wire::Tap`] and say what has to arrive at another. The judgement is
//! independent: [`checksum`] and [`decode`] share no code with natgw.

pub mod checksum;
pub mod decode;
#[cfg(test)]
mod documents;
pub mod gateway;
pub mod host;
pub mod invariants;
pub mod lab;
pub mod leaks;
pub mod packet;
pub mod pcap;
pub mod prometheus;
pub mod router;
pub mod torture;
pub mod wire;

pub use decode::Decoded;
pub use gateway::Gateway;
pub use host::Host;
pub use lab::Lab;
pub use packet::Packet;
pub use prometheus::Metrics;
pub use wire::Tap;
