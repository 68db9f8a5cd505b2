//! Before anything is changed: privileges, interfaces, and what on the host is likely to bite.

use anyhow::bail;

use aya::util::KernelVersion;
use ipnet::Ipv4Net;

use super::vlans;
use crate::config::{Config, Side};
use crate::host::Host;
use crate::privileges;

/// The largest MTU that can be served: a page, less the room that the kernel leaves in front of a
/// received frame (`XDP_PACKET_HEADROOM`), room for two tags and an Ethernet header. What is larger would
/// pass once its flow is known, and never make it known.
pub const LARGEST_MTU: u32 = 4096 - 256 - 8 - 14;

/// The largest MTU that drivers take natively whose buffer is a page: what XDP and the kernel's notes leave of it.
pub const NATIVE_MTU: u32 = 3498;

/// The oldest kernel that natgw is tested with (`cargo xtask test kernels`): Debian 12's.
const TESTED: KernelVersion = KernelVersion::new(6, 1, 0);
/// The oldest that knows all that natgw cannot do without: loops that the verifier walks once (`bpf_loop`, 5.17), frames
/// that a program of the daemon's hands to the stack (`BPF_F_TEST_XDP_LIVE_FRAMES`, 5.18).
const NEEDED: KernelVersion = KernelVersion::new(5, 18, 0);
/// What later kernels brought, and what it is like without.
const HELPFUL: [(KernelVersion, &str); 2] = [
    (
        KernelVersion::new(6, 3, 0),
        "it does not say which interfaces take redirected frames (netdev's XDP features, Linux 6.3): what leaves by virtual \
         ones is sent by the stack, which costs more a packet",
    ),
    (KernelVersion::new(6, 6, 0), "it has no tcx (Linux 6.6): the tc programs are filters of a clsact qdisc"),
];

/// Errs if the kernel is too old; else what it lacks.
pub fn kernel() -> anyhow::Result<Vec<String>> {
    // Who hides it has it tried.
    KernelVersion::current().map_or_else(|_| Ok(Vec::new()), of_kernel)
}

fn of_kernel(version: KernelVersion) -> anyhow::Result<Vec<String>> {
    if version < NEEDED {
        bail!(
            "natgw needs Linux 5.18 (bpf_loop, XDP live frames), this is {}: boot a newer kernel, for which Debian 12's 6.1 will do",
            words(version)
        );
    }
    let old = format!("Linux {} is older than what natgw is tested with, 6.1", words(version));
    let lacking = HELPFUL.into_iter().filter(|(since, _)| version < *since);
    let lacking = lacking.map(|(_, what)| format!("Linux {}: {what}", words(version)));
    Ok((version < TESTED).then_some(old).into_iter().chain(lacking).collect())
}

fn words(version: KernelVersion) -> String {
    let code = version.code();
    format!("{}.{}", code >> 16, code >> 8 & 0xff)
}

/// Errs with the capability that is missing.
pub fn privileges() -> anyhow::Result<()> {
    let effective = privileges::effective();
    let missing: Vec<String> = privileges::KEPT
        .into_iter()
        .chain([privileges::AT_START])
        .filter(|(capability, ..)| !effective.contains(*capability))
        .map(|(_, name, purpose)| format!("{name} ({purpose})"))
        .collect();
    if !missing.is_empty() {
        return Err(anyhow::anyhow!("run natgw: EPERM, missing {}", missing.join(", ")).context(
            "natgw needs more privileges: run it as root, or give the service these capabilities (AmbientCapabilities= in systemd)",
        ));
    }
    Ok(())
}

