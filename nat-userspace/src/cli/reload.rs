//! `natgw reload`

use std::io::{self, Write};

use super::{Daemon, Failure, Format, output};
use crate::api::{Reloaded, Request};

pub(super) fn carry_out(format: Format, daemon: &Daemon) -> Result<(), Failure> {
    tell(&daemon.ask(&Request::Reload)?, "reloaded", format)
}

/// Says what a reload, or a change of rules, has done.
pub(super) fn tell(reloaded: &Reloaded, done: &str, format: Format) -> Result<(), Failure> {
    if format.json {
        return Ok(output::json(reloaded)?);
    }
    Ok(write(output::stdout(), reloaded, done)?)
}

fn write(mut out: impl Write, reloaded: &Reloaded, done: &str) -> io::Result<()> {
    writeln!(out, "{done}: {} kept, {} ended", output::counted(reloaded.kept, "session"), reloaded.ended)?;
    for change in &reloaded.changes {
        writeln!(out, "  {change}")?;
    }
    if let Some(file) = &reloaded.saved {
        writeln!(out, "saved in {file}")?;
    }
    for warning in &reloaded.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    out.flush()
}
