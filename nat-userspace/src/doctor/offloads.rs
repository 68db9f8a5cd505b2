//! What XDP depends on in a device: its mode, its MTU, its offloads, the other end of a veth.
//!
//! GRO is no fault anywhere: native XDP sees frames before it, generic XDP has the kernel do without, and what the tc
//! program translates may be merged.

use super::{Facts, Finding, InterfaceFacts, Severity};
use crate::daemon::preflight::{LARGEST_MTU, NATIVE_MTU};

/// See the module.
pub(super) fn findings(facts: &Facts) -> Vec<Finding> {
    let each = facts
        .interfaces
        .iter()
        .flat_map(|interface| [mtu(interface), generic(interface), merging(interface), veth_peer(interface)]);
    each.flatten().collect()
}

/// A frame has to fit one buffer: of the driver's for native XDP, of natgw's for the first packet of a flow.
fn mtu(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, mtu, mode, .. } = interface;
    let evidence = vec![format!("ip link show {name}: mtu {mtu}"), format!("natgw status: {name} {mode}")];
    if *mtu > LARGEST_MTU {
        return Some(Finding {
            check: "mtu",
            severity: Severity::Fault,
            title: format!("the MTU of {name} is {mtu}, more than natgw takes ({LARGEST_MTU})"),
            evidence,
            consequence: "first packets of flows that are larger do not fit a buffer and are lost; natgw does not start again so"
                .to_owned(),
            command: format!("ip link set dev {name} mtu {LARGEST_MTU}"),
        });
    }
    (*mtu > NATIVE_MTU && mode == "generic").then(|| Finding {
        check: "mtu",
        severity: Severity::Risk,
        title: format!("the MTU of {name} is {mtu}, and native XDP did not come about"),
        evidence,
        consequence: format!(
            "drivers that take a frame into one page refuse native XDP above about {NATIVE_MTU}: packets pass, at a fraction of the speed"
        ),
        command: format!("ip link set dev {name} mtu {NATIVE_MTU}; then restart natgw"),
    })
}

fn generic(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, mode, driver, .. } = interface;
    (mode == "generic").then(|| Finding {
        check: "generic_mode",
        severity: Severity::Note,
        title: format!("XDP on {name} is generic"),
        evidence: vec![format!("natgw status: {name} generic; driver {driver}")],
        consequence:
            "packets pass, at a fraction of the speed: the kernel has copied each before natgw sees it"
                .to_owned(),
        command: format!(
            "`mode = \"native\"` for {name} says why native XDP does not come about; ethtool -i {name}"
        ),
    })
}

fn merging(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, .. } = interface;
    interface.merges_segments.then(|| Finding {
        check: "lro",
        severity: Severity::Risk,
        title: format!("{name} merges segments as it receives them (LRO)"),
        evidence: vec![format!("ethtool -k {name}: large-receive-offload: on")],
        consequence: "frames come in larger than any MTU and cannot be forwarded as they are; many drivers refuse native \
                      XDP meanwhile. GRO is no such fault: it comes after XDP, and can be undone"
            .to_owned(),
        command: format!("ethtool -K {name} lro off; then restart natgw if its mode is generic"),
    })
}

/// A veth hands redirected frames over only where its other end polls (NAPI).
fn veth_peer(interface: &InterfaceFacts) -> Option<Finding> {
    let InterfaceFacts { name, veth, takes_redirects, .. } = interface;
    (*veth && *takes_redirects == Some(false)).then(|| Finding {
        check: "veth_peer",
        severity: Severity::Note,
        title: format!("the other end of the veth {name} takes no redirected frames"),
        evidence: vec![format!("the kernel's XDP features of {name} lack ndo-xmit: its peer has no NAPI")],
        consequence: "what leaves by it goes through the stack instead, which costs more a packet".to_owned(),
        command: "at the other end: ethtool -K PEER gro on, or an XDP program".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_judged_by_what_they_do() {
        let fine = InterfaceFacts {
            name: "lan".to_owned(),
            mode: "native".to_owned(),
            mtu: 1500,
            veth: true,
            takes_redirects: Some(true),
            ..InterfaceFacts::default()
        };
        let checks = |change: &dyn Fn(&mut InterfaceFacts)| {
            let mut interface = fine.clone();
            change(&mut interface);
            let facts = Facts { interfaces: vec![interface], ..Facts::default() };
            findings(&facts).iter().map(|finding| finding.check).collect::<Vec<_>>()
        };
        assert!(checks(&|_| ()).is_empty());
        assert_eq!(checks(&|interface| interface.merges_segments = true), ["lro"]);
        assert_eq!(checks(&|interface| interface.mtu = LARGEST_MTU + 1), ["mtu"]);
        assert!(checks(&|interface| interface.mtu = LARGEST_MTU).is_empty(), "native came about");
        assert_eq!(checks(&|interface| interface.mode = "generic".to_owned()), ["generic_mode"]);
        assert_eq!(checks(&|interface| interface.takes_redirects = Some(false)), ["veth_peer"]);
        assert!(
            checks(&|interface| interface.takes_redirects = None).is_empty(),
            "a kernel that does not tell"
        );
    }
}
