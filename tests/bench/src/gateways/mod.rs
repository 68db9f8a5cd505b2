//! The gateways under test, each in its own lane.

mod bare;
mod iptables;
mod memory;
mod natgw;
mod nftables;

use anyhow::bail;
use aya::programs::ProgramInfo;

pub(crate) use self::{
    iptables::is_there as has_iptables,
    memory::Memory,
    natgw::Natgw,
    nftables::{Nftables, most_flows},
};
use crate::{Contender, generator::Generator, topology::Lane};

/// Ports for inside endpoints; nftables always shares them between remotes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    /// One each, of one address.
    OfOneAddress,
    /// Of one address, shared between remotes: for more endpoints than it has ports.
    Shared,
    /// One each, of several addresses.
    OfPool,
}

/// What a gateway has to be ready for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setup {
    /// Flows there are at most at a time.
    pub(crate) flows: u64,
    /// Where natgw has their ports from.
    pub(crate) ports: Ports,
    /// Whether natgw's fast path may open flows by itself.
    pub(crate) delegated: bool,
    /// Whether it is about what a router without NAT does not do.
    pub(crate) needs_nat: bool,
    /// Whether flows are connections of a virtual server, spread over three servers, and nothing is masqueraded.
    pub(crate) service: bool,
    /// Seconds that idle UDP lives.
    pub(crate) timeout: u32,
    /// natgw's limits for one inside address: sessions, and new ones a second; 0 is none.
    pub(crate) limits: (u32, u32),
    /// natgw's `mode` of both interfaces.
    pub(crate) mode: &'static str,
}

impl Setup {
    /// For so many flows that share few inside endpoints, established and forwarded.
    pub(crate) const fn of(flows: u64) -> Self {
        Self {
            flows,
            ports: Ports::OfOneAddress,
            delegated: true,
            needs_nat: false,
            service: false,
            timeout: 3600,
            limits: (0, 0),
            mode: "native",
        }
    }
}

/// Whether a gateway takes part in a figure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// It does.
    Ready,
    /// It cannot, and this is why.
    Absent(String),
}

/// Something that forwards from `lan` to `wan`.
pub(crate) trait Gateway {
    /// Makes it ready for a figure, with no flows.
    fn prepare(&mut self, lane: &Lane, setup: &Setup) -> anyhow::Result<Readiness>;

    /// Whether sources are translated on the way.
    fn translates(&self) -> bool;

    /// The processes that work for it: their time counts as its own.
    fn processes(&self) -> Vec<u32> {
        Vec::new()
    }

    /// New flows to offer at a time.
    fn helping(&self) -> u32 {
        1 << 13
    }

    /// The XDP program it runs on `lan`, if it is one that does.
    fn program(&self, lane: &Lane, generator: &mut Generator) -> anyhow::Result<Option<ProgramInfo>>;

    /// The bytes it takes just now; what they are counted by is the gateway's own affair.
    fn memory(&self) -> anyhow::Result<Memory> {
        bail!("it has no memory of flows")
    }

    /// The daemon, if it is one that has one.
    fn daemon(&mut self) -> Option<&mut Natgw> {
        None
    }
}

/// Sets a contender up in its lane.
pub(crate) fn start(
    contender: Contender,
    lane: &Lane,
    generator: &mut Generator,
) -> anyhow::Result<Box<dyn Gateway>> {
    Ok(match contender {
        Contender::Bare => Box::new(bare::Bare::start(lane, generator)?),
        Contender::Nft => Box::new(Nftables::start(lane)?),
        Contender::Iptables => Box::new(iptables::Iptables::start(lane)?),
        Contender::Natgw => Box::new(Natgw::start()?),
    })
}
