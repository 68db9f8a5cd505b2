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

/// Each kind of figure once, with what the tests use: the times say nothing, but a lost or wrong frame does.
pub(crate) fn short() -> Result {
    build_natgw()?;
    let mut cargo = cargo(&["run", "--locked", "--quiet", "--package", "nat-bench", "--"]);
    cargo.args(["--quick", "--rounds", "1", "--against", "natgw,bare"]);
    for figure in ["hop-1k", "mix", "new-flows", "new-connections", "refused", "flood", "start"] {
        cargo.args(["--only", figure]);
    }
    run(cargo.env("NATGW_BIN", natgw()))
}
