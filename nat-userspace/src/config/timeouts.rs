//! How long idle state lives.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_spanned::Spanned;

use super::error::{Fault, Problems};
use super::file;

/// How long state is kept without traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// An established TCP session (RFC 5382 REQ-5: 2 h 4 min at least).
    pub tcp_established: Duration,
    /// A TCP session whose handshake is not complete (RFC 5382 REQ-5, RFC 7857 section 2: 4 min).
    pub tcp_opening: Duration,
    /// A TCP session that both ends have closed, or one has reset (as above).
    pub tcp_closing: Duration,
    /// Whether both ends of an established TCP session that is given up are told by an RST.
    pub tcp_reset: bool,
    /// A UDP session (RFC 4787 REQ-5: 2 min at least, 5 min recommended).
    pub udp: Duration,
    /// UDP sessions to certain destination ports (RFC 4787 REQ-5a).
    pub udp_ports: BTreeMap<u16, Duration>,
    /// Whether packets from outside keep a UDP or ICMP session alive that the inside opened
    /// (RFC 4787 REQ-6a).
    pub inbound_refresh: bool,
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
            tcp_opening: TCP_TRANSITORY,
            tcp_closing: TCP_TRANSITORY,
            tcp_reset: false,
            udp: Duration::from_secs(300),
            udp_ports: BTreeMap::new(),
            inbound_refresh: false,
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
    let ports: Vec<_> = raw
        .udp_ports
        .iter()
        .filter_map(|(word, value)| Some((port(word, value, problems)?, value)))
        .collect();
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
    let transitory =
        one("tcp_transitory", raw.tcp_transitory.as_ref(), TCP_TRANSITORY, floor(240, "RFC 5382 REQ-5"));
    let mut udp_ports = BTreeMap::new();
    for (port, value) in ports {
        // Shorter is allowed for well-known services (RFC 4787 REQ-5a).
        let at_least = if port < WELL_KNOWN { 0 } else { 120 };
        let name = format!("udp_ports.{port}");
        let floor = floor(at_least, "RFC 4787 REQ-5a for ports from 1024");
        udp_ports.insert(port, one(&name, Some(value), default.udp, floor));
    }
    Timeouts {
        tcp_established: one(
            "tcp_established",
            raw.tcp_established.as_ref(),
            default.tcp_established,
            floor(7440, "RFC 5382 REQ-5"),
        ),
        tcp_opening: one("tcp_opening", raw.tcp_opening.as_ref(), transitory, floor(240, "RFC 5382 REQ-5")),
        tcp_closing: one("tcp_closing", raw.tcp_closing.as_ref(), transitory, floor(240, "RFC 5382 REQ-5")),
        tcp_reset: raw.tcp_reset,
        udp_ports,
        inbound_refresh: raw.inbound_refresh,
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

/// A key of `udp_ports`.
fn port(word: &str, value: &Spanned<file::Word>, problems: &mut Problems<'_>) -> Option<u16> {
    let port = word.parse::<u16>().ok().filter(|&port| port != 0).ok_or_else(|| {
        Fault::new(
            format!("`{word}` is not a port"),
            "a destination port from 1 to 65535 and a time: udp_ports = { 53 = \"15s\" }",
        )
    });
    problems.check(&value.span(), port)
}

pub(super) fn parse_duration(word: &str, may_be_zero: bool) -> Result<Duration, Fault> {
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

/// Until the two transitory timers are given one by one.
const TCP_TRANSITORY: Duration = Duration::from_secs(240);

/// Ports below this are those of well-known services.
const WELL_KNOWN: u16 = 1024;

/// Keeps every deadline far from the end of a clock in nanoseconds.
const LONGEST: Duration = Duration::from_hours(365 * 24);
