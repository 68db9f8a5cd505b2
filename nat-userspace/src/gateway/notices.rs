//! What an operator should know of: one notice when a resource begins to refuse flows, one when it
//! no longer does (RFC 6888 REQ-11c), however many packets are refused in between.

use crate::hash::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nat_common::Reason;

/// Without a refusal for so long, a condition is over.
const QUIET: Duration = Duration::from_secs(5);
/// Conditions that are told apart at once: a flood of limited sources must not fill the memory.
const MOST: usize = 1024;

/// What refuses flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    /// No external port is left for a protocol.
    Ports(u8),
    /// There is no external address.
    Addresses,
    /// The session table is full.
    Sessions,
    /// There are as many mappings as there may be.
    Mappings,
    /// As many sources as may have sessions have some.
    Sources,
    /// The kernel's table takes no more of them, full or not.
    Room,
    /// A source is at its limit.
    Source(Ipv4Addr),
    /// More fragments wait for their first than may.
    Fragments,
}

impl Condition {
    /// What a refusal of a packet of `source` shows, if it shows anything.
    pub fn of(reason: Reason, protocol: u8, source: Ipv4Addr) -> Option<Self> {
        match reason {
            Reason::DropPortsExhausted => Some(Self::Ports(protocol)),
            Reason::DropNoAddress => Some(Self::Addresses),
            Reason::DropSessionsFull => Some(Self::Sessions),
            Reason::DropSourceLimit => Some(Self::Source(source)),
            _ => None,
        }
    }
}

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Flows are refused from now on.
    Begun(Condition),
    /// No more; so many packets were.
    Over(Condition, u64),
}

/// Conditions that hold.
#[derive(Default)]
pub struct Notices {
    holding: HashMap<Condition, (Instant, u64)>,
    swept: Option<Instant>,
    untold: Vec<Notice>,
}

impl Notices {
    /// A packet was refused. Whether it is the first.
    pub fn refused(&mut self, condition: Condition, now: Instant) -> bool {
        if let Some((last, packets)) = self.holding.get_mut(&condition) {
            (*last, *packets) = (now, *packets + 1);
            return false;
        }
        if self.holding.len() >= MOST {
            return false;
        }
        self.holding.insert(condition, (now, 1));
        self.untold.push(Notice::Begun(condition));
        true
    }

    /// Ends what is over. Returns when there is something to look at again.
    pub fn sweep(&mut self, now: Instant) -> Option<Instant> {
        const EVERY: Duration = Duration::from_secs(1);
        if self.holding.is_empty() {
            return None;
        }
        if self.swept.is_none_or(|swept| now.saturating_duration_since(swept) >= EVERY) {
            self.swept = Some(now);
            for (condition, (_, packets)) in
                self.holding.extract_if(|_, (last, _)| now.saturating_duration_since(*last) >= QUIET)
            {
                self.untold.push(Notice::Over(condition, packets));
            }
        }
        self.swept.map(|swept| swept + EVERY)
    }

    /// What is to be told.
    pub fn take(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// behaviour EXH-10.
    #[test]
    fn exh_10_a_condition_is_told_when_it_begins_and_when_it_is_over() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        let at = |milliseconds| now + Duration::from_millis(milliseconds);
        for packet in 0..1000 {
            notices.refused(Condition::Ports(17), at(packet));
            notices.sweep(at(packet));
        }
        assert_eq!(notices.take(), [Notice::Begun(Condition::Ports(17))]);
        // A pause that is shorter than the hysteresis is no end.
        notices.sweep(at(4000));
        notices.refused(Condition::Ports(17), at(4500));
        notices.refused(Condition::Sessions, at(4500));
        notices.sweep(at(8000));
        assert_eq!(notices.take(), [Notice::Begun(Condition::Sessions)]);
        notices.sweep(at(10_000));
        let told = notices.take();
        assert_eq!(told.len(), 2);
        assert!(told.contains(&Notice::Over(Condition::Ports(17), 1001)));
        assert_eq!(notices.sweep(at(11_000)), None);
    }
}
