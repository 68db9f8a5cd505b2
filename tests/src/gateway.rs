//! natgw itself, running in the lab's gateway: started, asked, stopped, killed, started again.

use std::{
    collections::BTreeMap,
    env, fs,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::{self, ExitStatus, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process},
};
use serde_json::Value;

use crate::{
    host::{Host, Process, finish},
    lab::Lab,
    leaks::LeakWatch,
};

/// The set-up that behaviour cases assume when they say nothing else: NAPT of the LAN behind P1.
pub const STANDARD: &str = r#"
[[interface]]
name = "lan"
side = "inside"

[[interface]]
name = "wan"
side = "outside"

[[snat]]
name = "office"
source = ["192.168.0.0/16"]
destination = ["!192.168.0.0/16"]
out = "wan"
to = "masquerade"
"#;

/// How long natgw may take until it answers: long on a busy machine.
const START: Duration = Duration::from_secs(60);

/// A natgw daemon in a lab. Dropped, it is killed and leaves nothing behind.
#[derive(Debug)]
pub struct Gateway {
    host: Host,
    /// Holds its configuration, its socket, its log and its bpffs.
    folder: PathBuf,
    process: Option<Process>,
    keep: bool,
    /// What is started: the binary under test, or a copy of it that takes its place.
    program: PathBuf,
    /// Where no inside address may be seen, from before its first start until after its end.
    watches: Mutex<Vec<LeakWatch>>,
}

impl Gateway {
    /// Starts natgw with the standard set-up.
    pub fn standard(lab: &Lab) -> Self {
        Self::start(lab, STANDARD)
    }

    /// Starts natgw with a configuration and waits until it answers. `[control]` is added here.
    pub fn start(lab: &Lab, configuration: &str) -> Self {
        let mut gateway = Self::prepare(lab, configuration);
        gateway.restart();
        gateway
    }

    /// Starts a natgw on another machine than that of the lab, which is watched for leaks here.
    pub fn start_on(host: &Host, configuration: &str, watches: Vec<LeakWatch>) -> Self {
        let mut gateway = Self::prepare_on(host, configuration);
        *gateway.watched() = watches;
        gateway.restart();
        gateway
    }

    /// Makes the folder with the configuration, but does not start natgw.
    pub fn prepare(lab: &Lab, configuration: &str) -> Self {
        let gateway = Self::prepare_on(&lab.gateway, configuration);
        *gateway.watched() = lab.watch_for_leaks();
        gateway
    }

    fn watched(&self) -> MutexGuard<'_, Vec<LeakWatch>> {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What has been seen outside with an inside address so far.
    pub fn leaks(&self) -> Vec<String> {
        self.watched().iter().flat_map(LeakWatch::leaks).collect()
    }

    /// Inside addresses may be seen outside: something other than natgw sends them, or natgw is told to.
    pub fn expect_inside_addresses_outside(&self) {
        self.watched().clear();
    }

