//! `cargo xtask test behaviour`: the rows of docs/behaviour.md, their tests, and what a run says of them.
//!
//! The ledger (tests/behaviour) knows rows and names; this runs the tests.

use std::{
    env,
    io::Write as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::{
    build::build_natgw,
    machine::want_root,
    real_time::real_time,
    setup::setup,
    shell::{cargo, root, step, Result},
    test::{count_tests, lab_threads},
    told::Told,
};

/// The test programs whose tests are named by rows of docs/behaviour.md.
const PROOFS: &[&str] = &["-p", "nat-common", "-p", "nat-userspace", "-p", "nat-tests", "--lib", "--tests"];
/// Those of them that meet natgw only by its command line and by packets.
const LAB: &[&str] = &["-p", "nat-tests", "--test", "lab"];

/// The rows of docs/behaviour.md: what proves them, or whether it does.
pub(crate) fn behaviour(options: &[&str]) -> Result {
    want_root("test behaviour")?;
    step("setup", setup)?;
    let choice: Vec<&str> = options.iter().copied().filter(|option| *option != "--list").collect();
    let at = |name: &str| choice.iter().position(|option| *option == name);
    let reference = match at("--against").map(|at| choice.get(at + 1).copied()) {
        None | Some(Some("natgw")) => None,
        Some(Some("nft")) => Some(reference("nftables")?),
        Some(Some(name @ ("router" | "nothing"))) => Some(reference(name)?),
        Some(_) => return Err("--against natgw, nft, router or nothing".to_owned()),
    };
    if reference.is_none() {
        build_natgw()?;
    }
    if at("--full").is_some() {
        // For the test programs, which are started below.
        env::set_var("NATGW_FULL", "1");
    }
    if at("--real-time").is_some() {
        let number = |text: &&str| text.parse().map_err(|_| format!("--minutes {text}: a number is wanted"));
        let minutes = match at("--minutes") {
            None => None,
            Some(at) => Some(choice.get(at + 1).ok_or("--minutes how many?").map(number)??),
        };
        return real_time(minutes, at("--write").is_some());
    }
    let names = names_of_tests()?;
    if choice.len() < options.len() {
        return judge(&[&["list"], &choice[..]].concat(), &names);
    }
    let mut told = Told::default();
    let selected = ask(&[&["select"], &choice[..]].concat(), &names)?;
    // What stands in natgw's place has no library.
    let programs = if reference.is_some() { LAB } else { PROOFS };
    let mut words = [&["test", "--locked", "--no-fail-fast"], programs, &["--"]].concat();
    let threads = lab_threads();
    words.extend(["--test-threads", &threads, "--exact"]);
    words.extend(selected.lines());
    let tally = step("behaviour", || count_tests(&words, reference.as_deref(), &mut told));
    // Failures are the judge's to weigh: against a reference they are what is wanted.
    let judged = judge(&[&["judge"], &choice[..]].concat(), &told.lines);
    if reference.is_none() {
        print!("{}", told.failures);
        tally?;
    }
    judged
}

/// A program of tests/reference that takes natgw's command line.
fn reference(name: &str) -> Result<PathBuf> {
    let path = root().join("tests/reference").join(name);
    if path.exists() {
        Ok(path)
    } else {
        Err(format!("{} is not there", path.display()))
    }
}

/// The names of all tests, as libtest lists them.
fn names_of_tests() -> Result<String> {
    let mut command = cargo(&[&["test", "--quiet", "--locked"], PROOFS, &["--", "--list"]].concat());
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("start cargo test: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("cargo test --list: {}", output.status))
    }
}

/// Asks the ledger of the suite (tests/behaviour) and gives back what it says.
fn ask(words: &[&str], printed: &str) -> Result<String> {
    let mut child =
        ledger(words).stdout(Stdio::piped()).spawn().map_err(|error| format!("start cargo run: {error}"))?;
    feed(&mut child, printed)?;
    let output = child.wait_with_output().map_err(|error| format!("wait for cargo run: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("behaviour {}: {}", words.join(" "), output.status))
    }
}

/// Shows what the ledger says; its judgement is the result.
pub(crate) fn judge(words: &[&str], printed: &str) -> Result {
    let mut child = ledger(words).spawn().map_err(|error| format!("start cargo run: {error}"))?;
    feed(&mut child, printed)?;
    let status = child.wait().map_err(|error| format!("wait for cargo run: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err("not every row of docs/behaviour.md is proven: see above".to_owned())
    }
}

fn ledger(words: &[&str]) -> Command {
    let mut command = cargo(
        &[&["run", "--quiet", "--locked", "-p", "nat-tests", "--bin", "behaviour", "--"], words].concat(),
    );
    command.stdin(Stdio::piped());
    command
}

fn feed(child: &mut Child, text: &str) -> Result {
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).map_err(|error| format!("write to cargo run: {error}"))
}
