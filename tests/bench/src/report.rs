//! What the figures say: ratios first, as only they carry over to other machines.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::machine::processor;

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
#[derive(Debug, Default, Serialize)]
pub(crate) struct FigureReport {
    name: &'static str,
    what: &'static str,
    /// What measures it again.
    command: String,
    /// What it comes to, and what it has to.
    goals: Vec<Goal>,
    /// Contender → quantity, its unit the last part of its name → what the rounds said.
    measures: BTreeMap<&'static str, BTreeMap<&'static str, Spread>>,
    /// Contenders that could not take part, and why.
    absent: BTreeMap<&'static str, String>,
    /// What one has to know to read it.
    notes: Vec<String>,
    /// What makes the figure void.
    faults: Vec<String>,
}

/// What a figure comes to: most often a ratio of medians.
#[derive(Debug, Serialize)]
struct Goal {
    name: &'static str,
    reached: f64,
    must_reach: Option<Bound>,
    aim: Option<Bound>,
    /// Whether it is as it must be.
    met: Option<bool>,
}

/// Where a value should lie.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// Smallest, middle and largest of the rounds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Spread {
    min: f64,
    pub(crate) median: f64,
    max: f64,
    rounds: usize,
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
        self.figures.iter().any(FigureReport::is_void)
    }
}

impl FigureReport {
    pub(crate) fn new(name: &'static str, what: &'static str, command: String) -> Self {
        Self { name, what, command, ..Self::default() }
    }

    /// Its name, for the lines that tell how far it is.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// A quantity of a contender, one value a round.
    pub(crate) fn measure(&mut self, contender: &'static str, quantity: &'static str, rounds: &[f64]) {
        self.measures.entry(contender).or_default().insert(quantity, Spread::of(rounds));
    }

    /// The median of what was measured.
    pub(crate) fn median(&self, contender: &str, quantity: &str) -> Option<f64> {
        Some(self.measures.get(contender)?.get(quantity)?.median)
    }

    /// A ratio of one contender's median and another's, if both were measured.
    pub(crate) fn ratio(&self, quantity: &str, above: &str, below: &str) -> Option<f64> {
        Some(self.median(above, quantity)? / self.median(below, quantity)?)
    }

    /// What the figure comes to, if that could be measured.
    pub(crate) fn goal(
        &mut self,
        name: &'static str,
        reached: Option<f64>,
        must_reach: Option<Bound>,
        aim: Option<Bound>,
    ) {
        let Some(reached) = reached else { return };
        let met = must_reach.map(|bound| bound.holds(reached));
        self.goals.push(Goal { name, reached, must_reach, aim, met });
    }

    /// A contender that cannot take part.
    pub(crate) fn absent(&mut self, contender: &'static str, reason: String) {
        self.absent.insert(contender, reason);
    }

    /// The contenders that could not take part, and why.
    pub(crate) fn absences(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.absent.iter().map(|(name, reason)| (*name, reason.as_str()))
    }

    /// Something one has to know to read it.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        let note = note.into();
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Whether it says nothing because frames were lost or came wrong.
    pub(crate) fn is_void(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Something that makes it void.
    pub(crate) fn fault(&mut self, fault: String) {
        self.faults.push(fault);
    }
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) => value >= least,
        }
    }
}

impl Spread {
    pub(crate) fn of(values: &[f64]) -> Self {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        let rounds = values.len();
        let median = match rounds {
            0 => return Self::default(),
            count if count.is_multiple_of(2) => f64::midpoint(values[count / 2 - 1], values[count / 2]),
            count => values[count / 2],
        };
        Self { min: values[0], median, max: values[rounds - 1], rounds }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(most) => write!(out, "<= {most}"),
            Self::AtLeast(least) => write!(out, ">= {least}"),
        }
    }
}

impl fmt::Display for FigureReport {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{}: {}", self.name, self.what)?;
        writeln!(out, "  {}", self.command)?;
        if !self.goals.is_empty() {
            writeln!(out, "  {:<46}{:>12}{:>14}{:>12}", "", "reached", "must reach", "aim")?;
        }
        for Goal { name, reached, must_reach, aim, met } in &self.goals {
            let shown = |bound: &Option<Bound>| bound.map(|bound| bound.to_string()).unwrap_or_default();
            write!(out, "  {name:<46}{:>12}{:>14}{:>12}", number(*reached), shown(must_reach), shown(aim))?;
            writeln!(out, "{}", if *met == Some(false) { "  MISSED" } else { "" })?;
        }
        writeln!(out, "  {:<46}{:>12}{:>14}{:>12}{:>8}", "", "min", "median", "max", "rounds")?;
        for (contender, quantities) in &self.measures {
            for (quantity, spread) in quantities {
                let Spread { min, median, max, rounds } = *spread;
                let (min, median, max) = (number(min), number(median), number(max));
                writeln!(out, "  {contender:<22}{quantity:<24}{min:>12}{median:>14}{max:>12}{rounds:>8}")?;
            }
        }
        for (contender, reason) in &self.absent {
            writeln!(out, "  {contender:<22}not measured: {reason}")?;
        }
        for note in &self.notes {
            writeln!(out, "  note: {note}")?;
        }
        for fault in &self.faults {
            writeln!(out, "  VOID: {fault}")?;
        }
        writeln!(out)
    }
}

/// As many digits as say something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 || value == 0.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.01 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// One number by another, exact enough for anything that is measured.
#[expect(clippy::cast_precision_loss, reason = "52 bits of nanoseconds are 52 days")]
pub(crate) fn quotient(dividend: u64, divisor: u64) -> f64 {
    dividend as f64 / divisor as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_those_of_medians() {
        let mut report = FigureReport::new("hop", "", String::new());
        report.measure("bare", "hop_ns", &[100.0, 300.0, 100.0]);
        report.measure("natgw", "hop_ns", &[50.0, 50.0, 810.0, 50.0]);
        let ratio = report.ratio("hop_ns", "natgw", "bare");
        assert!(ratio.is_some_and(|ratio| (ratio - 0.5).abs() < 1e-9));
        assert_eq!(report.ratio("hop_ns", "natgw", "nft"), None);
        report.goal("natgw/bare", ratio, Some(Bound::AtMost(0.9)), None);
        report.goal("natgw/nft", None, Some(Bound::AtMost(0.9)), None);
        report.goal("nft/natgw", Some(6.0), Some(Bound::AtLeast(7.0)), Some(Bound::AtLeast(8.0)));
        let met: Vec<_> = report.goals.iter().map(|goal| goal.met).collect();
        assert_eq!(met, [Some(true), Some(false)]);
        assert!(report.to_string().contains("MISSED"));
    }

    #[test]
    fn numbers_have_the_digits_that_say_something() {
        assert_eq!([0.0, 0.004, 0.5, 12.34, 1234.5].map(number), ["0", "0.0040", "0.50", "12.3", "1234"]);
    }
}
