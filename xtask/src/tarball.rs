//! The static tarball of `cargo xtask package`: natgw for any Linux of the architecture, and a script that installs it.

use std::{
    env::consts::ARCH,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    build::build_static,
    machine::{has_program, is_root},
    package::{files, put, put_documents, put_printed, read},
    shell::{command, quiet, root, run, step, Result},
};

/// Makes it, and tries it in an empty root, where there is no library that it could miss.
pub(crate) fn tarball(folder: &Path) -> Result<PathBuf> {
    let binary = step("static build", build_static)?;
    let name = format!("natgw-{}-linux-{ARCH}", env!("CARGO_PKG_VERSION"));
    let tarball = step("tarball", || make(folder, &name, &binary))?;
    step("install from it into an empty root and remove", || try_out(folder, &name, &tarball))?;
    Ok(tarball)
}

fn make(folder: &Path, name: &str, binary: &Path) -> Result<PathBuf> {
    let tree = folder.join(name);
    let natgw = put(&tree, "natgw", &read(binary)?, 0o755)?;
    if has_program("strip") {
        run(command(&["strip", "--strip-unneeded"]).arg(&natgw))?;
    }
    if wants_an_interpreter(&read(&natgw)?) {
        return Err(format!("{} is not static", natgw.display()));
    }
    put(&tree, "install.sh", &read(&root().join("contrib/install.sh"))?, 0o755)?;
    for (from, to) in [
        ("examples/home.toml", "natgw.toml"),
        ("contrib/systemd/natgw.service", "natgw.service"),
        ("contrib/systemd/natgw.sysusers", "natgw.sysusers"),
        ("LICENSE-MIT", "LICENSE-MIT"),
        ("LICENSE-APACHE", "LICENSE-APACHE"),
    ] {
        put(&tree, to, &read(&root().join(from))?, 0o644)?;
    }
    put_printed(&tree, "share", binary)?;
    put_documents(&tree.join("share/doc/natgw"))?;
    let tarball = folder.join(format!("{name}.tar.gz"));
    let mut tar = command(&["tar", "--create", "--gzip", "--owner=0", "--group=0", "--sort=name", "--file"]);
    quiet(tar.arg(&tarball).arg("--directory").arg(folder).arg(name))?;
    Ok(tarball)
}

fn try_out(folder: &Path, name: &str, tarball: &Path) -> Result {
    let (unpacked, root) = (folder.join("unpacked"), folder.join("static-root"));
    for folder in [&unpacked, &root] {
        fs::create_dir_all(folder).map_err(|error| format!("make {}: {error}", folder.display()))?;
    }
    quiet(command(&["tar", "--extract", "--file"]).arg(tarball).arg("--directory").arg(&unpacked))?;
    let script = unpacked.join(name).join("install.sh");
    let installer = |verb: &str| quiet(Command::new(&script).arg(verb).env("DESTDIR", &root));
    installer("install")?;
    for file in ["usr/local/sbin/natgw", "etc/natgw/natgw.toml", "usr/local/share/man/man1/natgw.1"] {
        if !root.join(file).is_file() {
            return Err(format!("{file} is not there after the installation"));
        }
    }
    if is_root() {
        let here = root.display().to_string();
        let said = quiet(&mut command(&["chroot", &here, "/usr/local/sbin/natgw", "check"]))?;
        if !said.contains("is valid") {
            return Err(format!("natgw check in an empty root: {said}"));
        }
    }
    installer("uninstall")?;
    match files(&root)?.as_slice() {
        [only] if only == Path::new("etc/natgw/natgw.toml") => {}
        left => return Err(format!("left after the removal: {left:?}")),
    }
    if let Some(folder) = ["share/fish", "share/bash-completion", "lib/systemd"]
        .iter()
        .find(|folder| root.join("usr/local").join(folder).exists())
    {
        return Err(format!("an empty {folder} is left after the removal"));
    }
    installer("purge")?;
    match files(&root)?.first() {
        Some(left) => Err(format!("{} is left after the purge", left.display())),
        None => Ok(()),
    }
}

/// Whether a 64-bit ELF file has a dynamic loader started before it (`PT_INTERP`).
fn wants_an_interpreter(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, length: usize| {
        let bytes = elf.get(at..at + length).unwrap_or_default();
        let mut whole = [0; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        usize::from_le_bytes(whole)
    };
    let (table, size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count).any(|header| number(table + header * size, 4) == PT_INTERP as usize)
}
