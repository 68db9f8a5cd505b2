//! The demo's namespaces. Veth pairs just as `ip link add` makes them: who tries natgw will not tune them first.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::shell::{command, quiet, Result};

/// What [`Lab::new`] makes.
pub(crate) const DRAWING: &str = "
  a 192.168.1.10 ─┐
                  ├─ switch ── lan 192.168.1.1 [gateway] wan 203.0.113.1 ── 203.0.113.254 server 198.51.100.1
  b 192.168.1.11 ─┘
";

/// Namespaces and a folder; gone when it is dropped.
pub(crate) struct Lab {
    prefix: String,
    folder: PathBuf,
}

const MEMBERS: [&str; 5] = ["a", "b", "switch", "gateway", "server"];

impl Lab {
    /// Makes and wires the namespaces.
    pub(crate) fn new() -> Result<Self> {
        let prefix = format!("natgw-demo-{}", process::id());
        let folder = std::env::temp_dir().join(&prefix);
        fs::create_dir(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        // From here on the drop cleans up.
        let lab = Self { prefix, folder };
        let [a, b, switch, gateway, server] = MEMBERS.map(|member| lab.name(member));
        let wires = format!(
            "link add eth0 netns {a} type veth peer name port-a netns {switch}\n\
             link add eth0 netns {b} type veth peer name port-b netns {switch}\n\
             link add lan netns {gateway} type veth peer name uplink netns {switch}\n\
             link add wan netns {gateway} type veth peer name eth0 netns {server}\n"
        );
        let namespaces = MEMBERS.map(|member| format!("netns add {}\n", lab.name(member)));
        ip(&["-batch", "-"], &(namespaces.concat() + &wires))?;
        lab.configure(
            "switch",
            "link add bridge type bridge\nlink set bridge up\nlink set port-a master bridge up\n\
             link set port-b master bridge up\nlink set uplink master bridge up\n",
        )?;
        for (member, address) in [("a", "192.168.1.10"), ("b", "192.168.1.11")] {
            lab.configure(
                member,
                &format!(
                    "link set lo up\nlink set eth0 up\naddr add {address}/24 dev eth0\n\
                     route add default via 192.168.1.1\n"
                ),
            )?;
        }
        lab.configure(
            "gateway",
            "link set lo up\nlink set lan up\nlink set wan up\naddr add 192.168.1.1/24 dev lan\n\
             addr add 203.0.113.1/24 dev wan\nroute add default via 203.0.113.254\n",
        )?;
        lab.configure(
            "server",
            "link set lo up\naddr add 198.51.100.1/32 dev lo\nlink set eth0 up\n\
             addr add 203.0.113.254/24 dev eth0\n",
        )?;
        // A bridge port carries only some time after both of its ends are up.
        eventually("the switch forwards", || {
            quiet(lab.inside("a").args(["ping", "-c", "1", "-W", "1", "192.168.1.1"])).is_ok()
        })?;
        Ok(lab)
    }

    /// A namespace's name.
    pub(crate) fn name(&self, member: &str) -> String {
        format!("{}-{member}", self.prefix)
    }

    /// A folder for this demo's files.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command that runs in a namespace; its arguments are the program and the program's arguments.
    pub(crate) fn inside(&self, member: &str) -> Command {
        command(&["ip", "netns", "exec", &self.name(member)])
    }

    /// Starts a program in a namespace; it ends with the returned value. Its output goes to `log`.
    pub(crate) fn start(&self, member: &str, words: &[&str], log: &str) -> Result<Program> {
        let path = self.folder.join(log);
        let file = fs::File::create(&path).map_err(|error| format!("make {}: {error}", path.display()))?;
        let copy = file.try_clone().map_err(|error| format!("share {}: {error}", path.display()))?;
        let mut command = self.inside(member);
        command.args(words).stdin(Stdio::null()).stdout(file).stderr(copy);
        let child = command.spawn().map_err(|error| format!("start {}: {error}", words[0]))?;
        Ok(Program { child })
    }

    /// What removes this lab by hand.
    pub(crate) fn removal(&self) -> String {
        let names = MEMBERS.map(|member| format!("ip netns del {}", self.name(member)));
        format!("{}; rm -r {}", names.join("; "), self.folder.display())
    }

    fn configure(&self, member: &str, batch: &str) -> Result {
        ip(&["-n", &self.name(member), "-batch", "-"], batch)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A lab that was only half made has namespaces missing.
        for member in MEMBERS {
            let _ = quiet(&mut command(&["ip", "netns", "del", &self.name(member)]));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A running program; killed when dropped.
pub(crate) struct Program {
    child: Child,
}

impl Program {
    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended.
    pub(crate) fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `holds`, ten seconds at most.
pub(crate) fn eventually(what: &str, holds: impl Fn() -> bool) -> Result {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        super::interrupt::check()?;
        if Instant::now() > deadline {
            return Err(format!("{what}: not within 10 s"));
        }
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn ip(arguments: &[&str], batch: &str) -> Result {
    let mut child = Command::new("ip")
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("start ip: {error}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    stdin.write_all(batch.as_bytes()).map_err(|error| format!("feed ip: {error}"))?;
    drop(stdin);
    let status = child.wait().map_err(|error| format!("wait for ip: {error}"))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("ip {} failed on:\n{batch}", arguments.join(" ")))
    }
}
