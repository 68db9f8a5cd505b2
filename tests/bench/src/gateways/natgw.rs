//! natgw itself: the daemon as a user starts it.

use std::{
    env,
    fs::{self, DirBuilder, File},
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
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

use super::{
    Gateway, Ports, Readiness, Setup,
    memory::{self, Memory},
};
use crate::{
    generator::Generator,
    namespace::run,
    topology::{INSIDE, Lane},
};

/// The daemon, and the folder with its configuration, socket, log and bpffs.
pub(crate) struct Natgw {
    binary: PathBuf,
    folder: PathBuf,
    process: Option<Child>,
    /// Whether the virtual server's address is the gateway's.
    serves: bool,
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
        let number = INSTANCES.fetch_add(1, Ordering::Relaxed);
        let folder = env::temp_dir().join(format!("natgw-bench-{}-{number}", std::process::id()));
        DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .with_context(|| format!("make {}", folder.display()))?;
        let natgw = Self { binary, folder, process: None, serves: false };
        let bpffs = natgw.folder.join("bpf");
        fs::create_dir(&bpffs).context("make the mount point of bpffs")?;
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).context("mount bpffs")?;
        Ok(natgw)
    }

    fn configuration(&self, setup: &Setup) -> String {
        let folder = self.folder.display();
        // What users have; more only if the figure needs it.
        let sessions = (1 << 20).max(setup.flows * 5 / 4);
        let mapping =
            if setup.ports == Ports::Shared { "endpoint-dependent" } else { "endpoint-independent" };
        let to = if setup.ports == Ports::OfPool { "203.0.113.16-203.0.113.23" } else { "masquerade" };
        let delegated = if setup.delegated { "" } else { "delegated = 0" };
        let service = if setup.service { SERVICE } else { "" };
        // Else the rule would hide clients from servers.
        let hairpin = !setup.service;
        let Setup { timeout, limits: (of_source, new_of_source), mode, .. } = *setup;
        format!(
            r#"
[[interface]]
name = "lan"
side = "inside"
mode = "{mode}"

[[interface]]
name = "wan"
side = "outside"
mode = "{mode}"

[[snat]]
name = "bench"
source = ["{INSIDE}"]
out = "wan"
to = "{to}"
mapping = "{mapping}"
hairpin = {hairpin}
{service}
[timeouts]
udp = "{timeout}s"

[limits]
sessions = {sessions}
sessions_per_source = {of_source}
new_per_second_per_source = {new_of_source}
{delegated}

[control]
socket = "{folder}/natgw.sock"
bpffs = "{folder}/bpf/natgw"

[metrics]
listen = ""
"#
        )
    }

    /// Starts the daemon, and answers when; it is not ready yet.
    pub(crate) fn launch(&mut self, lane: &Lane, setup: &Setup) -> anyhow::Result<Instant> {
        self.stop()?;
        self.configure(setup)?;
        let log = File::create(self.folder.join("log")).context("make natgw's log")?;
        if setup.service != self.serves {
            let verb = if setup.service { "add" } else { "del" };
            lane.gateway.ip(&format!("addr {verb} {SERVICE_ADDRESS}/32 dev wan"))?;
            self.serves = setup.service;
        }
        // As gateways have it: the routing table then answers the fast path.
        lane.gateway.sysctl("ipv4/ip_forward", "1")?;
        let _entered = lane.gateway.enter()?;
        let start = Instant::now();
        let process = Command::new(&self.binary)
            .args(["run", "--config"])
            .arg(self.folder.join("natgw.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share natgw's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        self.process = Some(process);
        Ok(start)
    }

    fn configure(&self, setup: &Setup) -> anyhow::Result<()> {
        fs::write(self.folder.join("natgw.toml"), self.configuration(setup))
            .context("write natgw's configuration")
    }

    /// Changes the configuration of the running daemon.
    pub(crate) fn reload(&self, setup: &Setup) -> anyhow::Result<()> {
        self.configure(setup)?;
        run(&mut self.command("reload")).map(drop)
    }

    /// What `natgw status --json` says.
    pub(crate) fn status(&self) -> anyhow::Result<Value> {
        let status = run(self.command("status").arg("--json"))?;
        serde_json::from_str(&status).context("read the answer of natgw status")
    }

    /// Holds the daemon, so that what passes passes by the tables alone; `false` lets it go on.
    pub(crate) fn hold(&self, held: bool) -> anyhow::Result<()> {
        let process = self.process.as_ref().context("natgw does not run")?;
        let signal = if held { Signal::STOP } else { Signal::CONT };
        kill_process(id_of(process)?, signal).context("hold natgw or let it go on")
    }

    fn wait_ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.status().is_err() {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().ok().flatten());
            if ended.is_some() || Instant::now() > deadline {
                bail!("natgw does not start; it says:\n{}", self.log());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--socket").arg(self.folder.join("natgw.sock")).arg(verb).stdin(Stdio::null());
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Ends the daemon, if it runs.
    pub(crate) fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut process) = self.process.take() else { return Ok(()) };
        let id = id_of(&process)?;
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
    fn prepare(&mut self, lane: &Lane, setup: &Setup) -> anyhow::Result<Readiness> {
        self.launch(lane, setup)?;
        self.wait_ready()?;
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

    fn memory(&self) -> anyhow::Result<Memory> {
        memory::of_process(self.process.as_ref().context("natgw does not run")?.id())
    }

    fn daemon(&mut self) -> Option<&mut Natgw> {
        Some(self)
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

fn id_of(process: &Child) -> anyhow::Result<Pid> {
    i32::try_from(process.id()).ok().and_then(Pid::from_raw).context("natgw's process id")
}

/// Where frames of [`crate::generator::Pattern::one_remote`] go to.
const SERVICE_ADDRESS: &str = "198.18.0.0";
/// A virtual server there, with three servers behind the router.
const SERVICE: &str = r#"
[[service]]
protocol = "udp"
external = "198.18.0.0:9"
check = { kind = "none" }
[[service.server]]
address = "198.51.100.1:9"
[[service.server]]
address = "198.51.100.2:9"
[[service.server]]
address = "198.51.100.3:9"
"#;

/// natgws that this bench has started so far.
static INSTANCES: AtomicU32 = AtomicU32::new(0);
/// How long natgw may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(10);
