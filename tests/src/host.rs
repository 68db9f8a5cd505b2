//! A machine of the lab: a network namespace with commands, processes, sockets and taps inside.

use std::{
    fs::File,
    io::{self, Read, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    os::fd::AsFd as _,
    panic,
    process::{Child, Command, ExitStatus, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    net::{AddressFamily, SocketType, sockopt},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

use crate::{packet::Mac, wire::Tap};

/// How long a command may take before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(60);

/// A network namespace and the one address in it that tests speak of.
#[derive(Clone, Debug)]
pub struct Host {
    /// The namespace's name: `ip netns exec NAME …` enters it while the lab lives.
    pub namespace: String,
    /// Its interface.
    pub interface: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its interface's Ethernet address.
    pub mac: Mac,
    /// The Ethernet address that it sends to, to reach beyond its subnet.
    pub next_hop: Mac,
}

impl Host {
    /// A command that will run inside; `ip netns exec` gives it the /sys of the namespace as well.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.namespace, program]);
        command
    }

    /// Runs a command line (split at blanks) and waits for it.
    pub fn run(&self, line: &str) -> Output {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line"));
        finish(command.args(words), line)
    }

    /// Runs a shell script and waits for it.
    pub fn shell(&self, script: &str) -> Output {
        finish(self.command("sh").args(["-c", script]), script)
    }

    /// Runs a command line that has to succeed; its standard output.
    pub fn succeed(&self, line: &str) -> String {
        let output = self.run(line);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {line}: {}\n{text}{errors}", self.namespace, output.status);
        text
    }

    /// Configures the namespace: `host.ip("route add default via 192.168.1.1")`.
    pub fn ip(&self, arguments: &str) -> String {
        self.succeed(&format!("ip {arguments}"))
    }

    /// Loads an nftables rule set.
    pub fn nft(&self, rules: &str) {
        let mut command = self.command("nft");
        feed(command.args(["-f", "-"]), rules);
    }

    /// Sets a network sysctl of this namespace: `host.sysctl("ipv4.ip_forward", "1")`.
    pub fn sysctl(&self, key: &str, value: &str) {
        let path = format!("/proc/sys/net/{}", key.replace('.', "/"));
        self.within(|| std::fs::write(&path, value)).unwrap_or_else(|error| {
            panic!("{}: write {value} to {path}: {error}", self.namespace);
        });
    }

    /// Keeps the kernel from answering crafted packets: it sees ARP, and no IP any more. Taps still do.
    pub fn mute(&self) {
        self.nft("table ip mute { chain input { type filter hook input priority 0; policy drop; }; }");
    }

    /// Starts a command line that runs until it is dropped.
    pub fn spawn(&self, line: &str) -> Process {
        let mut words = line.split_whitespace();
        let mut command = self.command(words.next().expect("a command line"));
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Process::start(&mut command, line)
    }

    /// Calls `work` on a thread inside the namespace; sockets that it makes stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.namespace);
        let inside = move || {
            let namespace = File::open(&path).unwrap_or_else(|error| panic!("open {path}: {error}"));
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .unwrap_or_else(|error| panic!("enter {path}: {error} (are you root?)"));
            work()
        };
        thread::scope(|scope| scope.spawn(inside).join())
            .unwrap_or_else(|payload| panic::resume_unwind(payload))
    }

    /// A tap on this host's interface.
    pub fn tap(&self) -> Tap {
        self.tap_on(&self.interface)
    }

    /// A tap on any interface of this namespace.
    pub fn tap_on(&self, interface: &str) -> Tap {
        let label = format!("{} {interface}", self.namespace);
        self.within(|| Tap::open(interface, self.mac, self.next_hop))
            .unwrap_or_else(|error| panic!("tap {label}: {error}"))
    }

    /// Turns checksum and segmentation offload of the interface off, as on a link to real hardware.
    pub fn offloads_off(&self) {
        self.succeed(&format!("ethtool -K {} tx off tso off gso off gro off", self.interface));
    }

    /// Turns GRO on, which makes a veth take frames that were redirected to its peer.
    pub fn gro_on(&self) {
        self.succeed(&format!("ethtool -K {} gro on", self.interface));
    }
}

/// A process of the lab; killed, by its id, when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`; `name` is for messages.
    pub fn start(command: &mut Command, name: &str) -> Self {
        let child = command.spawn().unwrap_or_else(|error| panic!("start {name}: {error}"));
        Self { child, name: name.to_owned() }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("wait for {}: {error}", self.name))
    }

    /// Waits until it ends.
    pub fn wait(&mut self, patience: Duration) -> ExitStatus {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(Instant::now() < deadline, "{} did not end within {patience:?}", self.name);
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Sends SIGKILL and waits.
    pub fn kill(&mut self) {
        // It may have ended by itself, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Connects from an endpoint of one's own choice, for at most two seconds; to be called [within](Host::within) a host.
pub fn connect_from(own: &str, remote: &str) -> io::Result<TcpStream> {
    let endpoint = |text: &str| text.parse::<SocketAddrV4>().map_err(io::Error::other);
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    // It limits connecting, too.
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(Duration::from_secs(2)))?;
    rustix::net::bind(&socket, &endpoint(own)?)?;
    rustix::net::connect(&socket, &endpoint(remote)?)?;
    Ok(TcpStream::from(socket))
}

/// Runs `command` to its end, or kills it when it hangs.
pub fn finish(command: &mut Command, name: &str) -> Output {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = Process::start(command, name);
    let stdout = process.child.stdout.take().expect("stdout is piped");
    let stderr = process.child.stderr.take().expect("stderr is piped");
    let (stdout, stderr) = (collect(stdout), collect(stderr));
    let status = process.wait(PATIENCE);
    let join = |reader: thread::JoinHandle<Vec<u8>>| reader.join().expect("a reader does not panic");
    Output { status, stdout: join(stdout), stderr: join(stderr) }
}

/// Runs `command` with `input` on its standard input; it has to succeed.
pub(crate) fn feed(command: &mut Command, input: &str) {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(input.as_bytes()).unwrap_or_else(|error| panic!("feed {command:?}: {error}"));
    drop(stdin);
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}: {errors}\n{input}", output.status);
}

fn collect(mut pipe: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // A process that was killed leaves what it said until then.
        let _ = pipe.read_to_end(&mut bytes);
        bytes
    })
}
