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

/// What [`Lab::new`] makes of [`HOSTS`].
pub(crate) const DRAWING: &str = "
  a 192.168.1.10 ─┐
                  ├─ switch ── lan 192.168.1.1 [gateway] wan 203.0.113.1 ── 203.0.113.254 server 198.51.100.1
  b 192.168.1.11 ─┘
";

/// Hosts of the LAN, and their addresses.
pub(crate) const HOSTS: &[(&str, &str)] = &[("a", "192.168.1.10"), ("b", "192.168.1.11")];

/// Namespaces and a folder; gone when it is dropped.
pub(crate) struct Lab {
    prefix: String,
    folder: PathBuf,
    members: Vec<&'static str>,
}

impl Lab {
    /// Makes and wires the namespaces, with these hosts on the LAN.
    pub(crate) fn new(hosts: &[(&'static str, &str)]) -> Result<Self> {
        let prefix = format!("natgw-demo-{}", process::id());
        let folder = std::env::temp_dir().join(&prefix);
        fs::create_dir(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        let mut members: Vec<&str> = hosts.iter().map(|(name, _)| *name).collect();
        members.extend(["switch", "gateway", "server"]);
        // From here on the drop cleans up.
        let lab = Self { prefix, folder, members };
        let [switch, gateway, server] = ["switch", "gateway", "server"].map(|member| lab.name(member));
        let mut batch: Vec<String> =
            lab.members.iter().map(|member| format!("netns add {}\n", lab.name(member))).collect();
        let mut ports = Vec::new();
        for (name, _) in hosts {
            let own = lab.name(name);
            batch.push(format!("link add eth0 netns {own} type veth peer name port-{name} netns {switch}\n"));
            ports.push(format!("link set port-{name} master bridge up\n"));
        }
        batch.push(format!(
            "link add lan netns {gateway} type veth peer name uplink netns {switch}\n\
             link add wan netns {gateway} type veth peer name eth0 netns {server}\n"
        ));
        ip(&["-batch", "-"], &batch.concat())?;
        lab.configure(
            "switch",
            &format!(
                "link add bridge type bridge\nlink set bridge up\nlink set uplink master bridge up\n{}",
                ports.concat()
            ),
        )?;
        for (member, address) in hosts {
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
            quiet(lab.inside(hosts[0].0).args(["ping", "-c", "1", "-W", "1", "192.168.1.1"])).is_ok()
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
        let names: Vec<String> =
            self.members.iter().map(|member| format!("ip netns del {}", self.name(member))).collect();
        format!("{}; rm -r {}", names.join("; "), self.folder.display())
    }

    /// Configures a namespace: lines of `ip -batch`.
    pub(crate) fn configure(&self, member: &str, batch: &str) -> Result {
        ip(&["-n", &self.name(member), "-batch", "-"], batch)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // A lab that was only half made has namespaces missing.
        for member in &self.members {
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
