//! `cargo xtask bench`: hands over to the package nat-bench.

use crate::{
    build::{build_natgw, natgw},
    machine::want_root,
    shell::{cargo, run, Result},
};

/// Builds natgw and the bench, and runs the bench with these arguments.
pub(crate) fn bench(arguments: &[&str]) -> Result {
    want_root("bench")?;
    build_natgw()?;
    let mut cargo = cargo(&["run", "--locked", "--release", "--quiet", "--package", "nat-bench", "--"]);
    run(cargo.args(arguments).env("NATGW_BIN", natgw()))
}
