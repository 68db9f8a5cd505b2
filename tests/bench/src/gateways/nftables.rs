//! Linux's own NAT: one masquerade rule, or one that spreads over servers, and nothing else in the way.

use std::{fs, process::Command};

use anyhow::Context as _;
use aya::programs::ProgramInfo;

use super::{
    Gateway, Readiness, Setup,
    memory::{self, Memory},
};
use crate::{generator::Generator, topology::Lane};

/// nftables masquerade.
pub(crate) struct Nftables;

impl Nftables {
    pub(crate) fn start(lane: &Lane) -> anyhow::Result<Self> {
        forward(lane)?;
        Ok(Self)
    }
}

impl Gateway for Nftables {
    fn prepare(&mut self, lane: &Lane, setup: &Setup) -> anyhow::Result<Readiness> {
        lane.gateway.run(Command::new("conntrack").arg("-F"))?;
        let chain = if setup.service { SPREAD } else { MASQUERADE };
        lane.gateway.run(
            Command::new("nft").arg(format!("table ip nat; delete table ip nat; table ip nat {{ {chain} }}")),
        )?;
        room_for(setup.flows)
    }

    fn translates(&self) -> bool {
        true
    }

    /// Conntrack's objects and their extensions are the kernel's unreclaimable memory, and so is what others have.
    fn memory(&self) -> anyhow::Result<Memory> {
        memory::of_kernel()
    }

    fn program(&self, _lane: &Lane, _generator: &mut Generator) -> anyhow::Result<Option<ProgramInfo>> {
        Ok(None)
    }
}

/// Has a namespace forward, with a conntrack that verifies no checksums.
pub(super) fn forward(lane: &Lane) -> anyhow::Result<()> {
    for (key, value) in [
        ("ipv4/ip_forward", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/lan/rp_filter", "0"),
        // A NIC verifies checksums in passing; frames made here come by none, and natgw verifies none.
        ("netfilter/nf_conntrack_checksum", "0"),
        // Flows are to live as long as a figure takes: none is opened twice.
        ("netfilter/nf_conntrack_udp_timeout", "3600"),
        ("netfilter/nf_conntrack_udp_timeout_stream", "3600"),
    ] {
        lane.gateway.sysctl(key, value)?;
    }
    Ok(())
}

/// Whether conntrack takes so many flows.
pub(super) fn room_for(flows: u64) -> anyhow::Result<Readiness> {
    let (most, buckets) = (most_flows()?, limit("nf_conntrack_buckets")?);
    if flows > most {
        // Both are the whole machine's, so the bench leaves them alone.
        return Ok(Readiness::Absent(format!(
            "conntrack is limited to {most} flows, this takes {flows}; to measure it: \
             sysctl -w net.netfilter.nf_conntrack_max={flows} net.netfilter.nf_conntrack_buckets={flows}"
        )));
    }
    if flows > buckets {
        eprintln!("netfilter: {buckets} conntrack buckets for {flows} flows make it slower than it could be");
    }
    Ok(Readiness::Ready)
}

const MASQUERADE: &str =
    "chain postrouting { type nat hook postrouting priority srcnat; oifname \"wan\" masquerade; };";
const SPREAD: &str = "chain prerouting { type nat hook prerouting priority dstnat; ip daddr 198.18.0.0 udp dport 9 \
     dnat to numgen inc mod 3 map { 0 : 198.51.100.1, 1 : 198.51.100.2, 2 : 198.51.100.3 }; };";

/// The flows that conntrack takes on this machine.
pub(crate) fn most_flows() -> anyhow::Result<u64> {
    limit("nf_conntrack_max")
}

fn limit(name: &str) -> anyhow::Result<u64> {
    let path = format!("/proc/sys/net/netfilter/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.trim().parse().with_context(|| format!("{path}: {text}"))
}
