//! natgw's judgement, shared word for word by the XDP program and the daemon.
//!
//! This crate never allocates, blocks, reads a clock or touches a map: it is told what it needs
//! and answers. What it says of a frame is therefore the same in the kernel and in userspace,
//! and can be tested, fuzzed and compared without either.
//!
//! Addresses and ports are kept as they lie on the wire (network byte order) unless a name says
//! `host`: an IPv4 address is a `u32` whose *memory* is the four octets in order.
#![no_std]

pub mod abi;
pub mod activity;
pub mod checksum;
pub mod classify;
pub mod delegate;
pub mod flow;
pub mod frame;
pub mod held;
pub mod next_hop;
pub mod parse;
pub mod reason;
pub mod report;
pub mod search;
pub mod shed;
pub mod table;
pub mod tcp;
pub mod trace;
pub mod translate;
pub mod tunnel;
pub mod vlan;
pub mod wire;

pub use flow::{Direction, FlowKey, FlowValue, Realm};
pub use parse::{Parsed, parse};
pub use reason::Reason;
