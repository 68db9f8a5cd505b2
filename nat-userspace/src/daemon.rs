//! The daemon: what `natgw run` is.

use std::path::PathBuf;

use crate::config::Config;

/// What the command line says about a run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Leave the fast path in place at the end.
    pub keep: bool,
    /// Where the configuration was read.
    pub config_path: PathBuf,
}

/// Runs the gateway until it is told to end.
pub fn run(config: Config, options: RunOptions) -> anyhow::Result<()> {
    let Config { interfaces, .. } = config;
    let (interfaces, path) = (interfaces.len(), options.config_path);
    anyhow::bail!("run {} with {interfaces} interfaces: the data path is not linked in", path.display())
}
