//! The log as systemd's journal reads it: it has a clock of its own, and takes a line's level from the `<N>` before it
//! (sd-daemon(3)), so that `journalctl -p warning` finds warnings.

use std::{env, fmt, io};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Lines for the journal.
pub(super) struct Journal;

impl Journal {
    /// Whether standard error leads there: systemd says which file that would be (systemd.exec(5), `JOURNAL_STREAM`).
    pub(super) fn listens() -> bool {
        let stream = env::var("JOURNAL_STREAM").unwrap_or_default();
        rustix::fs::fstat(io::stderr()).is_ok_and(|own| stream == format!("{}:{}", own.st_dev, own.st_ino))
    }
}

impl<S, N> FormatEvent<S, N> for Journal
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let priority = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        };
        let mut text = format!("{}: ", event.metadata().target());
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        // Each line is an entry of its own there.
        text.lines().try_for_each(|line| writeln!(writer, "<{priority}>{line}"))
    }
}
