//! The bare XDP router: parse, `bpf_fib_lookup`, TTL, MACs, redirect.

use aya::programs::ProgramInfo;

use super::{Gateway, Readiness, Setup};
use crate::{
    generator::Generator,
    topology::{LAN_INDEX, Lane, WAN_INDEX},
};

/// The router of nat-bench-ebpf.
pub(crate) struct Bare;

impl Bare {
    pub(crate) fn start(lane: &Lane, generator: &mut Generator) -> anyhow::Result<Self> {
        // The FIB helper answers for interfaces that forward only.
        lane.gateway.sysctl("ipv4/ip_forward", "1")?;
        let _entered = lane.gateway.enter()?;
        for (interface, ifindex) in [("lan", LAN_INDEX), ("wan", WAN_INDEX)] {
            generator.route_by(ifindex)?;
            generator.attach("route", interface)?;
        }
        Ok(Self)
    }
}

impl Gateway for Bare {
    fn prepare(&mut self, _lane: &Lane, setup: &Setup) -> anyhow::Result<Readiness> {
        Ok(if setup.needs_nat {
            Readiness::Absent("a router knows no flows".to_owned())
        } else {
            Readiness::Ready
        })
    }

    fn translates(&self) -> bool {
        false
    }

    fn program(&self, _lane: &Lane, generator: &mut Generator) -> anyhow::Result<Option<ProgramInfo>> {
        generator.program("route").map(Some)
    }
}
