//! `cargo xtask build`: natgw with the pinned toolchain.

use std::{env, path::PathBuf};

use crate::shell::{cargo, run, target, Result};

/// How natgw is built.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Builds natgw.
pub(crate) fn build(profile: Profile) -> Result {
    let mut cargo = cargo(&["build", "--locked", "--package", "nat-userspace", "--bin", "natgw"]);
    if profile == Profile::Release {
        cargo.arg("--release");
    }
    run(&mut cargo)
}

/// The program that tests, demo and bench run: `NATGW_BIN`, or the release build.
pub(crate) fn natgw() -> PathBuf {
    env::var_os("NATGW_BIN").map_or_else(|| target().join("release/natgw"), PathBuf::from)
}

/// Builds what [`natgw`] names, unless the user brought one along.
pub(crate) fn build_natgw() -> Result {
    if env::var_os("NATGW_BIN").is_some() {
        println!("taking {}", natgw().display());
        return Ok(());
    }
    build(Profile::Release)
}
