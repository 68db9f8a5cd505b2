//! Running other programs, saying what they are and how long they took.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// The toolchain that builds everything; nat-userspace's build script names the same one.
pub(crate) const TOOLCHAIN: &str = "1.98.0";

/// What a task ends with: nothing, or a message for a person.
pub(crate) type Result<T = ()> = std::result::Result<T, String>;

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the repository")
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// cargo of the pinned toolchain, whatever this program itself was built with.
///
/// It is named by the environment, not by a rust-toolchain.toml: where rustup may not install by itself, such a
/// file would stop `cargo xtask setup` before it could install anything.
pub(crate) fn cargo(arguments: &[&str]) -> Command {
    let mut command = rustup_proxy("cargo");
    command.args(arguments).current_dir(root());
    command
}

/// A program that rustup chooses by toolchain, without what the outer `cargo xtask` left in the environment.
pub(crate) fn rustup_proxy(program: &str) -> Command {
    let mut command = Command::new(program);
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name == "CARGO" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            command.env_remove(name);
        }
    }
    command.env("RUSTUP_TOOLCHAIN", TOOLCHAIN);
    command
}

/// A command from words.
pub(crate) fn command(words: &[&str]) -> Command {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]);
    command
}

/// Runs a command to its end; anything but success is an error that names it.
pub(crate) fn run(command: &mut Command) -> Result {
    let status = command.status().map_err(|error| format!("start {}: {error}", shown(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} failed: {status}", shown(command)))
    }
}

/// Runs a command and gives back what it printed, whether it succeeded or not.
pub(crate) fn capture(command: &mut Command) -> Result<(bool, String)> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("start {}: {error}", shown(command)))?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), text))
}

/// Runs a command that has to succeed, quietly.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    match capture(command)? {
        (true, text) => Ok(text),
        (false, text) => Err(format!("{} failed:\n{text}", shown(command))),
    }
}

/// Does one step of a task under a headline, and says how long it took.
pub(crate) fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("==> {name}");
    let start = Instant::now();
    let result = work();
    let outcome = if result.is_ok() { "done" } else { "FAILED" };
    println!("==> {name}: {outcome} in {:.1} s", start.elapsed().as_secs_f32());
    result
}

fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy().into_owned()).collect();
    format!("`{}`", words.join(" "))
}
