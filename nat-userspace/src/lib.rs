//! natgw: a NAT gateway for Linux.

pub mod api;
pub mod config;
pub mod host;
