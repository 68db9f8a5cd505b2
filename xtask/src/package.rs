//! `cargo xtask package`: a Debian package and a static tarball, each looked at by installing it into an empty root and
//! taking it out again.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    build::{build_natgw, natgw},
    machine::has_program,
    shell::{command, quiet, root, run, step, target, Result},
    tarball::tarball,
};

/// Files of the repository and where they go, with their modes.
const FILES: &[(&str, &str, u32)] = &[
    ("examples/home.toml", "etc/natgw/natgw.toml", 0o644),
    ("contrib/systemd/natgw.service", "usr/lib/systemd/system/natgw.service", 0o644),
    ("contrib/systemd/natgw.sysusers", "usr/lib/sysusers.d/natgw.conf", 0o644),
    ("contrib/debian/postinst", "DEBIAN/postinst", 0o755),
    ("contrib/debian/prerm", "DEBIAN/prerm", 0o755),
    ("contrib/debian/postrm", "DEBIAN/postrm", 0o755),
];

/// What is to be read: files and folders of the repository, and where they go below `share/doc/natgw`.
const DOCUMENTS: &[(&str, &str)] = &[
    ("README.md", "README.md"),
    ("CHANGELOG.md", "changelog"),
    ("contrib/grafana", "grafana"),
    ("contrib/prometheus", "prometheus"),
    ("docs/configuration.md", "configuration.md"),
    ("docs/guides", "guides"),
    ("docs/migrating.md", "migrating.md"),
    ("docs/observing.md", "observing.md"),
    ("docs/security.md", "security.md"),
    ("docs/troubleshooting.md", "troubleshooting.md"),
    ("examples", "examples"),
];

/// What natgw prints about itself, and where that goes below `share`.
const PRINTED: &[(&[&str], &str)] = &[
    (&["man"], "man/man1/natgw.1"),
    (&["completions", "bash"], "bash-completion/completions/natgw"),
    (&["completions", "zsh"], "zsh/vendor-completions/_natgw"),
    (&["completions", "fish"], "fish/vendor_completions.d/natgw.fish"),
];

/// What a removal leaves in the end: dpkg's own, and accounts: a group stays, as files of others might be its.
const STAYS: &[&str] =
    &["var/lib/dpkg", "etc/group", "etc/gshadow", "etc/passwd", "etc/shadow", "etc/.pwd.lock"];

/// See the module.
pub(crate) fn package() -> Result {
    let package = debian_package()?;
    let tarball = tarball(&target().join("package"))?;
    println!("package: {}\ntarball: {}", package.display(), tarball.display());
    Ok(())
}

/// Makes the Debian package, and tries whether it can be installed and removed.
pub(crate) fn debian_package() -> Result<PathBuf> {
    for program in ["dpkg-deb", "dpkg", "gzip"] {
        if !has_program(program) {
            return Err(format!("there is no `{program}`: a Debian package is made on Debian or a relative"));
        }
    }
    build_natgw()?;
    let folder = target().join("package");
    if folder.exists() {
        fs::remove_dir_all(&folder).map_err(|error| format!("remove {}: {error}", folder.display()))?;
    }
    let package = step("package", || make(&folder))?;
    step("install and remove in an empty root", || try_out(&package, &folder.join("root")))?;
    Ok(package)
}

fn make(folder: &Path) -> Result<PathBuf> {
    let tree = folder.join("tree");
    let binary = put(&tree, "usr/sbin/natgw", &read(&natgw())?, 0o755)?;
    if has_program("strip") {
        run(command(&["strip", "--strip-unneeded"]).arg(&binary))?;
    }
    for (from, to, mode) in FILES {
        put(&tree, to, &read(&root().join(from))?, *mode)?;
    }
    put_documents(&tree.join("usr/share/doc/natgw"))?;
    put_printed(&tree, "usr/share", &natgw())?;
    for compressed in ["usr/share/man/man1/natgw.1", "usr/share/doc/natgw/changelog"] {
        run(command(&["gzip", "-9n"]).arg(tree.join(compressed)))?;
    }
    let licenses = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| read(&root().join(name)));
    let [mit, apache] = licenses;
    let both =
        [b"natgw may be used under either of these licences.\n\n".to_vec(), mit?, b"\n".to_vec(), apache?]
            .concat();
    put(&tree, "usr/share/doc/natgw/copyright", &both, 0o644)?;
    put(&tree, "DEBIAN/conffiles", b"/etc/natgw/natgw.toml\n", 0o644)?;
    let architecture = quiet(&mut command(&["dpkg", "--print-architecture"]))?;
    let (version, architecture) = (env!("CARGO_PKG_VERSION"), architecture.trim());
    put(&tree, "DEBIAN/control", control(version, architecture, &read(&binary)?).as_bytes(), 0o644)?;
    let package = folder.join(format!("natgw_{version}_{architecture}.deb"));
    quiet(command(&["dpkg-deb", "--root-owner-group", "--build"]).arg(&tree).arg(&package))?;
    Ok(package)
}

