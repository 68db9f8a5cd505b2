//! How many packets a second there are, for `natgw status`: two looks at the counters, at least a second apart.

use std::time::{Duration, Instant};

use super::super::top::rate;
use crate::api::{PacketRates, PacketTotals};

/// How far looks are apart at least; further where the daemon had nothing to wake up for.
const EVERY: Duration = Duration::from_secs(1);

/// What the counters said at an instant.
type Look = (Instant, PacketTotals);

/// The last look, and the one before.
pub struct Meter {
    earlier: Look,
    last: Look,
}

impl Meter {
    /// Begins with a look: counters may be an earlier daemon's.
    pub fn new(now: Instant, totals: PacketTotals) -> Self {
        Self { earlier: (now, totals), last: (now, totals) }
    }

    /// Whether it is time for another look.
    pub fn is_due(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last.0) >= EVERY
    }

    /// Looks.
    pub fn look(&mut self, now: Instant, totals: PacketTotals) {
        self.earlier = std::mem::replace(&mut self.last, (now, totals));
    }

    /// Packets a second since a look that is at least a second old, if there is one.
    pub fn rates(&self, now: Instant, totals: PacketTotals) -> PacketRates {
        let (since, before) = if self.is_due(now) { self.last } else { self.earlier };
        let seconds = now.saturating_duration_since(since).as_secs_f64();
        let rate = |of: fn(&PacketTotals) -> u64| rate(of(&totals).saturating_sub(of(&before)), seconds);
        PacketRates {
            translated: rate(|totals| totals.translated),
            passed: rate(|totals| totals.passed),
            punted: rate(|totals| totals.punted),
            dropped: rate(|totals| totals.dropped),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_the_last_second_or_two() {
        let start = Instant::now();
        let at = |milliseconds| start + Duration::from_millis(milliseconds);
        let totals = |translated| PacketTotals { translated, ..PacketTotals::default() };
        let mut meter = Meter::new(start, totals(1000));
        assert!(!meter.is_due(at(999)) && meter.is_due(at(1000)));
        meter.look(at(1000), totals(1500));
        // The last look is too near to tell much: from the one before.
        assert!((meter.rates(at(1250), totals(2000)).translated - 800.0).abs() < 1e-9);
        assert!((meter.rates(at(3000), totals(2500)).translated - 500.0).abs() < 1e-9);
        assert!((meter.rates(at(3000), totals(2500)).dropped).abs() < 1e-9);
    }
}
