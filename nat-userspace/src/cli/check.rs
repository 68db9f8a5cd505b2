//! `natgw check`

use std::io::{self, Write as _};

use clap::Args;

use super::{ConfigFile, Failure};
use crate::config::Config;

#[derive(Args, Debug)]
pub(super) struct Check {
    #[command(flatten)]
    file: ConfigFile,
}

impl Check {
    pub(super) fn carry_out(self) -> Result<(), Failure> {
        let path = self.file.config;
        let config = Config::load(&path)?;
        let mut out = io::stdout().lock();
        writeln!(out, "configuration {} is valid: {}", path.display(), config.summary())?;
        for warning in &config.warnings {
            writeln!(out, "warning: {warning}")?;
        }
        Ok(out.flush()?)
    }
}
