//! Frames that wait for a neighbour: held untouched, so that whoever releases them judges anew.

use crate::hash::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// How long a frame waits: the kernel gives ARP three tries a second apart.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Frames that wait for one neighbour.
const PER_NEIGHBOUR: usize = 4096;
/// Frames that wait in all.
const IN_ALL: usize = 16_384;

/// A frame and where it came in.
pub struct Held {
    /// Ingress interface index.
    pub ingress: u32,
    /// The frame as it came.
    pub frame: Vec<u8>,
}

/// Frames by the neighbour they wait for.
#[derive(Default)]
pub struct Holds {
    waiting: HashMap<(u32, Ipv4Addr), (Instant, Vec<Held>)>,
    count: usize,
}

impl Holds {
    /// Holds a frame; `false` if there is no room.
    pub fn hold(&mut self, now: Instant, neighbour: (u32, Ipv4Addr), ingress: u32, frame: &[u8]) -> bool {
        if self.count >= IN_ALL {
            return false;
        }
        let (_, held) = self.waiting.entry(neighbour).or_insert_with(|| (now + PATIENCE, Vec::new()));
        if held.len() >= PER_NEIGHBOUR {
            return false;
        }
        held.push(Held { ingress, frame: frame.to_vec() });
        self.count += 1;
        true
    }

    /// Frames that waited for a neighbour, in the order they came.
    pub fn release(&mut self, neighbour: (u32, Ipv4Addr)) -> Vec<Held> {
        let held = self.waiting.remove(&neighbour).map(|(_, held)| held).unwrap_or_default();
        self.count -= held.len();
        held
    }

    /// Neighbours whose frames have waited long enough.
    pub fn expired(&self, now: Instant) -> Vec<(u32, Ipv4Addr)> {
        self.waiting.iter().filter(|(_, (until, _))| *until <= now).map(|(&neighbour, _)| neighbour).collect()
    }

    /// When the first one has waited long enough.
    pub fn next(&self) -> Option<Instant> {
        self.waiting.values().map(|(until, _)| *until).min()
    }

    /// Frames that wait.
    pub fn count(&self) -> usize {
        self.count
    }
}
