//! What the figures say: ratios first, as only they carry over to other machines.

use std::{collections::BTreeMap, fmt, fs};

use serde::Serialize;

use crate::{
    figures::{nanoseconds_each, quotient},
    generator::Sample,
};

/// Everything that was measured, and on what.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    kernel: String,
    processor: String,
    cpu: usize,
    udp_checksum: bool,
    pub(crate) figures: Vec<FigureReport>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub(crate) struct FigureReport {
    name: &'static str,
    what: &'static str,
    flows: u64,
    /// Ratios of medians.
    ratios: BTreeMap<&'static str, f64>,
    /// Nanoseconds a frame of the generator alone.
    pub(crate) floor: Spread,
    /// Nanoseconds a run of a program that only drops.
    pub(crate) null_program: Option<f64>,
    pub(crate) gateways: BTreeMap<&'static str, GatewayReport>,
    /// Gateways that could not take part, and why.
    pub(crate) absent: BTreeMap<&'static str, String>,
    /// What makes the figure void.
    pub(crate) faults: Vec<String>,
}

/// One gateway in one figure.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct GatewayReport {
    /// Nanoseconds a hop (or a new flow): a frame's time less the generator's.
    hop: Spread,
    /// Frames delivered, of those sent.
    delivered: f64,
    /// New flows a second, the generator's time taken off.
    #[serde(skip_serializing_if = "Option::is_none")]
    per_second: Option<Spread>,
    /// Nanoseconds a run of its XDP program, with what counting them costs.
    pub(crate) program: Option<f64>,
}

/// Smallest, middle and largest of the rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Report {
    pub(crate) fn new(cpu: usize, zero_checksum: bool) -> Self {
        let system = rustix::system::uname();
        Self {
            kernel: system.release().to_string_lossy().into_owned(),
            processor: processor().unwrap_or_default(),
            cpu,
            udp_checksum: !zero_checksum,
            figures: Vec::new(),
        }
    }

    /// Whether some figure says nothing because frames were lost or came wrong.
    pub(crate) fn is_void(&self) -> bool {
        self.figures.iter().any(|figure| !figure.faults.is_empty())
    }
}

impl FigureReport {
    pub(crate) fn new(name: &'static str, what: &'static str, flows: u64) -> Self {
        Self {
            name,
            what,
            flows,
            ratios: BTreeMap::new(),
            floor: Spread::default(),
            null_program: None,
            gateways: BTreeMap::new(),
            absent: BTreeMap::new(),
            faults: Vec::new(),
        }
    }

    /// Draws the conclusions, once everything is measured.
    pub(crate) fn conclude(&mut self) {
        for (name, gateway) in &self.gateways {
            if gateway.per_second.is_none() && gateway.delivered < LEAST_DELIVERED {
                self.faults.push(format!("{name}: {:.2} % delivered", gateway.delivered * 100.0));
            }
        }
        for (ratio, above, below) in
            [("natgw/bare", "natgw", "bare"), ("nft/natgw", "nft", "natgw"), ("nft/bare", "nft", "bare")]
        {
            if let (Some(above), Some(below)) = (self.gateways.get(above), self.gateways.get(below)) {
                self.ratios.insert(ratio, above.hop.median / below.hop.median);
            }
        }
        let program = |name: &str| self.gateways.get(name).and_then(|gateway| gateway.program);
        if let (Some(natgw), Some(bare), Some(null)) = (program("natgw"), program("bare"), self.null_program)
        {
            self.ratios.insert("P", (natgw - null) / (bare - null));
        }
    }
}

