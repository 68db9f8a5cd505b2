//! How long idle state lives.

use std::time::Duration;

use serde_spanned::Spanned;

use super::error::{Fault, Problems};
use super::file;

/// How long state is kept without traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An established TCP session (RFC 5382 REQ-5: 2 h 4 min at least).
    pub tcp_established: Duration,
    /// A TCP session that opens, closes or was reset (RFC 5382 REQ-5, RFC 7857 section 2: 4 min).
    pub tcp_transitory: Duration,
    /// A UDP session (RFC 4787 REQ-5: 2 min at least, 5 min recommended).
    pub udp: Duration,
    /// An ICMP query session (RFC 5508 REQ-2: 60 s at least).
    pub icmp: Duration,
    /// What is known of a fragmented packet (RFC 6146 section 3.4: 2 s at least).
    pub fragment: Duration,
    /// A freed UDP or ICMP port before it is used anew (RFC 6888 REQ-8: 120 s).
    pub quarantine: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_established: Duration::from_mins(124),
            tcp_transitory: Duration::from_secs(240),
            udp: Duration::from_secs(300),
            icmp: Duration::from_secs(60),
            fragment: Duration::from_secs(30),
            quarantine: Duration::from_secs(120),
        }
    }
}

/// Judges `[timeouts]`. Below an RFC's floor is a warning only: tests and odd networks need it.
pub(super) fn timeouts(
    raw: &file::Timeouts,
    problems: &mut Problems<'_>,
    warnings: &mut Vec<String>,
) -> Timeouts {
    let default = Timeouts::default();
    let mut one = |name: &str, value: Option<&Spanned<file::Word>>, default: Duration, floor: Floor| {
        let Some(value) = value else { return default };
        let Some(duration) =
            problems.check(&value.span(), parse_duration(&value.get_ref().0, floor.may_be_zero))
        else {
            return default;
        };
        if duration < floor.at_least {
            warnings.push(format!(
                "[timeouts] {name} = {} is below the {} of {}",
                humantime::format_duration(duration),
                humantime::format_duration(floor.at_least),
                floor.source,
            ));
        }
        duration
    };
    let floor =
        |seconds, source| Floor { at_least: Duration::from_secs(seconds), source, may_be_zero: false };
    Timeouts {
        tcp_established: one(
            "tcp_established",
            raw.tcp_established.as_ref(),
            default.tcp_established,
            floor(7440, "RFC 5382 REQ-5"),
        ),
        tcp_transitory: one(
            "tcp_transitory",
            raw.tcp_transitory.as_ref(),
            default.tcp_transitory,
            floor(240, "RFC 5382 REQ-5"),
        ),
        udp: one("udp", raw.udp.as_ref(), default.udp, floor(120, "RFC 4787 REQ-5")),
        icmp: one("icmp", raw.icmp.as_ref(), default.icmp, floor(60, "RFC 5508 REQ-2")),
        fragment: one("fragment", raw.fragment.as_ref(), default.fragment, floor(2, "RFC 6146 section 3.4")),
        quarantine: one(
            "quarantine",
            raw.quarantine.as_ref(),
            default.quarantine,
            Floor { may_be_zero: true, ..floor(120, "RFC 6888 REQ-8") },
        ),
    }
}

/// What a timeout should not go below, and who says so.
struct Floor {
    at_least: Duration,
    source: &'static str,
    may_be_zero: bool,
}

fn parse_duration(word: &str, may_be_zero: bool) -> Result<Duration, Fault> {
    let duration = humantime::parse_duration(word).map_err(|_| {
        Fault::new(format!("`{word}` is not a duration"), "a number with its unit: 2h4m, 4m, 60s, 500ms")
    })?;
    if duration.is_zero() && !may_be_zero {
        return Err(Fault::new("no session could live for 0 s", "give a time such as 60s"));
    }
    if duration > LONGEST {
        return Err(Fault::new(format!("`{word}` is more than a year"), "365days is the most"));
    }
    Ok(duration)
}

/// Keeps every deadline far from the end of a clock in nanoseconds.
const LONGEST: Duration = Duration::from_hours(365 * 24);
