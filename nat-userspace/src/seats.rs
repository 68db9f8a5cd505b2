//! Clients of a listener: each has a thread of its own, and only so many are served at a time.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The seats of one listener, handed out by the thread that accepts.
pub(crate) struct Seats {
    taken: Arc<AtomicUsize>,
    most: usize,
    whose: &'static str,
}

/// One client's; free again when dropped, also by a panic.
struct Seat(Arc<AtomicUsize>);

impl Seats {
    /// None of them is taken.
    pub(crate) fn new(whose: &'static str, most: usize) -> Self {
        Self { taken: Arc::default(), most, whose }
    }

    /// Only the thread that asks adds: the bound holds.
    pub(crate) fn are_taken(&self) -> bool {
        self.taken.load(Ordering::Relaxed) >= self.most
    }

    /// Serves a client on a thread that has a seat until it ends.
    pub(crate) fn serve(&self, work: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.taken.fetch_add(1, Ordering::Relaxed);
        let (seat, whose) = (Seat(Arc::clone(&self.taken)), self.whose);
        let spawned = std::thread::Builder::new().name(format!("{whose} client")).spawn(move || {
            let _seat = seat;
            if let Err(error) = work() {
                tracing::debug!("{whose} client: {error}");
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("{whose}: start a thread for a client: {error}");
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
