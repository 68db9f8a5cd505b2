//! Builds the eBPF program with the pinned toolchain and leaves its object in `OUT_DIR`.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// The toolchain whose LLVM the pinned bpf-linker reads; `xtask` installs it.
const TOOLCHAIN: &str = "1.98.0";

fn main() -> anyhow::Result<()> {
    // `-Z build-std=core` on a stable toolchain: the one nightly feature the BPF target needs.
    // SAFETY: a build script's main is single-threaded, nothing else reads the environment here.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    // aya-build watches nat-ebpf; what it is made of lies beside it.
    println!("cargo:rerun-if-changed=../nat-common/src");
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../nat-ebpf");
    aya_build::build_ebpf(
        [Package { name: "nat-ebpf", root_dir, ..Default::default() }],
        Toolchain::Custom(TOOLCHAIN),
    )
    .context("build nat-ebpf: `cargo xtask setup` installs the toolchain and bpf-linker it needs")
}
