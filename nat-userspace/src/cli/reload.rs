//! `natgw reload`

use std::io::Write as _;

use super::{Daemon, Failure, Format, output};
use crate::api::{Reloaded, Request};

pub(super) fn carry_out(format: Format, daemon: &Daemon) -> Result<(), Failure> {
    let reloaded: Reloaded = daemon.ask(&Request::Reload)?;
    if format.json {
        return Ok(output::json(&reloaded)?);
    }
    let mut out = output::stdout();
    writeln!(out, "reloaded: {} sessions kept, {} ended", reloaded.kept, reloaded.ended)?;
    for warning in &reloaded.warnings {
        writeln!(out, "warning: {warning}")?;
    }
    Ok(out.flush()?)
}
