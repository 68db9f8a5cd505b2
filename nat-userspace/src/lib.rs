//! natgw: a NAT gateway for Linux.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod host;
pub mod gateway;
pub mod datapath;
