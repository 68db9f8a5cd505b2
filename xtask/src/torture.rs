//! `cargo xtask torture`: hands over to the program of that name in nat-tests.

use crate::{
    build::{build_natgw, natgw},
    machine::want_root,
    shell::{cargo, run, Result},
};

/// Builds natgw, and tortures it as the arguments say.
pub(crate) fn torture(arguments: &[&str]) -> Result {
    want_root("torture")?;
    build_natgw()?;
    let mut cargo =
        cargo(&["run", "--locked", "--quiet", "--package", "nat-tests", "--bin", "torture", "--"]);
    run(cargo.args(arguments).env("NATGW_BIN", natgw()))
}
