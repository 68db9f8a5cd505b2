//! `cargo xtask test kernels`: the core of the lab on Debian 12's kernel, the oldest that natgw claims to run on.
//!
//! The kernel is booted in QEMU, emulated, so that it needs nothing of the machine. Its root file system is this machine's,
//! read only: test programs, natgw and the tools that they call are those that run here.

use std::{
    env, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::Stdio,
};

use crate::{
    build::{build_natgw, natgw},
    machine::want_root,
    setup::install_missing,
    shell::{capture, cargo, command, quiet, run, step, target, Result},
    test::Tally,
    told::Failures,
};

/// The package that names Debian 12's kernel.
const META: &str = "linux-image-amd64";
/// Folders of modules that the initial file system needs to get at the machine's.
const MODULES: [&str; 5] = ["drivers/virtio", "net/9p", "fs/9p", "fs/netfs", "fs/fscache"];
/// How long it may take: emulation is slow.
const PATIENCE: &str = "5400";
/// The core of the lab: mappings, filters, TCP, ICMP, fragments, hairpins, forwards, one-to-one, VLANs, what the program
/// opens by itself, reload, takeover, upgrade and end.
const CORE: [&str; 17] = [
    "dlg::",
    "starts::what_was",
    "flt::flt_0",
    "frg::frg_0",
    "hpn::hpn_0",
    "ice::ice_0",
    "icq::icq_0",
    "map::map_0",
    "l2x_vlans::",
    "one::one_0",
    "ops::ops_0",
    "ops_host::ops_0",
    "ops_reload::ops_0",
    "ops_restart::ops_0",
    "pfw::pfw_0",
    "tcp::tcp_0",
    "tcp_end::",
];

/// What every whole run has of it: mappings, and an end that leaves nothing.
const SHORT: [&str; 2] = ["starts::what_was", "map::map_01"];

/// Boots the kernel and runs the core in it, or what the filter says.
pub(crate) fn kernels(filter: &[&str], failures: &mut Failures) -> Result<Tally> {
    want_root("test kernels")?;
    let (folder, unpacked) = step("Debian 12's kernel", fetch)?;
    let filter = if filter.is_empty() { &CORE[..] } else { filter };
    boot_with(&folder, &unpacked, filter, failures)
}

/// The short form; one test that is skipped where emulator or kernel cannot be had.
pub(crate) fn short(failures: &mut Failures) -> Result<Tally> {
    match fetch() {
        Ok((folder, unpacked)) => boot_with(&folder, &unpacked, &SHORT, failures),
        Err(message) => {
            println!("Debian 12's kernel is not booted: {message}");
            Ok(Tally::skipped())
        }
    }
}

