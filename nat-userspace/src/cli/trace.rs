//! `natgw trace`

use std::io::{self, Write as _};

use clap::Args;
use serde::de::IgnoredAny;

use super::{Daemon, Failure, output};
use crate::api::{ClientError, Request};
use crate::trace::{Filter, FilterError, Missed, TraceLine};

#[derive(Args, Debug)]
pub(super) struct Trace {
    #[command(flatten)]
    filter: FilterWords,
    /// End after so many packets
    #[arg(long, short, value_name = "N")]
    count: Option<u64>,
    /// Show at most so many packets a second, 0 for all; the rest is counted
    #[arg(long, value_name = "N", default_value_t = 1000)]
    rate: u32,
    /// Write a line of JSON for each packet instead of words for people
    ///
    /// A line whose `event` is `begun` comes first, once every packet is seen.
    #[arg(long)]
    json: bool,
}

/// The words of a filter.
#[derive(Args, Debug)]
pub(super) struct FilterWords {
    /// Which packets, before or after translation: host 10.1.1.7 and tcp and port 443
    ///
    /// In tcpdump's words: host, net, port and proto, with src or dst before them; tcp, udp and icmp; joined by `and`.
    /// Without a filter all packets are meant.
    #[arg(value_name = "FILTER")]
    words: Vec<String>,
}

impl FilterWords {
    /// What the daemon is asked for.
    pub(super) fn text(&self) -> Result<String, Failure> {
        let text = self.words.join(" ");
        match text.parse::<Filter>() {
            Ok(_) => Ok(text),
            Err(error) => {
                Err(Failure::Usage { message: error.to_string(), hint: FilterError::HINT.to_owned() })
            }
        }
    }
}

impl Trace {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let request = Request::Trace { filter: self.filter.text()?, snap: 0, rate: self.rate };
        let mut left = Countdown::new(self.count);
        let mut out = output::stdout();
        let answered: Result<IgnoredAny, _> = daemon.list(&request, |line: TraceLine| {
            match &line {
                TraceLine::Begun if !self.json => say("tracing; end it with Ctrl-C"),
                TraceLine::Missed(missed) if !self.json => say_missed(*missed),
                TraceLine::Packet(row) if !self.json => writeln!(out, "{}", row.line())?,
                TraceLine::Begun | TraceLine::Packet(_) | TraceLine::Missed(_) => {
                    serde_json::to_writer(&mut out, &line)?;
                    out.write_all(b"\n")?;
                }
            }
            out.flush()?;
            left.take(&line)
        });
        left.finish(answered)
    }
}

/// Counts packets up to where the command ends.
pub(super) struct Countdown(Option<u64>);

impl Countdown {
    pub(super) fn new(packets: Option<u64>) -> Self {
        Self(packets)
    }

    /// One line more. An error ends the request.
    pub(super) fn take(&mut self, line: &TraceLine) -> io::Result<()> {
        if let (Some(left), TraceLine::Packet(_)) = (&mut self.0, line) {
            *left = left.saturating_sub(1);
            if *left == 0 {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    }

    /// What the whole came to: the end of the count is none of failure.
    pub(super) fn finish(&self, answered: Result<IgnoredAny, ClientError>) -> Result<(), Failure> {
        match answered {
            Err(ClientError::Output(_)) if self.0 == Some(0) => Ok(()),
            answered => Ok(answered.map(|_| ())?),
        }
    }
}

/// Tells whoever waits, beside what is printed.
pub(super) fn say(words: &str) {
    // Nothing is left to do if standard error is gone.
    let _ = writeln!(io::stderr().lock(), "{words}");
}

pub(super) fn say_missed(missed: Missed) {
    let Missed { suppressed, lost } = missed;
    say(&format!(
        "not shown since the beginning: {suppressed} packets beyond --rate, {lost} that were too many to take"
    ));
}
