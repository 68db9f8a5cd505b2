//! natgw in the demo's gateway.

use std::{
    cell::RefCell,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    build::natgw,
    shell::{command, quiet, Result},
};

use super::{
    lab::{eventually, Lab, Program},
    traffic::Server,
};

/// A running natgw; when it is dropped, it and its bpffs are gone.
pub(crate) struct Gateway {
    folder: PathBuf,
    /// The table of its configuration that says where it is found.
    control: String,
    namespace: String,
    program: RefCell<Program>,
    /// Dropped after the program.
    _bpffs: Bpffs,
}

impl Gateway {
    /// Writes a configuration, starts natgw with it and waits for its answer.
    pub(crate) fn start(lab: &Lab, configuration: &str) -> Result<Self> {
        // `ip netns exec` gives each command its own /sys, so the usual /sys/fs/bpf would go with it.
        let bpffs = Bpffs::mount(lab.folder().join("bpf"))?;
        let folder = lab.folder().to_path_buf();
        let control = format!(
            "[control]\nsocket = \"{}\"\nbpffs = \"{}\"\n",
            folder.join("natgw.sock").display(),
            bpffs.0.join("natgw").display()
        );
        let file = write(&folder, configuration, &control)?;
        let (program, file) = (natgw().display().to_string(), file.display().to_string());
        println!("    natgw run --config {file}");
        let program = lab.start("gateway", &[&program, "run", "--config", &file], "natgw.log")?;
        let gateway = Self {
            folder,
            control,
            namespace: lab.name("gateway"),
            program: RefCell::new(program),
            _bpffs: bpffs,
        };
        let ready = eventually("natgw answers", || {
            gateway.program.borrow_mut().ended() || gateway.ask(&["status"]).is_ok()
        });
        if ready.is_err() || gateway.program.borrow_mut().ended() {
            return Err(format!("natgw did not start:\n{}", gateway.log()));
        }
        Ok(gateway)
    }

    /// Gives it another configuration.
    pub(crate) fn reload(&self, configuration: &str) -> Result {
        write(&self.folder, configuration, &self.control)?;
        self.ask(&["reload"]).map(drop)
    }

    /// What natgw answers.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<String> {
        quiet(self.command().args(arguments))
    }

    /// What natgw has logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("natgw.log")).unwrap_or_default()
    }

    /// Ends natgw as a service manager would.
    pub(crate) fn stop(self) -> Result {
        let id = self.program.borrow().id().to_string();
        quiet(&mut command(&["kill", "-TERM", &id]))?;
        for _ in 0..100 {
            if self.program.borrow_mut().ended() {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Err("natgw does not end after SIGTERM".to_owned())
    }

    /// For `--keep`: how to look around, and how to be rid of it all.
    pub(crate) fn guide(&self, lab: &Lab, server: &Server) -> String {
        let natgw = format!(
            "ip netns exec {} {} --socket {}",
            self.namespace,
            natgw().display(),
            self.folder.join("natgw.sock").display()
        );
        let (client, far) = (lab.name("a"), lab.name("server"));
        let mut ids = server.ids();
        ids.push(self.program.borrow().id());
        let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
        format!(
            "==> the lab stays; look around:\n\
             \x20   {natgw} session list\n\
             \x20   {natgw} status\n\
             \x20   {natgw} top\n\
             \x20   ip netns exec {client} ping 198.51.100.1\n\
             \x20   ip netns exec {client} curl -O http://198.51.100.1/download\n\
             \x20   ip netns exec {far} tcpdump -ni eth0\n\
             and remove it:\n\
             \x20   kill {}; umount {}; {}",
            ids.join(" "),
            self.folder.join("bpf").display(),
            lab.removal()
        )
    }

    fn command(&self) -> Command {
        let mut command = command(&["ip", "netns", "exec", &self.namespace]);
        command.arg(natgw()).arg("--socket").arg(self.folder.join("natgw.sock"));
        command
    }
}

fn write(folder: &Path, configuration: &str, control: &str) -> Result<PathBuf> {
    let file = folder.join("natgw.toml");
    fs::write(&file, format!("{configuration}\n{control}"))
        .map_err(|error| format!("write {}: {error}", file.display()))?;
    Ok(file)
}

/// A bpffs of its own for natgw's pins.
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(folder: PathBuf) -> Result<Self> {
        fs::create_dir(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
        quiet(command(&["mount", "-t", "bpf", "bpf"]).arg(&folder))?;
        Ok(Self(folder))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = quiet(command(&["umount", "--lazy"]).arg(&self.0));
    }
}

/// Two interfaces and a rule.
pub(crate) const CONFIGURATION: &str = r#"[[interface]]
name = "lan"
side = "inside"

[[interface]]
name = "wan"
side = "outside"

[[snat]]
name = "demo"
source = ["192.168.1.0/24"]
to = "masquerade"

[metrics]
listen = ""
"#;
