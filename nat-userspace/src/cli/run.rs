//! `natgw run`

use std::io::{self, IsTerminal as _};
use std::path::PathBuf;

use clap::Args;
use tracing_subscriber::EnvFilter;

use super::journal::Journal;
use super::{ConfigFile, Failure, output};
use crate::api::ServerError;
use crate::config::Config;
use crate::daemon::{self, RunOptions};
use crate::metrics::ResponderError;

#[derive(Args, Debug)]
pub(super) struct Run {
    #[command(flatten)]
    file: ConfigFile,
    /// Leave the fast path in place at the end
    ///
    /// Established sessions go on being translated, and the next `natgw run` takes them over.
    #[arg(long)]
    keep: bool,
}

impl Run {
    pub(super) fn carry_out(self, socket: Option<PathBuf>) -> Result<(), Failure> {
        let (source, config) = Config::read(&self.file.config)?;
        let log = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info")))
            .with_ansi(io::stderr().is_terminal() && !output::plain_wanted())
            .with_writer(io::stderr);
        if Journal::listens() {
            log.event_format(Journal).init();
        } else {
            log.init();
        }
        let options = RunOptions { keep: self.keep, config_path: self.file.config, source, socket };
        daemon::run(options, config).map_err(|error| {
            let control = error.downcast_ref::<ServerError>().map(ServerError::hint);
            let metrics = error.downcast_ref::<ResponderError>().map(ResponderError::hint);
            let hint = control.or(metrics).map(str::to_owned);
            Failure::Said { message: words(&error), hint }
        })
    }
}

/// An error and its causes, each once: some have theirs in their own words.
fn words(error: &anyhow::Error) -> String {
    let causes = error.chain().map(ToString::to_string);
    let joined =
        causes.reduce(|said, cause| if said.contains(&cause) { said } else { format!("{said}: {cause}") });
    joined.unwrap_or_default()
}

/// What is logged, in the words of tracing's `EnvFilter`: `debug`, `natgw::host=trace`, …
const LOG_VARIABLE: &str = "NATGW_LOG";

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow!("no such file").context("open a: no such file").context("start");
        assert_eq!(super::words(&error), "start: open a: no such file");
    }
}
