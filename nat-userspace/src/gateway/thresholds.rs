//! Levels below the limits, to be told of before anything is refused (RFC 8158 table 4).

use crate::hash::HashSet;

/// How far below a level its use has to fall until the next crossing is told, as a part of the whole.
const SLACK: u32 = 20;

/// What has a level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Level {
    /// All sessions.
    Sessions,
    /// Sessions of a source.
    Source(u32),
    /// Ports of an external address, for a protocol.
    Ports(u32, u8),
    /// Addresses of the pool of an snat rule.
    Addresses(u16),
}

/// Levels that are crossed.
#[derive(Debug, Default)]
pub struct Thresholds {
    percent: u8,
    crossed: HashSet<Level>,
}

/// A level was crossed, at this use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crossing {
    /// Upwards.
    High(u32),
    /// Downwards again.
    Low(u32),
}

impl Thresholds {
    /// With all levels at so many percent; 0 for none.
    pub fn new(percent: u8) -> Self {
        Self { percent, crossed: HashSet::default() }
    }

    /// Whether there are levels at all.
    pub fn watch(&self) -> bool {
        self.percent > 0
    }

    /// So much is in use of the most there may be; no limit is 0. Whether that is worth telling.
    pub fn look(&mut self, level: Level, used: u32, most: u32) -> Option<Crossing> {
        if self.percent == 0 || most == 0 {
            return None;
        }
        let high = u32::try_from(u64::from(most) * u64::from(self.percent) / 100).unwrap_or(most).max(1);
        if used >= high {
            return self.crossed.insert(level).then_some(Crossing::High(high));
        }
        let low = high - (most / SLACK).min(high - 1);
        (used < low && self.crossed.remove(&level)).then_some(Crossing::Low(low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_told_once_until_its_use_has_fallen() {
        let mut thresholds = Thresholds::new(80);
        let mut told = Vec::new();
        for used in (0..=100).chain((70..100).rev()).chain(70..90) {
            told.extend(thresholds.look(Level::Sessions, used, 100));
        }
        assert_eq!(told, [Crossing::High(80), Crossing::Low(75), Crossing::High(80)]);
        assert_eq!(thresholds.look(Level::Source(1), 8, 10), Some(Crossing::High(8)));
        assert_eq!(thresholds.look(Level::Source(1), 100, 0), None, "no limit has no level");
        assert_eq!(Thresholds::new(0).look(Level::Sessions, 10, 10), None);
    }
}
