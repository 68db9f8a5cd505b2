//! `natgw metrics`

use std::io::Write as _;

use super::{Daemon, Failure, output};
use crate::api::{Metrics, Request};

pub(super) fn carry_out(daemon: &Daemon) -> Result<(), Failure> {
    let metrics: Metrics = daemon.ask(&Request::Metrics)?;
    let mut out = output::stdout();
    out.write_all(metrics.text.as_bytes())?;
    Ok(out.flush()?)
}
