//! Which branches an input takes: counters that the compiler puts into each, where `cargo xtask fuzz` asks for them
//! (`SanitizerCoverage`, inline 8-bit counters). Built otherwise there are none, and inputs are tried blindly.

use std::sync::Mutex;

/// A part of the program that has counters: where they begin, how many there are.
struct Counters {
    start: *mut u8,
    length: usize,
}

// SAFETY: counters live as long as the program, and are touched by the one thread that runs inputs.
unsafe impl Send for Counters {}

static ALL: Mutex<Vec<Counters>> = Mutex::new(Vec::new());

/// Called for each part before `main`.
///
/// # Safety
/// The range has to be one of counters, which the instrumentation promises.
#[unsafe(no_mangle)]
unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    let length = end.addr().saturating_sub(start.addr());
    if length > 0
        && let Ok(mut all) = ALL.lock()
        && all.iter().all(|known| known.start != start)
    {
        all.push(Counters { start, length });
    }
}

/// What the inputs so far have reached.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    seen: Vec<u8>,
}

impl Coverage {
    /// Sets all counters to zero.
    pub(crate) fn begin() {
        let Ok(all) = ALL.lock() else { return };
        for counters in all.iter() {
            // SAFETY: the range is the instrumentation's, and nothing else writes to it meanwhile.
            unsafe { std::ptr::write_bytes(counters.start, 0, counters.length) };
        }
    }

    /// Whether the input that ran since went where none went before, or so often.
    pub(crate) fn is_new(&mut self) -> bool {
        let mut is_new = false;
        let mut at = 0;
        let Ok(all) = ALL.lock() else { return false };
        for counters in all.iter() {
            if self.seen.len() < at + counters.length {
                self.seen.resize(at + counters.length, 0);
            }
            // SAFETY: as above.
            let counted = unsafe { std::slice::from_raw_parts(counters.start, counters.length) };
            for (count, seen) in counted.iter().zip(&mut self.seen[at..]) {
                // Once, twice, up to 3, 7, 15, 31, 127, more: loops that run a little longer are no news.
                let bucket = 1 << (8 - count.leading_zeros()).min(7);
                if *count > 0 && *seen & bucket == 0 {
                    *seen |= bucket;
                    is_new = true;
                }
            }
            at += counters.length;
        }
        is_new
    }

    /// Branches reached, of how many.
    pub(crate) fn reached(&self) -> (usize, usize) {
        let all = ALL.lock().map_or(0, |all| all.iter().map(|counters| counters.length).sum());
        (self.seen.iter().filter(|seen| **seen != 0).count(), all)
    }
}
