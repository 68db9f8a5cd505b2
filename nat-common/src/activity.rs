//! What the fast path notes of a session, as the daemon reads it. It lies in the session's lines: see
//! [`crate::table`].

/// One direction of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DirectionActivity {
    /// Packets translated.
    pub packets: u64,
    /// Bytes of IPv4 packets translated.
    pub bytes: u64,
    /// When the last one came, in ticks of `jiffies >> TICK_SHIFT`; written once a tick.
    pub last_seen: u32,
    /// TCP: last acknowledgement number sent in this direction, host byte order.
    pub acknowledged: u32,
    /// TCP: bits of [`crate::tcp::Seen`].
    pub seen: u8,
}

/// Both directions: as the first packet went, then back, indexed by [`crate::Direction`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// See above.
    pub directions: [DirectionActivity; 2],
}

/// A tick is `2^4` jiffies: 16 ms at 1000 Hz, 64 ms at 250 Hz, 160 ms at 100 Hz. Reading
/// jiffies costs the program one load, a clock helper 13 to 29 ns.
pub const TICK_SHIFT: u32 = 4;
