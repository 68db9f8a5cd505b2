//! Inside hosts whose first packets the daemon refuses by its limits: those that go on are refused in the program until
//! the tick is over, so that one host's flood is not judged packet by packet.

/// Hosts that are remembered. Who shares another's place takes it.
pub const HOSTS: u32 = 1 << HOSTS_BITS;
/// The same as a power of two.
const HOSTS_BITS: u32 = 12;

/// The place of a host (network byte order).
#[inline(always)]
#[must_use]
pub const fn place(host: u32) -> u32 {
    host.wrapping_mul(0x9e37_79b1) >> (32 - HOSTS_BITS)
}

/// What is at a host's place while it is refused until a tick (see [`crate::activity::TICK_SHIFT`]) begins.
#[inline(always)]
#[must_use]
pub const fn refused(host: u32, until: u32) -> u64 {
    (host as u64) << 32 | until as u64
}

/// Whether what is at a host's place says that it is refused.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "both halves")]
pub const fn is_refused(word: u64, host: u32, tick: u32) -> bool {
    // No word says more than one tick ahead: what is further away is long past.
    (word >> 32) as u32 == host && (word as u32).wrapping_sub(tick) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_refused_for_the_tick_and_no_other_is() {
        let host = u32::from_ne_bytes([192, 168, 1, 10]);
        let word = refused(host, 1001);
        assert!(is_refused(word, host, 1000));
        assert!(!is_refused(word, host, 1001) && !is_refused(word, host, 1002), "over");
        assert!(!is_refused(word, host, 999), "from another time");
        assert!(!is_refused(word, host + 1, 1000), "another host at this place");
        assert!(!is_refused(0, host, u32::MAX), "nobody");
        assert!(is_refused(refused(host, 0), host, u32::MAX), "ticks begin anew");
        assert!((0..100_000).all(|number: u32| place(number.to_be()) < HOSTS));
    }
}