    fn prepare_on(host: &Host, configuration: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("natgw-test-{}-{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let gateway = Self {
            host: host.clone(),
            folder: env::temp_dir().join(name),
            process: None,
            keep: false,
            program: binary(),
            watches: Mutex::default(),
        };
        fs::DirBuilder::new().mode(0o700).create(&gateway.folder).expect("make natgw's folder");
        // `ip netns exec` gives a command its own /sys: the pins have to live elsewhere to outlive it.
        let bpffs = gateway.folder.join("bpf");
        fs::create_dir(&bpffs).expect("make the mount point of bpffs");
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None).expect("mount bpffs");
        gateway.configure(configuration);
        gateway
    }

    /// Replaces the configuration file; natgw reads it at `reload` or at its next start.
    pub fn configure(&self, configuration: &str) {
        let control = format!(
            "[control]\nsocket = \"{}\"\nbpffs = \"{}\"\n",
            self.socket().display(),
            self.folder.join("bpf").join("natgw").display()
        );
        // One thing less to start, unless the test is about it.
        let metrics = if configuration.contains("[metrics]") { "" } else { "[metrics]\nlisten = \"\"\n" };
        fs::write(self.configuration(), format!("{configuration}\n{control}{metrics}"))
            .expect("write natgw's configuration");
    }

    /// Starts natgw, or starts it again, and waits until it answers.
    pub fn restart(&mut self) {
        self.restart_with(&[]);
    }

    /// Starts natgw again with some environment variables.
    pub fn restart_with(&mut self, environment: &[(&str, &Path)]) {
        self.launch(environment);
        let deadline = Instant::now() + START;
        while !self.output(&["status", "--json"]).status.success() {
            if let Some(status) = self.ended() {
                panic!("natgw ended while starting: {status}");
            }
            assert!(Instant::now() < deadline, "natgw does not answer within {START:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts natgw, or starts it again, and waits for nothing.
    pub fn launch(&mut self, environment: &[(&str, &Path)]) {
        self.process = None;
        let log =
            fs::OpenOptions::new().create(true).append(true).open(self.log_file()).expect("open the log");
        let mut command = self.host.command(&self.program.to_string_lossy());
        command.args(["run", "--config"]).arg(self.configuration());
        if self.keep {
            command.arg("--keep");
        }
        command.envs(environment.iter().copied());
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("share the log")).stderr(log);
        self.process = Some(Process::start(&mut command, "natgw run"));
    }

    /// How natgw ended, if it has by itself.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut().and_then(Process::ended)
    }

    /// From the next start on, another file is natgw: an upgrade.
    pub fn use_program(&mut self, program: &Path) {
        program.clone_into(&mut self.program);
    }

    /// The file that is started as natgw.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Asks natgw and gives back whatever it says.
    pub fn output(&self, arguments: &[&str]) -> Output {
        let mut command = self.host.command(&binary().to_string_lossy());
        command.arg("--socket").arg(self.socket()).args(arguments);
        finish(&mut command, &format!("natgw {}", arguments.join(" ")))
    }

    /// Starts a command of natgw's that goes on; what it prints goes into a file, what it complains of into natgw's log.
    pub fn spawn(&self, arguments: &[&str], into: &Path) -> Process {
        let mut command = self.host.command(&binary().to_string_lossy());
        command.arg("--socket").arg(self.socket()).args(arguments);
        let file = fs::File::create(into).expect("make the file for what is printed");
        let log =
            fs::OpenOptions::new().append(true).create(true).open(self.log_file()).expect("open natgw's log");
        command.stdin(Stdio::null()).stdout(file).stderr(log);
        Process::start(&mut command, &format!("natgw {}", arguments.join(" ")))
    }

    /// Asks natgw for text; it has to succeed.
    pub fn text(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "natgw {}: {}\n{errors}", arguments.join(" "), output.status);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Asks natgw for JSON: `gateway.natgw(&["session", "list", "--json"])`.
    pub fn natgw(&self, arguments: &[&str]) -> Value {
        let text = self.text(arguments);
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("natgw {} --json: {error}:\n{text}", arguments.join(" ")))
    }

    /// The listed sessions.
    pub fn sessions(&self) -> Vec<Value> {
        match self.natgw(&["session", "list", "--json"]) {
            Value::Array(sessions) => sessions,
            other => panic!("`session list --json` is an array, not {other}"),
        }
    }

    /// How many packets natgw says it has dropped, by reason.
    pub fn drops(&self) -> BTreeMap<String, u64> {
        let status = self.natgw(&["status", "--json"]);
        let rows = status["drops"].as_array().unwrap_or_else(|| panic!("no drops in {status}"));
        let row = |row: &Value| {
            let reason = row["reason"].as_str().unwrap_or_else(|| panic!("no reason in {row}")).to_owned();
            (reason, row["packets"].as_u64().unwrap_or_else(|| panic!("no packets in {row}")))
        };
        rows.iter().map(row).collect()
    }

    /// Who sends what veth takes from XDP: before Linux 6.3 the kernel does not say that it does, and the stack sends.
    pub fn redirected_by(&self) -> &'static str {
        let says = !self.log().contains("does not say which interfaces take redirected frames");
        if says { "xdp" } else { "tc" }
    }

    /// Waits until `settled` holds; fails after `patience`.
    pub fn wait_until(&self, what: &str, patience: Duration, settled: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + patience;
        while !settled(self) {
            assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// From the next start on, natgw leaves its fast path in place when it is stopped.
    pub fn keep_fast_path(&mut self) {
        self.keep = true;
    }

    /// From the next start on, natgw takes its fast path along when it is stopped, as it does by itself.
    pub fn drop_fast_path(&mut self) {
        self.keep = false;
    }

    /// Sends natgw a signal.
    pub fn signal(&self, signal: Signal) {
        let Some(process) = &self.process else { return };
        let id = Pid::from_raw(i32::try_from(process.id()).expect("process ids fit")).expect("not process 0");
        kill_process(id, signal).expect("send natgw a signal");
    }

    /// Ends natgw with SIGTERM: it detaches and goes.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let Some(mut process) = self.process.take() else { return };
        let status = process.wait(START);
        assert!(status.success(), "natgw ended with {status} after SIGTERM");
    }

    /// Ends natgw with SIGKILL: its pinned fast path stays.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// natgw's process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// What natgw has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// The names of everything that is pinned.
    pub fn pins(&self) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![self.folder.join("bpf").join("natgw")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                match entry.file_type() {
                    Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                    _ => found.push(entry.file_name().to_string_lossy().into_owned()),
                }
            }
        }
        found.sort();
        found
    }

    /// The configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.folder.join("natgw.toml")
    }

    /// The control socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("natgw.sock")
    }

    /// Where a map of the fast path is pinned.
    pub fn pin(&self, map: &str) -> String {
        let pins = self.folder.join("bpf").join("natgw").join(format!("v{}", nat_common::abi::VERSION));
        pins.join(map).display().to_string()
    }

    /// What bpftool says, as JSON.
    pub fn bpftool(&self, arguments: &[&str]) -> Value {
        let mut command = self.host.command("bpftool");
        let output = finish(command.arg("-j").args(arguments), "bpftool");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("bpftool {}: {error}", arguments.join(" ")))
    }

    /// The id of the first map in a pinned map of maps.
    pub fn first_segment(&self, map: &str) -> String {
        let row =
            self.bpftool(&["map", "lookup", "pinned", &self.pin(map), "key", "hex", "0", "0", "0", "0"]);
        let id: [u8; 4] = bytes(&row["value"]).try_into().unwrap_or_else(|_| panic!("no id in {row}"));
        u32::from_ne_bytes(id).to_string()
    }

    /// Keys and values of a map, `by` its "id" or where it is "pinned".
    pub fn map_entries(&self, by: &str, map: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let dump = self.bpftool(&["map", "dump", by, map]);
        dump.as_array().into_iter().flatten().map(|row| (bytes(&row["key"]), bytes(&row["value"]))).collect()
    }

    fn log_file(&self) -> PathBuf {
        self.folder.join("log")
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if thread::panicking() {
            println!("natgw's log:\n{}", self.log());
        }
        self.process = None;
        // Unmounting drops the pins, and with them what a killed natgw left attached.
        let _ = unmount(self.folder.join("bpf"), UnmountFlags::DETACH);
        let _ = fs::remove_dir_all(&self.folder);
        if !thread::panicking() {
            let leaks = self.leaks();
            assert!(leaks.is_empty(), "{} packets with an inside address outside: {leaks:#?}", leaks.len());
        }
    }
}

/// Bytes as bpftool writes them: `["0x00", …]`.
fn bytes(value: &Value) -> Vec<u8> {
    let words = value.as_array().into_iter().flatten().filter_map(Value::as_str);
    words.filter_map(|word| u8::from_str_radix(word.trim_start_matches("0x"), 16).ok()).collect()
}

/// The binary under test: `NATGW_BIN`, or the release build beside the test's own target folder.
pub fn binary() -> PathBuf {
    if let Some(path) = env::var_os("NATGW_BIN") {
        return path.into();
    }
    let test = env::current_exe().expect("the test knows its own path");
    // target/debug/deps/lab-0123 -> target/release/natgw
    let target = test.ancestors().nth(3).unwrap_or(Path::new("target"));
    let path = target.join("release/natgw");
    assert!(path.exists(), "{} is not built: run `cargo xtask build --release`", path.display());
    path
}
