//! The steps of a session's life, for those who watch: it begins, is established, closes, and is over. Looked for only
//! while somebody does.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::hash::HashSet;
use nat_common::activity::Activity;
use nat_common::tcp::State;
use nat_common::wire;

use super::Gateway;
use super::events::{Endpoints, Happening};
use super::sessions::{Origin, Session};
use super::world::World;
use crate::config::EventClass;

/// What a session has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It began.
    Created,
    /// TCP: both ends have answered.
    Established,
    /// TCP: both ends have ended it, or one has reset it.
    Closed,
    /// Nothing came for too long.
    Expired,
    /// A command, a reload or a change of the host ended it.
    Deleted,
}

/// A session at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stepped {
    /// Which.
    pub step: Step,
    /// Its ends.
    pub ends: Endpoints,
    /// What opened it.
    pub origin: Origin,
    /// Its state then, in a word.
    pub state: &'static str,
}

/// The program tells when a connection closes, not when it is established: those that are opening are looked at.
#[derive(Default)]
pub(super) struct Steps {
    opening: VecDeque<u32>,
    is_opening: HashSet<u32>,
    /// Told of already: a FIN may come twice.
    closed: HashSet<u32>,
    looked: Option<Instant>,
}

/// How often they are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How many in one go.
const BATCH: usize = 4096;

impl Gateway {
    /// A session has come to a step.
    pub(super) fn step(&mut self, now: Instant, slot: u32, session: &Session, line: &Activity, step: Step) {
        if !self.events.wants(EventClass::Steps) || session.origin == Origin::Bypass {
            return;
        }
        let is_tcp = session.original.protocol == wire::TCP;
        let state = if is_tcp { session.tcp_state(line).name() } else { "active" };
        match step {
            Step::Created if is_tcp => {
                self.steps.opening.push_back(slot);
                self.steps.is_opening.insert(slot);
            }
            Step::Created | Step::Established | Step::Closed => {}
            Step::Expired | Step::Deleted => {
                self.steps.is_opening.remove(&slot);
                self.steps.closed.remove(&slot);
            }
        }
        let stepped = Stepped { step, ends: session.endpoints(), origin: session.origin, state };
        self.events.add(now, Happening::SessionStep(stepped));
    }

    /// A TCP session's ends have said something that changes its state.
    pub(super) fn look_at_state(&mut self, now: Instant, slot: u32, line: &Activity) {
        if !self.events.wants(EventClass::Steps) {
            return;
        }
        let Some(session) = self.sessions.get(slot).cloned() else { return };
        if session.original.protocol != wire::TCP {
            return;
        }
        let state = session.tcp_state(line);
        if matches!(state, State::Established | State::Closing) && self.steps.is_opening.remove(&slot) {
            self.step(now, slot, &session, line, Step::Established);
        }
        if matches!(state, State::Closing | State::Reset) && self.steps.closed.insert(slot) {
            self.steps.is_opening.remove(&slot);
            self.step(now, slot, &session, line, Step::Closed);
        }
        if matches!(state, State::Opening | State::Established) {
            // A SYN has opened it anew.
            self.steps.closed.remove(&slot);
        }
    }

    /// Looks at connections that are opening, if it is time. When it is next.
    pub(super) fn look_at_opening(&mut self, world: &dyn World, now: Instant) -> Option<Instant> {
        if !self.events.wants(EventClass::Steps) {
            if self.steps.looked.is_some() {
                self.steps = Steps::default();
            }
            return None;
        }
        let due = self.steps.looked.is_none_or(|looked| now.saturating_duration_since(looked) >= LOOK_EVERY);
        if due {
            self.steps.looked = Some(now);
            for _ in 0..self.steps.opening.len().min(BATCH) {
                let Some(slot) = self.steps.opening.pop_front() else { break };
                self.look_at_state(now, slot, &world.activity(slot));
                if self.steps.is_opening.contains(&slot) {
                    self.steps.opening.push_back(slot);
                }
            }
        }
        let is_waiting = !self.steps.opening.is_empty();
        is_waiting.then(|| self.steps.looked.unwrap_or(now) + LOOK_EVERY)
    }
}
