//! natgw itself: the daemon as a user starts it.

use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use aya::programs::{ProgramInfo, loaded_programs};
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

use super::{Gateway, Readiness};
use crate::{
    figures::Figure,
    generator::Generator,
    topology::{INSIDE, Lane},
};

/// The daemon, and the folder with its configuration, socket, log and bpffs.
pub(crate) struct Natgw {
    binary: PathBuf,
    folder: PathBuf,
    process: Option<Child>,
}

impl Natgw {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let binary = match env::var_os("NATGW_BIN") {
            Some(path) => path.into(),
            // Beside the bench: target/release/natgw
            None => env::current_exe().context("find the bench's own path")?.with_file_name("natgw"),
        };
        if !binary.exists() {
            bail!(
                "{} is not there: `cargo build --release -p nat-userspace` makes it (or name it in NATGW_BIN)",
                binary.display()
            );
        }
        let folder = env::temp_dir().join(format!("natgw-bench-{}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        let natgw = Self { binary, folder, process: None };
        let bpffs = natgw.folder.join("bpf");
        fs::create_dir(&bpffs).context("make the mount point of bpffs")?;
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).context("mount bpffs")?;
        Ok(natgw)
    }

    fn configuration(&self, figure: &Figure) -> String {
        let folder = self.folder.display();
        // What users have; more only if the figure needs it.
        let sessions = (1 << 20).max(figure.most_flows() * 5 / 4);
        // New flows have endpoints of their own, more than an address has ports: they share ports between remotes.
        let mapping = if figure.is_opening() { "endpoint-dependent" } else { "endpoint-independent" };
        format!(
            r#"
[[interface]]
name = "lan"
side = "inside"
mode = "native"

[[interface]]
name = "wan"
side = "outside"
mode = "native"

[[snat]]
name = "bench"
source = ["{INSIDE}"]
out = "wan"
to = "masquerade"
mapping = "{mapping}"

[timeouts]
udp = "1h"

[limits]
sessions = {sessions}

[control]
socket = "{folder}/natgw.sock"
bpffs = "{folder}/bpf/natgw"

[metrics]
listen = ""
"#
        )
    }

    fn launch(&mut self, lane: &Lane) -> anyhow::Result<()> {
        let log = File::create(self.folder.join("log")).context("make natgw's log")?;
        let _entered = lane.gateway.enter()?;
        let process = Command::new(&self.binary)
            .args(["run", "--config"])
            .arg(self.folder.join("natgw.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share natgw's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        self.process = Some(process);
        let deadline = Instant::now() + PATIENCE;
        while !self.answers()? {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                bail!("natgw does not start; it says:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn answers(&self) -> anyhow::Result<bool> {
        let status = Command::new(&self.binary)
            .arg("--socket")
            .arg(self.folder.join("natgw.sock"))
            .arg("status")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .with_context(|| format!("run {} status", self.binary.display()))?;
        Ok(status.success())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let id = i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("natgw's process id")?;
        // It may have ended by itself: then there is nobody to signal, and `wait` says how it went.
        let _gone = kill_process(id, Signal::TERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = process.try_wait().context("wait for natgw")? {
                if !status.success() {
                    bail!("natgw ended with {status}; it says:\n{}", self.log());
                }
                return Ok(());
            }
            thread::sleep(Duration::from_millis(20));
        }
        process.kill().context("kill natgw")?;
        process.wait().context("wait for natgw")?;
        bail!("natgw did not end within {PATIENCE:?} of SIGTERM; it says:\n{}", self.log())
    }
}

impl Gateway for Natgw {
    fn prepare(&mut self, lane: &Lane, figure: &Figure) -> anyhow::Result<Readiness> {
        self.stop()?;
        fs::write(self.folder.join("natgw.toml"), self.configuration(figure))
            .context("write natgw's configuration")?;
        self.launch(lane)?;
        Ok(Readiness::Ready)
    }

    fn translates(&self) -> bool {
        true
    }

    fn processes(&self) -> Vec<u32> {
        self.process.iter().map(Child::id).collect()
    }

    fn helping(&self) -> u32 {
        // Less than its receive ring holds: what overflows there is lost.
        1 << 10
    }

    fn program(&self, lane: &Lane, _generator: &mut Generator) -> anyhow::Result<Option<ProgramInfo>> {
        let link = lane.gateway.run(Command::new("ip").args(["-json", "-details", "link", "show", "lan"]))?;
        let link: Value = serde_json::from_str(&link).context("read the answer of ip link")?;
        let id =
            link.pointer("/0/xdp/prog/id").and_then(Value::as_u64).context("natgw runs no XDP program")?;
        for program in loaded_programs() {
            let program = program.context("list the loaded programs")?;
            if u64::from(program.id()) == id {
                return Ok(Some(program));
            }
        }
        bail!("the kernel does not list natgw's program {id}")
    }
}

impl Drop for Natgw {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{error:#}");
        }
        // Unmounting drops the pins, and with them what a killed natgw left attached.
        let _nothing_mounted = unmount(self.folder.join("bpf"), UnmountFlags::DETACH);
        if let Err(error) = fs::remove_dir_all(&self.folder) {
            eprintln!("left behind: {}: {error}", self.folder.display());
        }
    }
}

/// How long natgw may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);
