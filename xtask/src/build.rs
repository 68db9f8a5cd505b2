//! `cargo xtask build`: natgw with the pinned toolchain.

use std::{env, path::PathBuf};

use crate::shell::{cargo, quiet, run, rustup_proxy, target, Result};

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

/// Builds natgw without need of any library at run time, unless the user brought one along; where it is then.
pub(crate) fn build_static() -> Result<PathBuf> {
    if env::var_os("NATGW_BIN").is_some() {
        return Ok(natgw());
    }
    let told = quiet(rustup_proxy("rustc").arg("-vV"))?;
    let host = told.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| format!("rustc -vV names no host:\n{told}"))?;
    // With a target named, build scripts and macros are built without the flag: they cannot be static.
    let words =
        ["build", "--locked", "--release", "--package", "nat-userspace", "--bin", "natgw", "--target"];
    let flags = env::var("RUSTFLAGS").unwrap_or_default();
    // The second: a static program cannot look getrandom() up by its name, and would want a /dev/urandom instead.
    let own = "-C target-feature=+crt-static --cfg getrandom_backend=\"linux_getrandom\"";
    run(cargo(&words).arg(host).env("RUSTFLAGS", format!("{flags} {own}")))?;
    Ok(target().join(host).join("release/natgw"))
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
