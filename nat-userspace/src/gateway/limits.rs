//! Limits: sessions a source may have, how fast it may open them, and how many ICMP errors the
//! gateway itself sends.

use crate::hash::HashMap;
use std::time::{Duration, Instant};

/// How often idle sources are forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// So many a second, and as many at once.
pub struct Bucket {
    rate: f64,
    level: f64,
    filled: Instant,
}

impl Bucket {
    /// A full bucket of `rate` a second.
    pub fn new(rate: u32, now: Instant) -> Self {
        Self { rate: f64::from(rate), level: f64::from(rate), filled: now }
    }

    /// Takes one out, if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.level = (self.level + elapsed * self.rate).min(self.rate);
        self.filled = now;
        if self.level < 1.0 {
            return false;
        }
        self.level -= 1.0;
        true
    }
}

/// What each inside source has.
pub struct Sources {
    most: u32,
    sessions_limit: u32,
    rate_limit: u32,
    sessions: HashMap<u32, (u32, Bucket)>,
    /// Those that have sessions.
    active: u32,
    swept: Option<Instant>,
}

impl Sources {
    /// Limits of zero mean none.
    pub fn new(most: u32, sessions_limit: u32, rate_limit: u32) -> Self {
        Self { most, sessions_limit, rate_limit, sessions: HashMap::default(), active: 0, swept: None }
    }

    /// Whether a source may open one more session now; it then has.
    pub fn open(&mut self, source: u32, now: Instant) -> bool {
        if !self.are_limited() {
            return true;
        }
        if !self.have_room_for(source) {
            return false;
        }
        let (count, bucket) =
            self.sessions.entry(source).or_insert_with(|| (0, Bucket::new(self.rate_limit.max(1), now)));
        if self.sessions_limit != 0 && *count >= self.sessions_limit {
            return false;
        }
        if self.rate_limit != 0 && !bucket.take(now) {
            return false;
        }
        self.add(source, now);
        true
    }

    /// A source has a session that an earlier daemon opened, whatever the limits are now.
    pub fn adopt(&mut self, source: u32, now: Instant) {
        if self.are_limited() {
            self.add(source, now);
        }
    }

    fn add(&mut self, source: u32, now: Instant) {
        let rate = self.rate_limit.max(1);
        let (count, _) = self.sessions.entry(source).or_insert_with(|| (0, Bucket::new(rate, now)));
        self.active += u32::from(*count == 0);
        *count += 1;
    }

    /// Whether a source has sessions, or one more source may.
    pub fn have_room_for(&self, source: u32) -> bool {
        self.most == 0 || self.active < self.most || self.sessions_of(source) > 0
    }

    /// The most sources that may have sessions; 0 for any number.
    pub fn most(&self) -> u32 {
        self.most
    }

    /// Whether there are any limits.
    pub fn are_limited(&self) -> bool {
        self.most != 0 || self.sessions_limit != 0 || self.rate_limit != 0
    }

    /// The most sessions a source may have; 0 for any number.
    pub fn sessions_limit(&self) -> u32 {
        self.sessions_limit
    }

    /// Sessions that a source has, if there is a limit.
    pub fn sessions_of(&self, source: u32) -> u32 {
        self.sessions.get(&source).map_or(0, |(count, _)| *count)
    }

    /// A session of a source is over.
    pub fn close(&mut self, source: u32) {
        if let Some((count, _)) = self.sessions.get_mut(&source) {
            self.active -= u32::from(*count == 1);
            *count = count.saturating_sub(1);
            if *count == 0 && self.rate_limit == 0 {
                self.sessions.remove(&source);
            }
        }
    }

    /// Forgets idle sources whose bucket is full again.
    pub fn sweep(&mut self, now: Instant) {
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return;
        }
        self.swept = Some(now);
        self.sessions.retain(|_, (count, bucket)| {
            *count > 0 || now.saturating_duration_since(bucket.filled).as_secs() < 2
        });
    }
}
