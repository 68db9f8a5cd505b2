//! `cargo xtask lint`: what a reader should not have to say.

use crate::{
    inventory,
    machine::has_program,
    shell::{cargo, run, step, target, Result},
};

/// All checks; the first that fails ends it.
pub(crate) fn lint() -> Result {
    for (name, check) in CHECKS {
        step(name, check)?;
    }
    Ok(())
}

/// A check: its name, and what it does.
type Check = (&'static str, fn() -> Result);

/// The checks in order, quickest first.
pub(crate) const CHECKS: &[Check] = &[
    ("rustfmt", format),
    ("inventory of unsafe", inventory::check),
    ("clippy", clippy),
    ("clippy for the eBPF programs", clippy_ebpf),
    ("rustdoc", doc),
    ("cargo-deny", deny),
];

fn format() -> Result {
    run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result {
    run(&mut cargo(&[
        "clippy",
        "--locked",
        "--workspace",
        "--exclude",
        "nat-ebpf",
        "--exclude",
        "nat-bench-ebpf",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// The programs do not compile for the host: they have neither std nor a way to unwind.
fn clippy_ebpf() -> Result {
    let words = [
        "clippy",
        "--locked",
        "--package",
        "nat-ebpf",
        "--package",
        "nat-bench-ebpf",
        "--bins",
        "--target",
        "bpfel-unknown-none",
        "-Z",
        "build-std=core",
    ];
    // A folder of its own: the variable below would make the host's build scripts run anew at each turn.
    run(cargo(&words)
        .arg("--target-dir")
        .arg(target().join("ebpf"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1"))
}

fn doc() -> Result {
    let words =
        ["doc", "--locked", "--workspace", "--exclude", "nat-ebpf", "--no-deps", "--document-private-items"];
    run(cargo(&words).env("RUSTDOCFLAGS", "-D warnings"))
}

/// Licences and sources of dependencies. Not installed by `setup`: it takes minutes to compile.
///
/// Advisories are left out: a new one is news, not a fault of the change under test, and asks the network.
fn deny() -> Result {
    if has_program("cargo-deny") {
        return run(&mut cargo(&["deny", "check", "bans", "licenses", "sources"]));
    }
    println!("left out: cargo-deny is not installed (`cargo install cargo-deny --locked`)");
    Ok(())
}
