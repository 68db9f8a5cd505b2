//! `cargo xtask test package`: the Debian package on a Debian of its own. It is installed, started by systemd, given
//! packets, reloaded, hung, upgraded and purged, and afterwards no file is left.
//!
//! systemd is process 1 of new namespaces, whose root is a copy-on-write of a folder that debootstrap made, or of this
//! machine's own root. Neither this machine's network nor its systemd have anything to do with it.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{self, Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    machine::want_root,
    package::debian_package,
    shell::{capture, command, quiet, step, target, Result},
};

/// What a purge may leave: the books of dpkg and systemd, and copies that the programs for accounts keep.
const STAYS: &[&str] = &[
    "/var/lib/dpkg/",
    "/var/lib/systemd/",
    "/var/log/dpkg.log",
    "/var/log/journal",
    "/var/log/wtmp",
    "/etc/.pwd.lock",
    "/etc/group-",
    "/etc/gshadow-",
];

/// The exposure that `systemd-analyze security` may find, in tenths.
const EXPOSURE: u32 = 30;

/// How long anything may take: long on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A gateway between two hosts. The server has no way back but to the gateway's own address.
const NETWORK: &str = "\
    ip link set lo up
    for name in client server; do ip netns add $name; done
    ip link add lan type veth peer name eth0 netns client
    ip link add wan type veth peer name eth0 netns server
    ip address add 10.1.1.1/24 dev lan
    ip address add 203.0.113.1/24 dev wan
    ip link set lan up
    ip link set wan up
    ip -n client address add 10.1.1.12/24 dev eth0
    ip -n client link set eth0 up
    ip -n client route add default via 10.1.1.1
    ip -n server address add 203.0.113.7/24 dev eth0
    ip -n server link set eth0 up
";

/// See the module.
pub(crate) fn installed(options: &[&str]) -> Result {
    let root = match options {
        [] => PathBuf::from("/"),
        ["--root", folder] => PathBuf::from(folder),
        other => return Err(format!("`{}` is no option: --root FOLDER", other.join(" "))),
    };
    want_root("test package")?;
    let package = debian_package()?;
    let machine = step("a Debian of its own, with systemd", || Machine::boot(&root))?;
    let before = machine.files()?;
    let whole = || {
        step("install", || install(&machine, &package))?;
        step("start, translate, reload, and no more than that", || serve(&machine))?;
        step("a daemon that hangs is started again, and nothing notices", || hang(&machine))?;
        step("an upgrade", || upgrade(&machine))?;
        step("stop and purge", || purge(&machine, &before))
    };
    whole().map_err(|message| {
        let journal = machine.ask("journalctl --no-pager --lines=30 --unit=natgw");
        format!("{message}\n{}", journal.unwrap_or_default().1)
    })
}

fn install(machine: &Machine, package: &Path) -> Result {
    if machine.run("dpkg --status natgw").is_ok() {
        return Err("natgw is installed on this machine: try it on another root (--root)".to_owned());
    }
    let copy = machine.path("/tmp/natgw.deb");
    fs::copy(package, &copy).map_err(|error| format!("copy to {}: {error}", copy.display()))?;
    machine.run("dpkg --install /tmp/natgw.deb")?;
    machine.run("getent group natgw")?;
    machine.expect("natgw check", "is valid: 2 interfaces, 1 snat")?;
    machine.expect("systemctl is-enabled natgw || true", "disabled")?;
    machine.expect("systemctl is-active natgw || true", "inactive")?;
    let said = machine.run("systemd-analyze verify --man=no natgw.service")?;
    if said.contains("natgw") {
        return Err(format!("systemd-analyze verify: {said}"));
    }
    let judged = format!("systemd-analyze security --no-pager --threshold={EXPOSURE} natgw.service");
    let table = machine.run(&judged)?;
    println!("{}", table.lines().last().unwrap_or_default());
    Ok(())
}

