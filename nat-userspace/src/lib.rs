//! natgw: a NAT gateway for Linux.
//!
//! In reading order: the configuration, the gateway core that judges, the kernel side it fills,
//! the sockets frames come by, the host around it, the daemon that joins them, and what people
//! and programs see of it.

pub mod api;
pub mod balance;
pub mod cli;
pub mod config;
pub mod convert;
pub mod daemon;
pub mod datapath;
pub mod doctor;
pub mod eventlog;
pub mod gateway;
mod hash;
pub mod host;
mod memory;
pub mod metrics;
pub mod pcapng;
pub mod privileges;
mod seats;
pub mod slowpath;
pub mod trace;
