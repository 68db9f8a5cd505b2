//! The gateways under test, each in its own lane.

mod bare;
mod natgw;
mod nftables;

use aya::programs::ProgramInfo;

use crate::{Contender, figures::Figure, generator::Generator, topology::Lane};

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
    fn prepare(&mut self, lane: &Lane, figure: &Figure) -> anyhow::Result<Readiness>;

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
}

/// Sets a contender up in its lane.
pub(crate) fn start(
    contender: Contender,
    lane: &Lane,
    generator: &mut Generator,
) -> anyhow::Result<Box<dyn Gateway>> {
    Ok(match contender {
        Contender::Bare => Box::new(bare::Bare::start(lane, generator)?),
        Contender::Nft => Box::new(nftables::Nftables::start(lane)?),
        Contender::Natgw => Box::new(natgw::Natgw::start()?),
    })
}
