//! `natgw capture`

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::de::IgnoredAny;

use super::trace::{Countdown, FilterWords, say};
use super::{Daemon, Failure, output};
use crate::api::Request;
use crate::pcapng::Capture as Pcapng;
use crate::trace::{Missed, TraceLine, TraceRow};

#[derive(Args, Debug)]
pub(super) struct Capture {
    /// The file, in pcapng's format; `-` for standard output
    #[arg(long, short, value_name = "FILE")]
    write: PathBuf,
    #[command(flatten)]
    filter: FilterWords,
    /// Keep so many bytes of each frame
    #[arg(long, short, value_name = "BYTES", default_value_t = LONGEST, value_parser = clap::value_parser!(u32).range(64..=i64::from(LONGEST)))]
    snaplen: u32,
    /// End after so many packets
    #[arg(long, short, value_name = "N")]
    count: Option<u64>,
    /// Take at most so many packets a second, 0 for all; the rest is counted
    #[arg(long, value_name = "N", default_value_t = 0)]
    rate: u32,
}

/// The most that is kept of a frame.
const LONGEST: u32 = 4095;

impl Capture {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let request = Request::Trace { filter: self.filter.text()?, snap: self.snaplen, rate: self.rate };
        let out: Box<dyn Write> = if self.write.as_os_str() == "-" {
            Box::new(output::stdout())
        } else {
            Box::new(File::create(&self.write).map_err(|error| self.cannot(&error))?)
        };
        let mut pcapng = Pcapng::new(out, self.snaplen);
        let mut left = Countdown::new(self.count);
        let (mut packets, mut missed) = (0_u64, Missed::default());
        let mut written = Ok(());
        let answered: Result<IgnoredAny, _> = daemon.list(&request, |line: TraceLine| {
            let done = match &line {
                TraceLine::Begun => {
                    say(&format!("capturing into {}; end it with Ctrl-C", self.write.display()));
                    pcapng.begin()
                }
                TraceLine::Missed(now) => {
                    missed = *now;
                    Ok(())
                }
                TraceLine::Packet(row) => {
                    packets += 1;
                    write_packet(&mut pcapng, row)
                }
            };
            if let Err(error) = done {
                // A reader of standard output that has seen enough is no failure.
                if error.kind() != io::ErrorKind::BrokenPipe {
                    written = Err(self.cannot(&error));
                }
                return Err(error);
            }
            left.take(&line)
        });
        written?;
        left.finish(answered)?;
        let Missed { suppressed, lost } = missed;
        say(&format!(
            "{} captured, {suppressed} beyond --rate and {lost} lost",
            output::counted(packets, "packet")
        ));
        Ok(())
    }

    fn cannot(&self, error: &io::Error) -> Failure {
        Failure::Said {
            message: format!("capture: write {}: {error}", self.write.display()),
            hint: Some("see whether the place exists, may be written to, and has room".to_owned()),
        }
    }
}

/// A packet's frames, each on the interface and in the direction that it passed.
fn write_packet(pcapng: &mut Pcapng<Box<dyn Write>>, row: &TraceRow) -> io::Result<()> {
    let Some(frames) = &row.frames else { return Ok(()) };
    let Some([before, after]) = frames.bytes() else { return Err(io::ErrorKind::InvalidData.into()) };
    let time = humantime::parse_rfc3339(&row.time)
        .ok()
        .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok());
    let time = time.unwrap_or(Duration::ZERO);
    let comment = comment(row);
    if !before.is_empty() {
        pcapng.packet(&format!("{} in", row.interface), time, &before, frames.lengths[0], &comment)?;
    }
    if let Some(out) = row.out.as_ref().filter(|_| !after.is_empty()) {
        pcapng.packet(&format!("{out} out"), time, &after, frames.lengths[1], &comment)?;
    }
    pcapng.flush()
}

/// What Wireshark shows beside the frame: the rule, the endpoints on both sides, and what became of it.
fn comment(row: &TraceRow) -> String {
    let ends = |ends: &Option<[_; 2]>| -> Option<String> {
        let [source, destination]: &[crate::eventlog::Place; 2] = ends.as_ref()?;
        Some(format!("{source} > {destination}"))
    };
    let mut comment = format!("natgw: {}: {}", row.summary(), row.verdict);
    if let (Some(before), Some(after)) = (ends(&row.before), ends(&row.after)) {
        // A String takes everything.
        let _ = write!(comment, "; {before} => {after}");
    }
    for words in [&row.why, &row.advice].into_iter().flatten() {
        comment.push_str("; ");
        comment.push_str(words);
    }
    comment
}
