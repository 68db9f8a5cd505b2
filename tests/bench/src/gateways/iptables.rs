//! The older front of Linux's NAT, where a machine has it: one rule of its own tables, and the same conntrack.

use std::{env, process::Command};

use aya::programs::ProgramInfo;

use super::{Gateway, Readiness, Setup, nftables};
use crate::{generator::Generator, topology::Lane};

/// As Debian and others call it beside the one that writes nftables' rules.
const PROGRAM: &str = "iptables-legacy";

/// iptables MASQUERADE.
pub(crate) struct Iptables;

/// Whether it is found on `PATH`.
pub(crate) fn is_there() -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(PROGRAM).is_file())
}

impl Iptables {
    pub(crate) fn start(lane: &Lane) -> anyhow::Result<Self> {
        nftables::forward(lane)?;
        Ok(Self)
    }
}

impl Gateway for Iptables {
    fn prepare(&mut self, lane: &Lane, setup: &Setup) -> anyhow::Result<Readiness> {
        if setup.service {
            return Ok(Readiness::Absent("its rules of a service are not written here".to_owned()));
        }
        lane.gateway.run(Command::new("conntrack").arg("-F"))?;
        for rule in ["-F POSTROUTING", "-A POSTROUTING -o wan -j MASQUERADE"] {
            lane.gateway.run(Command::new(PROGRAM).args(["-w", "-t", "nat"]).args(rule.split(' ')))?;
        }
        nftables::room_for(setup.flows)
    }

    fn translates(&self) -> bool {
        true
    }

    fn program(&self, _lane: &Lane, _generator: &mut Generator) -> anyhow::Result<Option<ProgramInfo>> {
        Ok(None)
    }
}
