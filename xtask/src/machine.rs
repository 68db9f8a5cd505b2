//! What this machine has.

use std::{env, fs, os::unix::fs::MetadataExt as _, path::Path};

use crate::shell::Result;

/// Whether this is root.
pub(crate) fn is_root() -> bool {
    // /proc/self belongs to the effective user of the process that looks at it.
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

/// Says what to do unless this is root.
pub(crate) fn want_root(what_for: &str) -> Result {
    if is_root() {
        Ok(())
    } else {
        Err(format!(
            "{what_for} needs root: run this command as root (`sudo -E env PATH=\"$PATH\" cargo xtask …`)"
        ))
    }
}

/// Whether a program can be found.
pub(crate) fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // A plain user's PATH may lack the sbin folders, where half of the tools are.
    let sbin = ["/usr/sbin", "/sbin"].into_iter().map(Path::new).map(Path::to_path_buf);
    env::split_paths(&path).chain(sbin).any(|folder| folder.join(name).is_file())
}