/// Emulator and kernel.
fn fetch() -> Result<(PathBuf, PathBuf)> {
    install_missing(&["qemu-system-x86", "busybox-static", "iproute2"])?;
    let folder = target().join("kernels");
    fs::create_dir_all(&folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
    let unpacked = unpack(&folder)?;
    Ok((folder, unpacked))
}

/// Runs the tests of the loaded program, and those of the lab that the filter says.
fn boot_with(folder: &Path, unpacked: &Path, filter: &[&str], failures: &mut Failures) -> Result<Tally> {
    // Copies: what is built meanwhile is not what runs.
    let [natgw, program, lab] = step("test programs", || {
        build_natgw()?;
        let programs =
            [("natgw", natgw()), ("program", test_program("program")?), ("lab", test_program("lab")?)];
        let copies = programs.map(|(name, from)| (from, folder.join(name)));
        for (from, to) in &copies {
            fs::copy(from, to).map_err(|error| format!("copy {}: {error}", from.display()))?;
        }
        Ok(copies.map(|(_, copy)| copy))
    })?;
    let commands = format!(
        "export TMPDIR=/mnt PATH=/usr/sbin:/usr/bin:/sbin:/bin NATGW_BIN={}\n\
         ip link set lo up\ncd /\n\
         # How much the verifier has to walk is its version's affair.\n\
         {} --test-threads 1 --skip budget::\n\
         {} --test-threads 2 {}\n",
        natgw.display(),
        program.display(),
        lab.display(),
        filter.join(" ")
    );
    write(&folder.join("commands"), &commands)?;
    let image = initial_file_system(folder, unpacked)?;
    step("the kernel boots", || boot(unpacked, &image, failures))
}

/// The kernel's package, unpacked.
fn unpack(folder: &Path) -> Result<PathBuf> {
    let depends = quiet(&mut command(&["apt-cache", "depends", META]))?;
    let package = depends.split_whitespace().find(|word| word.starts_with("linux-image-6.1."));
    let package = package.ok_or_else(|| {
        format!("{META} of this machine's package lists is not Debian 12's, 6.1:\n{depends}")
    })?;
    let unpacked = folder.join(package);
    if !unpacked.exists() {
        let is_archive = |name: &str| {
            name.starts_with(package) && Path::new(name).extension().is_some_and(|end| end == "deb")
        };
        run(command(&["apt-get", "download", "--quiet", package]).current_dir(folder))?;
        let archive = names(folder)?.into_iter().find(|name| is_archive(name));
        let archive = archive.ok_or_else(|| format!("apt-get downloaded no {package}"))?;
        let partly = folder.join("partly");
        run(command(&["dpkg-deb", "-x", &archive]).arg(&partly).current_dir(folder))?;
        let version = version(&partly)?;
        run(command(&["busybox", "depmod", "-b"]).arg(&partly).arg(version))?;
        rename(&partly, &unpacked)?;
    }
    println!("{package}");
    Ok(unpacked)
}

/// The version of an unpacked kernel: the name of its folder of modules.
fn version(unpacked: &Path) -> Result<String> {
    names(&unpacked.join("lib/modules"))?.pop().ok_or_else(|| "the kernel has no modules".to_owned())
}

/// A compressed archive with busybox, the modules that are needed first, and the first program.
fn initial_file_system(folder: &Path, unpacked: &Path) -> Result<PathBuf> {
    let version = version(unpacked)?;
    let modules = unpacked.join("lib/modules");
    let root = folder.join("initial");
    if root.exists() {
        fs::remove_dir_all(&root).map_err(|error| format!("remove {}: {error}", root.display()))?;
    }
    let own = root.join("lib/modules").join(&version);
    for path in ["bin", "sbin", "proc", "sys", "dev", "root"] {
        fs::create_dir_all(root.join(path)).map_err(|error| format!("make /{path}: {error}"))?;
    }
    fs::create_dir_all(own.join("kernel")).map_err(|error| format!("make /lib/modules: {error}"))?;
    for part in MODULES {
        let from = modules.join(&version).join("kernel").join(part);
        run(command(&["cp", "--recursive", "--parents", part])
            .arg(own.join("kernel"))
            .current_dir(from.ancestors().nth(2).unwrap_or(&modules)))?;
    }
    run(command(&["cp"]).arg(modules.join(&version).join("modules.dep")).arg(&own))?;
    run(command(&["cp", "/bin/busybox"]).arg(root.join("bin")))?;
    // The kernel calls it for modules that it misses.
    run(command(&["ln", "-s", "/bin/busybox"]).arg(root.join("sbin/modprobe")))?;
    let first = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         export PATH=/bin:/sbin\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         modprobe -a virtio_pci 9pnet_virtio 9p\n\
         mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /root || poweroff -f\n\
         rm -rf /lib/modules; ln -s /root{modules} /lib/modules\n\
         modprobe -a veth bridge sch_ingress cls_bpf\n\
         for at in proc sys dev; do mount --bind /$at /root/$at; done\n\
         mount -t tmpfs tmpfs /root/run; mount -t tmpfs tmpfs /root/mnt; mount -t bpf bpf /root/sys/fs/bpf\n\
         echo \"Linux $(uname -r) is up after $(cut -d' ' -f1 /proc/uptime) s\"\n\
         chroot /root /bin/bash {commands} 2>&1\n\
         echo 'the tests have ended'\n\
         poweroff -f\n",
        modules = modules.display(),
        commands = folder.join("commands").display()
    );
    write(&root.join("init"), &first)?;
    run(command(&["chmod", "+x"]).arg(root.join("init")))?;
    let image = folder.join("initial.gz");
    let pack = format!("find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > {}", image.display());
    run(command(&["sh", "-c", &pack]).current_dir(&root))?;
    Ok(image)
}

