//! Ctrl-C: the programs that a step runs get the signal too and end, the step fails, and the drops clean up. All
//! that this process has to do is not to die first.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::shell::Result;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

const SIGHUP: i32 = 1;
const SIGINT: i32 = 2;
const SIGTERM: i32 = 15;

extern "C" {
    // std links the C library already; this is the one function of it that std does not offer.
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
}

extern "C" fn note(_number: i32) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From here on a signal is noted, not deadly. Programs started later have the default behaviour again.
pub(crate) fn clean_up_on_signals() {
    for number in [SIGHUP, SIGINT, SIGTERM] {
        // SAFETY: the handler does nothing but store to an atomic, which a signal handler may.
        unsafe { signal(number, note) };
    }
}

/// Whether a signal came.
pub(crate) fn check() -> Result {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err("interrupted; cleaned up".to_owned())
    } else {
        Ok(())
    }
}