impl GatewayReport {
    pub(crate) fn new(samples: &[Sample], floors: &[f64], opening: bool) -> Self {
        let frames: u64 = samples.iter().map(|sample| sample.frames).sum();
        let delivered: u64 = samples.iter().map(|sample| sample.delivered).sum();
        let hops: Vec<f64> = samples
            .iter()
            .zip(floors)
            .map(|(sample, floor)| {
                // A frame that opened no flow is not a flow's: its time is shared by those that did.
                let frames = if opening { sample.delivered.max(1) } else { sample.frames };
                (nanoseconds_each(sample) - floor) * quotient(sample.frames, frames)
            })
            .collect();
        let rates: Vec<f64> = hops.iter().map(|hop| 1e9 / hop).collect();
        Self {
            hop: Spread::of(&hops),
            delivered: quotient(delivered, frames),
            per_second: opening.then(|| Spread::of(&rates)),
            program: None,
        }
    }
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let median = match values.len() {
            0 => return Self::default(),
            count if count.is_multiple_of(2) => f64::midpoint(values[count / 2 - 1], values[count / 2]),
            count => values[count / 2],
        };
        Self { min: values[0], median, max: values[values.len() - 1] }
    }
}

impl fmt::Display for FigureReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}", self.name, self.what)?;
        for (ratio, value) in &self.ratios {
            writeln!(out, "  {ratio:<11}{value:>8.2}")?;
        }
        writeln!(
            out,
            "  {:<9}{:>9}{:>9}{:>9}{:>12}{:>11}",
            "ns", "min", "median", "max", "delivered", "program"
        )?;
        let Spread { min, median, max } = self.floor;
        write!(out, "  {:<9}{min:>9.0}{median:>9.0}{max:>9.0}{:>12}", "generator", "")?;
        writeln!(out, "{:>11}", self.null_program.map(|time| format!("{time:.0}")).unwrap_or_default())?;
        for (name, gateway) in &self.gateways {
            let Spread { min, median, max } = gateway.hop;
            let delivered = gateway.delivered * 100.0;
            write!(out, "  {name:<9}{min:>9.0}{median:>9.0}{max:>9.0}{delivered:>11.2}%")?;
            if let Some(program) = gateway.program {
                write!(out, "{program:>11.0}")?;
            }
            if let Some(rate) = gateway.per_second {
                write!(out, "{:>11.0} flows/s", rate.median)?;
            }
            writeln!(out)?;
        }
        for (name, reason) in &self.absent {
            writeln!(out, "  {name:<9}not measured: {reason}")?;
        }
        for fault in &self.faults {
            writeln!(out, "  VOID: {fault}")?;
        }
        writeln!(out)
    }
}

/// The processor's name.
fn processor() -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A hop that loses more says nothing about what a hop costs.
const LEAST_DELIVERED: f64 = 0.99;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn samples(delivered: u64, nanoseconds: [u64; 3]) -> [Sample; 3] {
        nanoseconds.map(|each| Sample { frames: 1000, delivered, busy: Duration::from_nanos(each * 1000) })
    }

    #[test]
    fn ratios_are_those_of_medians_with_the_generator_taken_off() {
        let floors = [100.0, 110.0, 90.0];
        let mut report = FigureReport::new("hop", "", 1);
        report.null_program = Some(40.0);
        for (name, nanoseconds, program) in
            [("bare", [200, 410, 190], 140.0), ("natgw", [150, 160, 900], 100.0)]
        {
            let mut gateway = GatewayReport::new(&samples(1000, nanoseconds), &floors, false);
            gateway.program = Some(program);
            report.gateways.insert(name, gateway);
        }
        report.conclude();
        assert!((report.gateways["bare"].hop.median - 100.0).abs() < 1e-9);
        assert!((report.ratios["natgw/bare"] - 0.5).abs() < 1e-9);
        assert!((report.ratios["P"] - 0.6).abs() < 1e-9);
        assert!(report.faults.is_empty());
    }

    #[test]
    fn a_hop_that_loses_frames_is_void() {
        let mut report = FigureReport::new("hop", "", 1);
        report.gateways.insert("nft", GatewayReport::new(&samples(989, [200; 3]), &[100.0; 3], false));
        report.conclude();
        assert_eq!(report.faults, ["nft: 98.90 % delivered"]);
    }

    #[test]
    fn time_spent_on_flows_that_did_not_open_is_billed_to_those_that_did() {
        let gateway = GatewayReport::new(&samples(500, [1100; 3]), &[100.0; 3], true);
        assert!((gateway.hop.median - 2000.0).abs() < 1e-9);
        let rate = gateway.per_second.expect("new flows have a rate").median;
        assert!((rate - 500_000.0).abs() < 1e-6);
    }
}