fn serve(machine: &Machine) -> Result {
    machine.run(NETWORK)?;
    // Without natgw nothing passes: it is natgw that answers below.
    if machine.pings() {
        return Err("the client reaches the server without natgw".to_owned());
    }
    // A watchdog that a test can wait for.
    machine.run(
        "mkdir /run/systemd/system/natgw.service.d
         printf '[Service]\\nWatchdogSec=3s\\n' > /run/systemd/system/natgw.service.d/soon.conf
         systemctl daemon-reload
         systemctl enable --now natgw",
    )?;
    machine.expect("systemctl show natgw --property=StatusText", "2 interfaces, 1 snat")?;
    if !machine.pings() {
        return Err(format!(
            "nothing is translated:\n{}",
            machine.run("natgw status; natgw doctor || true")?
        ));
    }
    machine.expect("natgw session list", "203.0.113.1:")?;
    machine.run("setpriv --reuid=nobody --regid=natgw --clear-groups natgw status")?;
    if machine.run("setpriv --reuid=nobody --regid=nogroup --clear-groups natgw status").is_ok() {
        return Err("who is not in the group may use the control socket".to_owned());
    }
    machine
        .run("printf '[timeouts]\\nicmp = \"90s\"\\n' >> /etc/natgw/natgw.toml; systemctl reload natgw")?;
    machine.expect("journalctl --no-pager --unit=natgw || true", "configuration reloaded")?;
    machine.expect("journalctl --no-pager --unit=natgw --priority=warning || true", "ip_forward is 0")?;
    machine.run("natgw rule add snat --name guests --source 10.9.0.0/16 --to masquerade --save")?;
    machine.expect("cat /etc/natgw/natgw.toml", "guests")?;
    machine.run("natgw metrics | grep -q ^natgw_")?;
    Ok(())
}

fn hang(machine: &Machine) -> Result {
    let before = machine.main_process()?;
    machine.run(&format!("kill -STOP {before}"))?;
    let deadline = Instant::now() + PATIENCE;
    // Meanwhile the kernel translates by itself.
    loop {
        if !machine.pings() {
            return Err("an established session broke while the daemon hung".to_owned());
        }
        let now = machine.main_process()?;
        if now != before && now != "0" && machine.run("natgw status").is_ok() {
            break;
        }
        if Instant::now() > deadline {
            return Err("systemd did not start natgw again".to_owned());
        }
    }
    machine.expect("journalctl --no-pager --unit=natgw", "Watchdog timeout")?;
    machine.expect("systemctl show natgw --property=NRestarts", "NRestarts=1")?;
    machine.expect("natgw session count", "1")
}

fn upgrade(machine: &Machine) -> Result {
    let before = machine.main_process()?;
    machine.run("dpkg --force-confold --install /tmp/natgw.deb")?;
    let ready =
        || machine.main_process().is_ok_and(|now| now != before) && machine.run("natgw status").is_ok();
    wait("the new daemon runs", ready)?;
    machine.expect("natgw session count", "1")?;
    machine.expect("journalctl --no-pager --unit=natgw", "taken_over=true")?;
    if machine.pings() {
        Ok(())
    } else {
        Err("nothing is translated after the upgrade".to_owned())
    }
}

