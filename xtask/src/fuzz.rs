//! `cargo xtask fuzz`: builds the fuzzer with counters in every branch, and runs it.

use crate::shell::{cargo, run, target, Result};

/// What has the compiler put an 8-bit counter into each branch (`SanitizerCoverage`).
const INSTRUMENTATION: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
                               -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
                               -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// Fuzzes as the arguments say.
pub(crate) fn fuzz(arguments: &[&str]) -> Result {
    let host = host()?;
    // Named, so that build scripts, and the eBPF programs that one of them builds, stay as they are.
    let words = ["run", "--locked", "--release", "--quiet", "--package", "nat-fuzz", "--target", &host];
    let mut cargo = cargo(&words);
    cargo.arg("--target-dir").arg(target().join("fuzz")).arg("--").args(arguments);
    run(cargo.env("RUSTFLAGS", INSTRUMENTATION))
}

/// The machine's own target.
fn host() -> Result<String> {
    let (_, said) = crate::shell::capture(crate::shell::rustup_proxy("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| format!("`rustc -vV` names no host:\n{said}"))
}