/// Writes the [`DOCUMENTS`].
pub(crate) fn put_documents(folder: &Path) -> Result {
    for (from, to) in DOCUMENTS {
        let path = root().join(from);
        if path.is_dir() {
            for file in files(&path)? {
                put(&folder.join(to), &file.to_string_lossy(), &read(&path.join(&file))?, 0o644)?;
            }
        } else {
            put(folder, to, &read(&path)?, 0o644)?;
        }
    }
    Ok(())
}

/// Writes what natgw prints about itself.
pub(crate) fn put_printed(tree: &Path, share: &str, natgw: &Path) -> Result {
    for (arguments, to) in PRINTED {
        let text = quiet(Command::new(natgw).args(*arguments))?;
        put(tree, &format!("{share}/{to}"), text.as_bytes(), 0o644)?;
    }
    Ok(())
}

fn control(version: &str, architecture: &str, binary: &[u8]) -> String {
    let libc =
        newest_libc(binary).map_or_else(|| "libc6".to_owned(), |minor| format!("libc6 (>= 2.{minor})"));
    format!(
        "Package: natgw\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: natgw <natgw@localhost>\n\
         Section: net\nPriority: optional\nDepends: {libc}, libgcc-s1\nRecommends: systemd, iproute2\n\
         Description: NAT gateway: XDP fast path, AF_XDP first packets\n \
         Translates addresses between inside and outside networks as RFC 4787, 5382, 5508 and 6888 describe it.\n \
         An XDP program rewrites the packets of known flows in the kernel; a daemon decides about the first of each.\n"
    )
}

/// The newest minor version of glibc 2 that a symbol of the program is from.
fn newest_libc(binary: &[u8]) -> Option<u32> {
    const MARK: &[u8] = b"GLIBC_2.";
    let places = binary.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK);
    let minor = |(place, _)| {
        let digits = binary[place + MARK.len()..].iter().take_while(|byte| byte.is_ascii_digit());
        String::from_utf8(digits.copied().collect()).ok()?.parse().ok()
    };
    places.filter_map(minor).max()
}

/// Installs into an empty root, asks whether all is there, and whether nothing is afterwards.
fn try_out(package: &Path, root: &Path) -> Result {
    let admin = root.join("var/lib/dpkg");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(admin.join(folder))
            .map_err(|error| format!("make {}: {error}", admin.display()))?;
    }
    put(&admin, "status", b"", 0o644)?;
    put(&admin, "available", b"", 0o644)?;
    // What it depends on is not there, nor a shell to run scripts with inside.
    let dpkg = || {
        let mut dpkg = command(&["dpkg", "--force-depends", "--force-script-chrootless", "--no-triggers"]);
        dpkg.arg(format!("--root={}", root.display()))
            .arg(format!("--log={}", root.join("var/lib/dpkg/log").display()));
        dpkg
    };
    quiet(dpkg().arg("--install").arg(package))?;
    let tree = package.with_file_name("tree");
    for file in files(&tree)?.iter().filter(|file| !file.starts_with("DEBIAN")) {
        if !root.join(file).is_file() {
            return Err(format!("{} is not there after the installation", file.display()));
        }
    }
    quiet(
        Command::new(root.join("usr/sbin/natgw"))
            .arg("check")
            .arg("--config")
            .arg(root.join("etc/natgw/natgw.toml")),
    )?;
    if has_program("systemd-analyze") {
        let unit = fs::read_to_string(root.join("usr/lib/systemd/system/natgw.service"));
        let unit = unit.map_err(|error| format!("read the unit: {error}"))?;
        // The program is not where it will be.
        let program = root.join("usr/sbin/natgw").display().to_string();
        let here = put(
            &package.with_file_name("verify"),
            "natgw.service",
            unit.replace("/usr/sbin/natgw", &program).as_bytes(),
            0o644,
        )?;
        let said =
            quiet(command(&["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]).arg(here))?;
        if said.contains("natgw.service") {
            return Err(format!("systemd-analyze verify: {said}"));
        }
    }
    quiet(dpkg().args(["--purge", "natgw"]))?;
    match files(root)?
        .iter()
        .find(|file| !STAYS.iter().any(|stays| file.to_string_lossy().starts_with(stays)))
    {
        Some(file) => Err(format!("{} is left after the removal", file.display())),
        None => Ok(()),
    }
}

/// All files below a folder, by their paths from it.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let fault = |error| format!("read {}: {error}", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = PathBuf::from(entry.file_name());
        if entry.path().is_dir() {
            found.extend(files(&entry.path())?.iter().map(|below| name.join(below)));
        } else {
            found.push(name);
        }
    }
    Ok(found)
}

pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("read {}: {error}", path.display()))
}

pub(crate) fn put(tree: &Path, to: &str, content: &[u8], mode: u32) -> Result<PathBuf> {
    let path = tree.join(to);
    let fault = |error| format!("write {}: {error}", path.display());
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(fault)?;
    }
    fs::write(&path, content).map_err(fault)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).map_err(fault)?;
    Ok(path)
}