/// Errs if none of a side's interfaces is there, naming those there are.
pub fn interfaces(host: &Host, config: &Config) -> anyhow::Result<()> {
    let parents = config.interfaces.iter().filter_map(|interface| interface.vlan.as_ref());
    let parents = parents.map(|vlan| &vlan.parent);
    for name in config.interfaces.iter().map(|interface| &interface.name).chain(parents) {
        let Some(link) = host.link_by_name(name) else { continue };
        if !link.ethernet {
            bail!(
                "interface {} has no Ethernet header: natgw serves Ethernet, bridge ports, veth and VLAN parents",
                link.name
            );
        }
        // What comes in with tags is longer by these.
        let is_vlan = link.vlan.is_some()
            || config.interfaces.iter().any(|interface| interface.name == *name && interface.vlan.is_some());
        let largest = if is_vlan { LARGEST_MTU - 8 } else { LARGEST_MTU };
        if link.mtu > largest {
            bail!(
                "the MTU of {0} is {1}: natgw takes at most {largest}, since the first packet of a flow has to fit one buffer; ip link set dev {0} mtu {largest}",
                link.name,
                link.mtu
            );
        }
    }
    let missing: Vec<&str> = config
        .interfaces
        .iter()
        .map(|interface| interface.name.as_str())
        .filter(|name| host.link_by_name(name).is_none())
        .collect();
    if missing.len() == config.interfaces.len() {
        let mut there: Vec<&str> = host.links().map(|link| link.name.as_str()).collect();
        there.sort_unstable();
        return Err(anyhow::anyhow!("no interface named {}", missing.join(", "))
            .context(format!("none of the configured interfaces exists; there are: {}", there.join(", "))));
    }
    Ok(())
}

/// What on the host is likely to bite, a line each.
pub fn warnings(host: &Host, config: &Config) -> Vec<String> {
    let mut warnings = Vec::new();
    for interface in &config.interfaces {
        let name = &interface.name;
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/{file}"))
                .ok()
                .and_then(|value| value.trim().parse::<i32>().ok())
        };
        warnings.extend(vlans::warning(host, interface));
        if read("rp_filter") == Some(1) {
            warnings.push(format!(
                "rp_filter is strict on {name}: what natgw leaves to the kernel is dropped there if it would be answered by another interface; sysctl -w net.ipv4.conf.{name}.rp_filter=2 loosens it"
            ));
        }
        if host.link_by_name(name).is_some_and(|link| link.mtu > NATIVE_MTU) {
            warnings.push(format!(
                "the MTU of {name} is larger than XDP takes in one buffer: native attach may be refused"
            ));
        }
    }
    warnings.extend(same_networks(host, config));
    let forwards = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    if forwards.is_ok_and(|value| value.trim() == "0") {
        warnings.push(
            "ip_forward is 0: what natgw translates passes all the same, but nothing is routed that no rule translates; sysctl -w net.ipv4.ip_forward=1 changes that".to_owned(),
        );
    }
    warnings
}

/// Networks that an inside and an outside interface both have: who is meant by an address of
/// them, nobody can tell (RFC 4787 section 4.1 has double NAT in mind).
fn same_networks(host: &Host, config: &Config) -> Vec<String> {
    let networks = |side: Side| {
        let of_side = config.interfaces.iter().filter(move |interface| interface.side == side);
        let links = of_side.filter_map(|interface| host.link_by_name(&interface.name));
        let networks = links.flat_map(|link| {
            host.addresses(link.index)
                .iter()
                .filter_map(|address| Ipv4Net::new(address.addr, address.prefix).ok())
                .map(|net| (link.name.as_str(), net.trunc()))
        });
        networks.collect::<Vec<_>>()
    };
    let (inside, outside) = (networks(Side::Inside), networks(Side::Outside));
    let pairs = inside.iter().flat_map(|own| outside.iter().map(move |other| (own, other)));
    pairs
        .filter(|((_, own), (_, other))| own.contains(other) || other.contains(own))
        .map(|((inside, own), (outside, other))| {
            format!(
                "{inside} ({own}) and {outside} ({other}) have addresses in common: those are taken to be inside, hosts that have them outside are not reached; renumber one of the two networks"
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_lacks_is_said() {
        let said = |major, minor| {
            of_kernel(KernelVersion::new(major, minor, 7)).map_err(|error| format!("{error:#}"))
        };
        assert!(said(5, 15).is_err_and(|error| error.contains("5.18") && error.contains("this is 5.15")));
        assert_eq!(said(5, 19).map(|lacking| lacking.len()), Ok(3));
        let of_debian = said(6, 1).expect("it runs there").join("; ");
        assert!(of_debian.contains("tcx") && of_debian.contains("redirected frames"), "{of_debian}");
        assert_eq!(said(6, 6), Ok(Vec::new()));
        assert_eq!(said(6, 18), Ok(Vec::new()));
    }
}
