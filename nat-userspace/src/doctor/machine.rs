//! What the kernel lacks, and what who asks may not look at.

use super::{Facts, Finding, Severity};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let lacking = facts.kernel_lacks.iter().map(|lacks| old_kernel(lacks));
    lacking.chain([no_jit(facts), no_btf(facts), privileges(facts)].into_iter().flatten()).collect()
}

/// What a later kernel brought: "version: what it is like without".
fn old_kernel(lacks: &str) -> Finding {
    let (version, without) =
        lacks.split_once(": ").unwrap_or((lacks, "it is older than what natgw is tested with"));
    Finding {
        check: "old_kernel",
        severity: Severity::Note,
        title: format!("{version} lacks what natgw could use"),
        evidence: vec![format!("uname -r says {version}")],
        consequence: without.to_owned(),
        command: "boot a newer kernel (Linux 6.6 has all); docs/performance.md has what it is worth"
            .to_owned(),
    }
}

fn no_jit(facts: &Facts) -> Option<Finding> {
    (facts.jit == Some(false)).then(|| Finding {
        check: "no_jit",
        severity: Severity::Fault,
        title: "the kernel interprets eBPF programs (bpf_jit_enable is 0)".to_owned(),
        evidence: vec!["/proc/sys/net/core/bpf_jit_enable is 0".to_owned()],
        consequence: "packets pass, at a fraction of the speed".to_owned(),
        command: "sysctl -w net.core.bpf_jit_enable=1; systemctl restart natgw".to_owned(),
    })
}

fn no_btf(facts: &Facts) -> Option<Finding> {
    (!facts.btf).then(|| Finding {
        check: "no_btf",
        severity: Severity::Note,
        title: "the kernel does not tell its types (BTF)".to_owned(),
        evidence: vec!["there is no /sys/kernel/btf/vmlinux".to_owned()],
        consequence: "nothing to natgw, whose programs ask for none of the kernel's types; bpftool and bpftrace show less of it"
            .to_owned(),
        command: "a kernel with CONFIG_DEBUG_INFO_BTF=y, if these are wanted".to_owned(),
    })
}

fn privileges(facts: &Facts) -> Option<Finding> {
    (!facts.may_not.is_empty()).then(|| Finding {
        check: "privileges",
        severity: Severity::Note,
        title: "who asks may not look at everything".to_owned(),
        evidence: vec![format!("without {}", facts.may_not.join(", "))],
        consequence:
            "netfilter's rules (double_nat, forward_policy) and who answers ARP (duplicate_address, \
                      address_taken, host_silent) are not judged"
                .to_owned(),
        command: "run it as root: sudo natgw doctor".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_said_and_nothing_else() {
        let checks = |facts: &Facts| findings(facts).iter().map(|finding| finding.check).collect::<Vec<_>>();
        let fine = Facts { btf: true, jit: Some(true), ..Facts::default() };
        assert!(checks(&fine).is_empty());
        assert!(checks(&Facts { jit: None, ..fine.clone() }).is_empty(), "in a namespace it does not show");
        assert_eq!(checks(&Facts { jit: Some(false), ..fine.clone() }), ["no_jit"]);
        assert_eq!(checks(&Facts { btf: false, ..fine.clone() }), ["no_btf"]);
        assert_eq!(checks(&Facts { may_not: vec!["CAP_NET_RAW"], ..fine.clone() }), ["privileges"]);
        let old = Facts { kernel_lacks: vec!["Linux 6.1: it has no tcx".to_owned()], ..fine };
        let found = &findings(&old)[0];
        assert_eq!((found.check, found.consequence.as_str()), ("old_kernel", "it has no tcx"));
    }
}
