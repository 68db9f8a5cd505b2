//! natgw: a NAT gateway for Linux.

pub mod config;
pub mod host;
pub mod gateway;
pub mod datapath;
