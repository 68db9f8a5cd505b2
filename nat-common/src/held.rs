//! Ports that the gateway's own sockets may hold, a bit each, so that the program need not ask the kernel about each port
//! that it gives out: the kernel looks through two tables for it, most of that waiting for memory.
//!
//! The daemon lists the sockets while that is worth it, and says how long its list holds; after that the program asks the
//! kernel again. A connection that the gateway has opened meanwhile is in it all the same, because its packets are seen
//! on their way out. A service opened meanwhile, which nobody has heard of yet, may meet a flow that got its port up to
//! [`HOLDS_FOR`] jiffies later: as if that had come just before it (behaviour LOC-05).

use crate::{delegate::Word, wire};

/// Words of a table: 65,536 ports.
pub const WORDS: u32 = 1024;

/// Jiffies that a list of sockets holds for, from when it was begun.
pub const HOLDS_FOR: u64 = 32;

/// Ports of one protocol.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
pub struct HeldPorts {
    /// Jiffies until which the list holds. Written by the daemon.
    pub until: u64,
    /// Fills the line.
    pub pad: [u64; 7],
    /// As the daemon has listed them, and what was sent from since.
    pub listed: [u64; WORDS as usize],
    /// Those that the gateway has sent from since the daemon began to list them.
    pub sent: [u64; WORDS as usize],
}

/// Protocols that there is a table of: see [`table`].
pub const TABLES: u32 = 2;

/// The table of a protocol.
#[inline(always)]
#[must_use]
pub const fn table(protocol: u8) -> u32 {
    (protocol == wire::UDP) as u32
}

/// Whether a list that holds until then still does.
#[inline(always)]
#[must_use]
pub const fn holds(until: u64, jiffies: u64) -> bool {
    jiffies < until
}

/// The words of some ports, as program and daemon see them.
#[derive(Clone, Copy, Debug)]
pub struct HeldWords<W> {
    /// Of [`HeldPorts::listed`].
    pub listed: W,
    /// Of [`HeldPorts::sent`].
    pub sent: W,
}

impl<W: Word> HeldWords<W> {
    /// Whether any of these may be held by a socket.
    #[inline(always)]
    pub fn has(&self, bits: u64) -> bool {
        // In this order: what is about to be cleared here is in the list by then (found by loom).
        (self.sent.load() | self.listed.load()) & bits != 0
    }

    /// The program's: the gateway sends from this port.
    #[inline(always)]
    pub fn mark(&self, bit: u64) {
        // Most packets are not the first of their port, and write nothing.
        if self.listed.load() & self.sent.load() & bit == 0 {
            self.sent.set(bit);
            self.listed.set(bit);
        }
    }

    /// The daemon's, before it lists: what is sent from now on may be missing there.
    pub fn begin(&self) {
        self.sent.keep(0);
    }

    /// The daemon's, after that: these are listed.
    pub fn renew(&self, listed: u64) {
        let before = self.listed.load();
        if before != listed {
            self.listed.keep(listed);
            self.listed.set(listed);
        }
        // Who marks one after this sets it in both after this.
        self.listed.set(self.sent.load());
    }
}
