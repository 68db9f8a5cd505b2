//! What can be said where no daemon answers: whether one could run here at all.

use std::fs;
use std::path::Path;

use super::{Finding, Severity};
use crate::daemon::preflight;
use crate::privileges::{KEPT, effective};

/// Whoever asks of an absent daemon.
pub fn examine_absence(socket: &Path) -> Vec<Finding> {
    let mut findings = vec![Finding {
        check: "not_running",
        severity: Severity::Fault,
        title: "natgw does not run".to_owned(),
        evidence: vec![format!("nobody answers at {}", socket.display())],
        consequence: "nothing new is translated; sessions of a daemon that was killed go on in the kernel".to_owned(),
        command: "systemctl status natgw; journalctl -u natgw; or natgw run, in the foreground; --socket names another socket"
            .to_owned(),
    }];
    if let Err(error) = preflight::kernel() {
        findings.push(Finding {
            check: "old_kernel",
            severity: Severity::Fault,
            title: "this kernel is too old".to_owned(),
            evidence: vec![error.to_string()],
            consequence: "`natgw run` cannot start".to_owned(),
            command: "boot a newer kernel; uname -r".to_owned(),
        });
    }
    let protocols = fs::read_to_string("/proc/net/protocols").unwrap_or_default();
    if !has_af_xdp(&protocols) {
        findings.push(Finding {
            check: "no_af_xdp",
            severity: Severity::Fault,
            title: "this kernel has no AF_XDP sockets".to_owned(),
            evidence: vec!["/proc/net/protocols has no line XDP".to_owned()],
            consequence: "`natgw run` cannot start".to_owned(),
            command: "a kernel with CONFIG_XDP_SOCKETS=y; uname -r".to_owned(),
        });
    }
    let filesystems = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    if !filesystems.lines().any(|line| line.split(' ').nth(2) == Some("bpf")) {
        findings.push(Finding {
            check: "no_bpffs",
            severity: Severity::Note,
            title: "no BPF file system is mounted".to_owned(),
            evidence: vec!["/proc/self/mounts has none".to_owned()],
            consequence: "`natgw run` mounts one for itself; under systemd it would be gone with the service"
                .to_owned(),
            command: "mount -t bpf bpf /sys/fs/bpf".to_owned(),
        });
    }
    let held = effective();
    let lacks: Vec<&str> =
        KEPT.iter().filter(|(one, ..)| !held.contains(*one)).map(|(_, name, _)| *name).collect();
    if !lacks.is_empty() {
        findings.push(Finding {
            check: "privileges",
            severity: Severity::Note,
            title: "who asks could not run it".to_owned(),
            evidence: vec![format!("without {}", lacks.join(", "))],
            consequence: "`natgw run` says so and ends".to_owned(),
            command: "run it as root, or by its unit: systemctl start natgw".to_owned(),
        });
    }
    findings
}

/// `/proc/net/protocols` has a line for each family of sockets.
fn has_af_xdp(protocols: &str) -> bool {
    protocols.lines().any(|line| line.split_whitespace().next() == Some("XDP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_without_af_xdp_is_told() {
        let with = "protocol  size sockets  memory\nXDP       1024      2       0\nUNIX-STREAM 1024 3 0\n";
        assert!(has_af_xdp(with));
        assert!(!has_af_xdp(&with.replace("XDP ", "TCP ")));
    }
}
