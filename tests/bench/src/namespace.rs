//! A network namespace of the bench's own, gone when it is dropped.

use std::{
    fs::{self, File},
    io::Write as _,
    os::fd::AsFd as _,
    path::Path,
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A named network namespace.
#[derive(Debug)]
pub(crate) struct Namespace {
    name: String,
}

/// While it lives, the thread is in the namespace; afterwards where it was before.
#[derive(Debug)]
pub(crate) struct Entered {
    before: File,
}

impl Namespace {
    /// Makes the namespace `natgw-bench-<pid>-<role>`.
    pub(crate) fn create(role: &str) -> anyhow::Result<Self> {
        let name = format!("natgw-bench-{}-{role}", std::process::id());
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let namespace = Self { name };
        // No IPv6 chatter among the frames that are counted.
        namespace.sysctl("ipv6/conf/all/disable_ipv6", "1")?;
        namespace.sysctl("ipv6/conf/default/disable_ipv6", "1")?;
        Ok(namespace)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace.
    pub(crate) fn enter(&self) -> anyhow::Result<Entered> {
        let before = File::open("/proc/thread-self/ns/net").context("open the thread's namespace")?;
        let path = Path::new("/run/netns").join(&self.name);
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter {}", self.name))?;
        Ok(Entered { before })
    }

    /// Runs `ip` commands, one a line, in the namespace.
    pub(crate) fn ip(&self, batch: &str) -> anyhow::Result<()> {
        feed(Command::new("ip").args(["-n", &self.name, "-batch", "-"]), batch)
    }

    /// Runs a command in the namespace.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<String> {
        let _entered = self.enter()?;
        run(command)
    }

    /// Sets `/proc/sys/net/<key>` in the namespace.
    pub(crate) fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let _entered = self.enter()?;
        fs::write(Path::new("/proc/sys/net").join(key), value)
            .with_context(|| format!("set {key} to {value} in {}", self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("ip").args(["netns", "delete", &self.name])) {
            eprintln!("left behind: {error:#}");
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        move_into_link_name_space(self.before.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("go back to the namespace the thread came from");
    }
}

/// Runs a command and answers what it printed.
pub(crate) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}: {}", output.status, errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that reads `input`.
pub(crate) fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("run {command:?}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        pipe.write_all(input.as_bytes()).with_context(|| format!("write to {command:?}"))?;
    }
    let status = child.wait().with_context(|| format!("wait for {command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}
