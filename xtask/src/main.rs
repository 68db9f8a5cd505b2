//! natgw's tasks: `cargo xtask VERB`.
//!
//! Nothing but std, and an edition that older toolchains know: this has to run on a machine where nothing is set
//! up yet, because setting it up is its first task.

mod behaviour;
mod bench;
mod build;
mod demo;
mod fuzz;
mod installed;
mod inventory;
mod kernels;
mod lint;
mod machine;
mod package;
mod real_time;
mod setup;
mod shell;
mod tarball;
mod test;
mod told;
mod torture;

use std::{env, process::ExitCode};

const USAGE: &str = "\
cargo xtask VERB

  setup                           install what building and testing need, each only if it is missing
  build [--release]               build natgw
  lint                            rustfmt, clippy, rustdoc; cargo-deny if it is installed
  test [TIER] [-- FILTER]         lint and all tests, or one tier: unit | program | lab
  test behaviour [--list] [--id ID] [--section PREFIX] [--full] [--against nft|router|nothing] [--write]
                                  the rows of docs/behaviour.md: what proves them, and whether it does; --full with as many
                                  packets as they say where the normal run has fewer
  test behaviour --real-time [--minutes N] [--write]
                                  the default timers by the clock: up to 137 minutes, or those tests that fit into N
  test package [--root FOLDER]    the Debian package on a Debian of its own, with systemd as process 1 of namespaces: installed,
                                  started, given packets, hung, upgraded, purged; its root is a copy-on-write of this
                                  machine's, or of what debootstrap made
  test kernels [-- FILTER]        the core of the lab on Debian 12's kernel, booted in QEMU: some minutes
  package                         a Debian package and a static tarball, tried by installing them into empty roots and removing them
  demo [--keep]                   natgw between namespaces, with real traffic; --keep leaves them up
  demo --services                 three web servers behind one address by each method, one of which dies
  bench [ARGUMENTS]               measure; `cargo xtask bench --help` lists what
  fuzz [--minutes N] [--seed S] [TARGET]...
                                  inputs at random for parser, translation, core, configuration and protocol
  torture [--minutes N] [--seed S] [--json]
                                  faults at random under traffic of which every packet is counted

setup, test, demo, bench and torture change the machine (packages, network namespaces) and want root.
";

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["setup"] => setup::setup(),
        ["build"] => build::build(build::Profile::Dev),
        ["build", "--release"] => build::build(build::Profile::Release),
        ["lint"] => lint::lint(),
        ["test", rest @ ..] => test::test(rest),
        ["package"] => package::package(),
        ["demo"] => demo::demo(false),
        ["demo", "--keep"] => demo::demo(true),
        ["demo", "--services"] => demo::services(),
        ["bench", rest @ ..] => bench::bench(rest),
        ["fuzz", rest @ ..] => fuzz::fuzz(rest),
        ["torture", rest @ ..] => torture::torture(rest),
        [] | ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: `{}` is no task\n\n{USAGE}", other.join(" "));
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
