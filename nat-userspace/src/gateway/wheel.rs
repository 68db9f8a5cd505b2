//! Timers: a wheel of buckets, so that expiry costs what is due and not what is there.

use std::time::{Duration, Instant};

/// Width of a bucket.
const TICK: Duration = Duration::from_millis(100);
/// Buckets: what is due later waits in the farthest and is put in again.
const BUCKETS: u64 = 16_384;

/// Sessions by when to look at them next.
///
/// An entry is never taken out early: whoever is woken looks whether it is still meant (its
/// session keeps the tick it is armed for).
pub struct Wheel {
    start: Instant,
    /// Next tick to look at.
    next: u64,
    buckets: Vec<Vec<u32>>,
}

impl Wheel {
    /// An empty wheel whose tick 0 is `now`.
    pub fn new(now: Instant) -> Self {
        Self { start: now, next: 0, buckets: vec![Vec::new(); usize::try_from(BUCKETS).unwrap_or(0)] }
    }

    /// Arms a timer. Returns the tick it will ring at, for the owner to remember.
    pub fn arm(&mut self, item: u32, due: Instant) -> u32 {
        let ticks = due.saturating_duration_since(self.start).as_millis().div_ceil(TICK.as_millis());
        let tick = u64::try_from(ticks).unwrap_or(u64::MAX).clamp(self.next, self.next + BUCKETS - 1);
        self.bucket(tick).push(item);
        short(tick)
    }

    /// Items due by `now`, at most `limit`, with the tick they were armed for. Call again while
    /// it returns items.
    pub fn due(&mut self, now: Instant, limit: usize, items: &mut Vec<(u32, u32)>) {
        let elapsed = now.saturating_duration_since(self.start).as_millis() / TICK.as_millis();
        let current = u64::try_from(elapsed).unwrap_or(u64::MAX);
        while self.next <= current && items.len() < limit {
            let tick = self.next;
            let bucket = self.bucket(tick);
            let keep = bucket.len().saturating_sub(limit - items.len());
            items.extend(bucket.drain(keep..).map(|item| (item, short(tick))));
            if keep > 0 {
                return;
            }
            // A bucket that held a burst gives its memory back.
            bucket.shrink_to(64);
            self.next += 1;
        }
    }

    /// How long until the next bucket with something in it rings, looking at most a second ahead.
    pub fn wait(&self, now: Instant) -> Duration {
        const AHEAD: u64 = 10;
        for tick in self.next..self.next + AHEAD {
            if !self.buckets[Self::index(tick)].is_empty() {
                let at = self.start + TICK * u32::try_from(tick).unwrap_or(u32::MAX);
                return at.saturating_duration_since(now);
            }
        }
        TICK * u32::try_from(AHEAD).unwrap_or(1)
    }

    fn index(tick: u64) -> usize {
        usize::try_from(tick % BUCKETS).unwrap_or(0)
    }

    fn bucket(&mut self, tick: u64) -> &mut Vec<u32> {
        &mut self.buckets[Self::index(tick)]
    }
}

/// A tick as it is remembered: it comes again after 13 years.
#[expect(clippy::cast_possible_truncation, reason = "the low bits")]
const fn short(tick: u64) -> u32 {
    tick as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_when_due_and_not_before() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        let tick = wheel.arm(7, start + Duration::from_secs(5));
        let mut items = Vec::new();
        wheel.due(start + Duration::from_millis(4900), 10, &mut items);
        assert!(items.is_empty());
        wheel.due(start + Duration::from_millis(5000), 10, &mut items);
        assert_eq!(items, [(7, tick)]);
    }

    #[test]
    fn a_burst_is_handed_out_in_parts_and_nothing_is_lost() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        for item in 0..1000 {
            wheel.arm(item, start + Duration::from_secs(1));
        }
        let mut seen = std::collections::HashSet::new();
        loop {
            let mut items = Vec::new();
            wheel.due(start + Duration::from_secs(2), 64, &mut items);
            if items.is_empty() {
                break;
            }
            seen.extend(items.into_iter().map(|(item, _)| item));
        }
        assert_eq!(seen.len(), 1000);
    }

    #[test]
    fn what_is_due_beyond_the_wheel_rings_at_its_end() {
        let start = Instant::now();
        let mut wheel = Wheel::new(start);
        wheel.arm(1, start + Duration::from_mins(124));
        let mut items = Vec::new();
        wheel.due(start + Duration::from_secs(1639), 10, &mut items);
        assert_eq!(items.len(), 1);
    }
}
