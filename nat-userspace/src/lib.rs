//! natgw: a NAT gateway for Linux.

pub mod host;
