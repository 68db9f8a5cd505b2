//! What the supervisor that started the daemon is told of it (`sd_notify(3)`): how far it is, and that it lives.
//!
//! Where nobody asked to be told (`NOTIFY_SOCKET`), all of this does nothing.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// It serves; what follows is shown by `systemctl status`.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// It reads its configuration anew; [`ready`] ends that.
pub fn reloading() {
    // Without the time, units of `Type=notify-reload` wait for an older reload's end.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// It detaches and ends.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// The signs of life that a unit with `WatchdogSec` asks for.
///
/// They come from the loop that moves frames and from nowhere else: a daemon whose worker hangs is silent, however lively
/// its other threads are, and is killed and started again. Its fast path stays meanwhile.
#[derive(Debug)]
pub struct Watchdog {
    /// How long it may be silent at most; none: nobody listens.
    interval: Option<Duration>,
    fed: Instant,
}

impl Watchdog {
    /// As the environment says (`WATCHDOG_USEC`, `WATCHDOG_PID`).
    pub fn from_environment(now: Instant) -> Self {
        // A round that is late once must not be taken for a hang.
        Self { interval: sd_notify::watchdog_enabled().map(|limit| limit / 3), fed: now }
    }

    /// Another round of the loop has come to its end.
    pub fn feed(&mut self, now: Instant) {
        if self.interval.is_some_and(|interval| now.duration_since(self.fed) >= interval) {
            tell(&[NotifyState::Watchdog]);
            self.fed = now;
        }
    }

    /// How long the loop may sleep.
    pub fn bound(&self, now: Instant, wait: Duration) -> Duration {
        let left = self.interval.map(|interval| interval.saturating_sub(now.duration_since(self.fed)));
        left.map_or(wait, |left| wait.min(left))
    }
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the supervisor could not be notified");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loop_sleeps_no_longer_than_the_watchdog_allows() {
        let start = Instant::now();
        let long = Duration::from_secs(60);
        let mut watchdog = Watchdog { interval: Some(Duration::from_secs(10)), fed: start };
        assert_eq!(watchdog.bound(start, long), Duration::from_secs(10));
        assert_eq!(watchdog.bound(start + Duration::from_secs(9), long), Duration::from_secs(1));
        watchdog.feed(start + Duration::from_secs(10));
        assert_eq!(watchdog.bound(start + Duration::from_secs(10), long), Duration::from_secs(10));
        let nobody = Watchdog { interval: None, fed: start };
        assert_eq!(nobody.bound(start + long, long), long);
    }
}
