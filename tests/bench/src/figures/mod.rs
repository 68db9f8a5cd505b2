//! What is measured: one module for each family of figures.

mod cores;
mod expiry;
mod flood;
pub(crate) mod hop;
mod iperf;
mod latency;
mod memory;
pub(crate) mod opening;
mod refused;
mod start;

use crate::{
    report::FigureReport,
    stage::{Settings, Stage},
};

/// Something to measure.
pub(crate) struct Figure {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) measure: Measure,
}

/// What fills a figure's report.
pub(crate) enum Measure {
    /// On the lanes that most figures share.
    Lanes(fn(&Settings, &mut Stage, &mut FigureReport) -> anyhow::Result<()>),
    /// On wires of its own, while there are no others.
    Apart(fn(&Settings, &mut FigureReport) -> anyhow::Result<()>),
}

/// All figures, in the order they are measured in.
pub(crate) const FIGURES: [Figure; 16] = [
    Figure {
        name: "hop-1k",
        what: "established hop, 1024 flows in turn",
        measure: Measure::Lanes(|settings, stage, report| hop::measure(settings, stage, report, &hop::FEW)),
    },
    Figure {
        name: "hop-64k",
        what: "established hop, 65,536 flows in random order",
        measure: Measure::Lanes(|settings, stage, report| hop::measure(settings, stage, report, &hop::MANY)),
    },
    Figure {
        name: "hop-1m",
        what: "established hop, 1,048,576 flows in random order",
        measure: Measure::Lanes(|settings, stage, report| {
            hop::measure(settings, stage, report, &hop::MILLION)
        }),
    },
    Figure {
        name: "mix",
        what: "established, there and back: TCP and UDP, 60/508/1514 bytes as 7:4:1, 65,536 flows by Zipf's law",
        measure: Measure::Lanes(|settings, stage, report| hop::measure(settings, stage, report, &hop::MIX)),
    },
    Figure {
        name: "new-flows",
        what: "every packet opens a flow; counted when delivered",
        measure: Measure::Lanes(opening::measure),
    },
    Figure {
        name: "new-connections",
        what: "every packet opens a connection of a virtual server with three servers; counted when delivered",
        measure: Measure::Lanes(opening::measure_service),
    },
    Figure {
        name: "refused",
        what: "packets of new flows when all 64,512 ports to a remote are taken, against established ones",
        measure: Measure::Lanes(refused::measure),
    },
    Figure {
        name: "latency",
        what: "one way, stamped in the frame, 65,536 flows in random order: one frame at a time, and bursts of 64",
        measure: Measure::Lanes(latency::measure),
    },
    Figure {
        name: "memory",
        what: "bytes a session, kernel and daemon together",
        measure: Measure::Lanes(memory::measure),
    },
    Figure {
        name: "flood",
        what: "100 k packets/s of established flows while 1 M new flows/s are offered by all hosts",
        measure: Measure::Lanes(|settings, stage, report| flood::measure(settings, stage, report, false)),
    },
    Figure {
        name: "flood-hostile",
        what: "100 k packets/s of established flows while one host offers 1 M new flows/s and others open a few",
        measure: Measure::Lanes(|settings, stage, report| flood::measure(settings, stage, report, true)),
    },
    Figure {
        name: "idle",
        what: "what the daemon takes of a core while its sessions are idle",
        measure: Measure::Lanes(expiry::measure_idle),
    },
    Figure {
        name: "expiry",
        what: "all sessions but 1024 due together, while those carry 100 k packets/s",
        measure: Measure::Lanes(expiry::measure),
    },
    Figure {
        name: "start",
        what: "from exec of `natgw run` with an empty table to the first packet translated",
        measure: Measure::Lanes(start::measure),
    },
    Figure {
        name: "cores",
        what: "two generators on two CPUs and two queues, against one",
        measure: Measure::Apart(cores::measure),
    },
    Figure {
        name: "iperf3",
        what: "TCP between hosts on veth as `ip link add` makes it, one stream and four",
        measure: Measure::Apart(iperf::measure),
    },
];
