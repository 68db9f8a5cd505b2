//! `cargo xtask setup`: from a bare Debian or Ubuntu with rustup and a C compiler to a machine that builds,
//! tests and demonstrates natgw. Installs what is missing, says so, asks nothing.

use std::process::Command;

use crate::{
    machine::{has_program, is_root},
    shell::{capture, command, run, rustup_proxy, Result, TOOLCHAIN},
};

/// Links the eBPF program; 0.10 reads the LLVM of rustc itself, later ones want LLVM's development packages.
const BPF_LINKER: &str = "0.10.4";

/// What building, the lab and the demo cannot do without.
const NEEDED: &[&str] = &[
    "bind9-dnsutils",
    "coturn",
    "curl",
    "dnsmasq-base",
    "ethtool",
    "hping3",
    "iperf3",
    "iproute2",
    "iptables",
    "iputils-ping",
    "iputils-tracepath",
    "nat-traverse",
    "nfdump",
    "nftables",
    "procps",
    "python3",
    "stun-client",
    "systemd",
    "tcpdump",
    "traceroute",
    "tshark",
    "wrk",
];

/// Independent judges and tools for looking closer; a distribution may lack one of them.
const HELPFUL: &[&str] = &["bpftool", "conntrack", "dublin-traceroute", "nmap", "python3-scapy"];

/// See the module.
pub(crate) fn setup() -> Result {
    toolchain()?;
    linker()?;
    packages()?;
    println!("setup: this machine has all that natgw needs");
    Ok(())
}

fn toolchain() -> Result {
    if !has_program("rustup") {
        return Err("rustup is not on PATH: install it from https://rustup.rs and run this again".to_owned());
    }
    let list = command(&["rustup", "component", "list", "--installed", "--toolchain", TOOLCHAIN]);
    let (known, components) = capture(&mut { list })?;
    let wanted = ["rust-src", "clippy", "rustfmt"];
    let has = |name: &str| components.lines().any(|line| line.starts_with(name));
    if known && wanted.into_iter().all(has) {
        return Ok(());
    }
    println!("setup: installing Rust {TOOLCHAIN} with {}", wanted.join(", "));
    let mut install = command(&["rustup", "toolchain", "install", TOOLCHAIN, "--profile", "minimal"]);
    install.args(wanted.into_iter().flat_map(|name| ["-c", name]));
    run(&mut install)
}

fn linker() -> Result {
    // The linker loads rustc's LLVM, which it finds only as `rustup run` starts it.
    let mut version = command(&["rustup", "run", TOOLCHAIN, "bpf-linker", "--version"]);
    let (works, text) = capture(&mut version)?;
    if works && text.split_whitespace().any(|word| word == BPF_LINKER) {
        return Ok(());
    }
    if !has_program("cc") {
        return Err("there is no C compiler (`cc`): apt-get install gcc libc6-dev".to_owned());
    }
    println!("setup: installing bpf-linker {BPF_LINKER}, which takes about a minute");
    run(rustup_proxy("cargo").args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked"]))
}

fn packages() -> Result {
    if !has_program("dpkg-query") || !has_program("apt-get") {
        return Err(format!(
            "this is not Debian or Ubuntu (no apt-get): install by hand what these packages hold: {} {}",
            NEEDED.join(" "),
            HELPFUL.join(" ")
        ));
    }
    let (needed, helpful) = (missing(NEEDED)?, missing(HELPFUL)?);
    if needed.is_empty() && helpful.is_empty() {
        return Ok(());
    }
    if !is_root() {
        let list = [needed, helpful].concat().join(" ");
        return Err(format!("packages are missing and only root can install them: apt-get install {list}"));
    }
    run(apt_get().arg("update"))?;
    let mut wanted = needed;
    for name in helpful {
        if capture(&mut command(&["apt-cache", "show", name]))?.0 {
            wanted.push(name);
        } else {
            println!("setup: no package {name} here; going on without it");
        }
    }
    install(&wanted)
}

/// Installs those of some packages that are missing.
pub(crate) fn install_missing(names: &[&'static str]) -> Result {
    install(&missing(names)?)
}

fn install(wanted: &[&str]) -> Result {
    if wanted.is_empty() {
        return Ok(());
    }
    println!("setup: installing the packages {}", wanted.join(" "));
    run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(wanted))
}

/// Those of `names` that dpkg does not report as installed.
fn missing(names: &[&'static str]) -> Result<Vec<&'static str>> {
    let mut query = command(&["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    // It fails as soon as one name is unknown, and still lists the others.
    let (_, listed) = capture(query.args(names))?;
    let installed = |name: &str| listed.lines().any(|line| line == format!("{name} installed"));
    Ok(names.iter().copied().filter(|name| !installed(name)).collect())
}

fn apt_get() -> Command {
    let mut apt_get = Command::new("apt-get");
    apt_get.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet");
    apt_get
}