/// Runs the virtual machine until it switches itself off; passes on and adds up what its tests print.
fn boot(unpacked: &Path, image: &Path, failures: &mut Failures) -> Result<Tally> {
    let mut machine = command(&["timeout", PATIENCE, "qemu-system-x86_64", "-machine", "q35"]);
    machine.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-m", "3G", "-smp", "2"]);
    machine.args(["-nic", "none", "-nographic", "-no-reboot"]);
    machine.arg("-kernel").arg(unpacked.join(format!("boot/vmlinuz-{}", version(unpacked)?)));
    machine.arg("-initrd").arg(image).args(["-append", "console=ttyS0 quiet panic=-1"]);
    let share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
    machine.args(["-virtfs", share]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = machine.spawn().map_err(|error| format!("start qemu-system-x86_64: {error}"))?;
    let output = child.stdout.take().expect("stdout is piped");
    let (mut tally, mut programs, mut has_ended) = (Tally::default(), 0, false);
    for line in BufReader::new(output).split(b'\n') {
        let line = line.map_err(|error| format!("read from the virtual machine: {error}"))?;
        let text = String::from_utf8_lossy(&line);
        let text = plain(text.trim_end());
        if let Some(more) = Tally::of_line(&text) {
            tally += more;
            programs += 1;
        }
        failures.line(&text);
        has_ended |= text == "the tests have ended";
        println!("{text}");
    }
    child.wait().map_err(|error| format!("wait for qemu-system-x86_64: {error}"))?;
    if has_ended && programs == 2 {
        Ok(tally)
    } else {
        Err("the kernel did not come as far as the end of its tests".to_owned())
    }
}

/// A line without the colours and other escapes of a terminal.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\x1b' {
            // A control sequence ends with a letter.
            let _ = characters.by_ref().find(char::is_ascii_alphabetic);
        } else {
            plain.push(character);
        }
    }
    plain
}

/// Builds a test program of nat-tests, and says where it is.
fn test_program(name: &str) -> Result<PathBuf> {
    let words = ["test", "--locked", "--no-run", "-p", "nat-tests", "--test", name];
    let (built, said) = capture(&mut cargo(&words))?;
    // `  Executable tests/lab/main.rs (target/debug/deps/lab-0123)`
    let path = said.lines().rev().find_map(|line| {
        line.trim().strip_prefix("Executable ")?.split_once('(')?.1.strip_suffix(')').map(PathBuf::from)
    });
    match path.filter(|_| built) {
        Some(path) if path.is_absolute() => Ok(path),
        Some(path) => Ok(env::current_dir().unwrap_or_default().join(path)),
        None => Err(format!("`cargo {}` failed:\n{said}", words.join(" "))),
    }
}

fn names(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("read {}: {error}", folder.display()))?;
    Ok(entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect())
}

fn rename(from: &Path, to: &Path) -> Result {
    fs::rename(from, to).map_err(|error| format!("rename {}: {error}", from.display()))
}

fn write(path: &Path, text: &str) -> Result {
    fs::write(path, text).map_err(|error| format!("write {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn escapes_of_a_terminal_are_left_out() {
        assert_eq!(plain("test result: \u{1b}[31mFAILED\u{1b}[m. 1 passed"), "test result: FAILED. 1 passed");
        assert_eq!(plain("\u{1b}[?7l\u{1b}[2Jup"), "up");
    }
}