fn purge(machine: &Machine, before: &BTreeSet<String>) -> Result {
    machine.run("dpkg --purge natgw")?;
    if machine.pings() {
        return Err("natgw is removed, and the client still reaches the server".to_owned());
    }
    let traces = machine.run(
        "ls -d /sys/fs/bpf/natgw
         ip -details link show | grep xdp
         ls -d /run/natgw /etc/natgw /var/log/natgw /etc/systemd/system/*/natgw.service
         getent group natgw
         systemctl is-active natgw
         true",
    )?;
    let traces: Vec<&str> =
        traces.lines().filter(|line| *line != "inactive" && !line.contains("No such file")).collect();
    if !traces.is_empty() {
        return Err(format!("left after the removal: {traces:?}"));
    }
    let after = machine.files()?;
    let stays = |line: &&String| {
        let path = line.rsplit_once(' ').map_or("", |(_, path)| path);
        STAYS.iter().any(|stays| path.starts_with(stays))
    };
    let left: Vec<_> = after.difference(before).filter(|line| !stays(line)).collect();
    let lost: Vec<_> = before.difference(&after).filter(|line| !stays(line)).collect();
    if left.is_empty() && lost.is_empty() {
        println!("{} files, as before", after.len());
        return Ok(());
    }
    Err(format!("left or changed: {left:#?}\nlost or as it was before: {lost:#?}"))
}

/// systemd and what it started, in namespaces of their own. Dropped, all of it is gone.
struct Machine {
    child: Child,
    /// Process 1 of the namespaces, as this machine numbers it.
    first: String,
    group: PathBuf,
    mount_point: PathBuf,
}

impl Machine {
    fn boot(root: &Path) -> Result<Self> {
        if !root.join("lib/systemd/systemd").exists() {
            return Err(format!(
                "there is no systemd in {}: install it, or `debootstrap --variant=minbase --include=systemd,iproute2 stable FOLDER` \
                 makes a root with it, for --root FOLDER",
                root.display()
            ));
        }
        let group = control_groups()?.join(format!("natgw-try-{}", process::id()));
        fs::create_dir(&group).map_err(|error| format!("make {}: {error}", group.display()))?;
        let mount_point = target().join("package/machine");
        fs::create_dir_all(&mount_point)
            .map_err(|error| format!("make {}: {error}", mount_point.display()))?;
        let start = format!(
            "echo $$ > {}/cgroup.procs && exec unshare --cgroup --ipc --mount --net --pid --uts --fork --kill-child sh -c \"$0\" boot {} {}",
            group.display(),
            root.display(),
            mount_point.display()
        );
        let child = Command::new("sh")
            .args(["-c", &start, include_str!("installed/boot.sh")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| format!("start unshare: {error}"))?;
        let mut machine = Self { child, first: String::new(), group, mount_point };
        let children = format!("/proc/{0}/task/{0}/children", machine.child.id());
        wait("systemd is process 1", || {
            let first = fs::read_to_string(&children).unwrap_or_default().trim().to_owned();
            let name = fs::read_to_string(format!("/proc/{first}/comm")).unwrap_or_default();
            first.clone_into(&mut machine.first);
            name.trim() == "systemd" || machine.child.try_wait().is_ok_and(|ended| ended.is_some())
        })?;
        if machine.first.is_empty() {
            return Err("systemd could not be started in namespaces of its own".to_owned());
        }
        wait("systemd has started", || {
            let (_, said) = machine.ask("systemctl is-system-running").unwrap_or_default();
            matches!(said.trim(), "running" | "degraded")
        })?;
        Ok(machine)
    }

    fn ask(&self, script: &str) -> Result<(bool, String)> {
        let mut command = command(&["nsenter", "--target", &self.first, "--all", "--root", "--wd"]);
        command.args(["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive"]);
        capture(command.args(["sh", "-c", script]))
    }

    /// Runs a script that has to succeed; what it printed.
    fn run(&self, script: &str) -> Result<String> {
        match self.ask(script)? {
            (true, said) => Ok(said),
            (false, said) => Err(format!("`{script}` failed:\n{said}")),
        }
    }

    fn expect(&self, script: &str, wanted: &str) -> Result {
        let said = self.run(script)?;
        if said.contains(wanted) {
            Ok(())
        } else {
            Err(format!("`{script}` does not say {wanted:?}:\n{said}"))
        }
    }

    /// A file of its, as this machine sees it.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    fn main_process(&self) -> Result<String> {
        Ok(self.run("systemctl show natgw --property=MainPID --value")?.trim().to_owned())
    }

    /// Whether the client reaches the server, with one session for each call.
    fn pings(&self) -> bool {
        let namespace = format!("--net={}", self.path("/run/netns/client").display());
        let mut ping = command(&["nsenter", &namespace]);
        ping.args(["ping", "-e", "77", "-c", "2", "-i", "0.2", "-W", "3", "203.0.113.7"]);
        quiet(&mut ping).is_ok()
    }

    /// Everything on its root file system: kind, mode, owner, size of files, path.
    fn files(&self) -> Result<BTreeSet<String>> {
        let list = self.run(
            "find / -maxdepth 1 -printf '%y %m %u:%g %p\\n'; find /boot /etc /opt /srv /usr /var -xdev \\( -type f -printf '%y %m %u:%g %s %p\\n' -o -printf '%y %m %u:%g %p%l\\n' \\)",
        )?;
        Ok(list.lines().map(str::to_owned).collect())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // Process 1 goes with it, and with that all others.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir(&self.mount_point);
        let deadline = Instant::now() + PATIENCE;
        while remove_groups(&self.group).is_err() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// Where control groups of version 2 are.
fn control_groups() -> Result<PathBuf> {
    let found = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let found = found.into_iter().find(|folder| folder.join("cgroup.procs").is_file());
    found.ok_or_else(|| "control groups of version 2 are not mounted: systemd wants them".to_owned())
}

/// Removes a control group with those below it; what looks like files in them is not.
fn remove_groups(group: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(group)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_groups(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

fn wait(what: &str, mut settled: impl FnMut() -> bool) -> Result {
    let deadline = Instant::now() + PATIENCE;
    while !settled() {
        if Instant::now() > deadline {
            return Err(format!("{what}: not within {PATIENCE:?}"));
        }
        thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}
