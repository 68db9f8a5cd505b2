//! What the checks judge, gathered from the daemon, `/proc`, netlink and nft.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use ipnet::Ipv4Net;
use rustix::thread::CapabilitySet;
use serde::de::IgnoredAny;
use serde_json::Value;

use super::asked::{self, Asked};
use crate::api::{
    Client, ClientError, EndpointFilter, PoolRow, Request, RuleRow, ServiceRow, SessionFilter, SessionRow,
    StatusReport,
};
use crate::daemon::preflight;
use crate::host::{Host, RouteQuery, merges_segments};
use crate::privileges::{KEPT, effective};

/// Sessions looked at, when no host was named.
const SESSIONS: usize = 100_000;

/// Everything that is known.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Whether the kernel forwards.
    pub ip_forward: Option<bool>,
    /// Packets that natgw has left to the kernel.
    pub passed: u64,
    /// Those that natgw serves.
    pub interfaces: Vec<InterfaceFacts>,
    /// Stations that are neighbours on more than one of them: these share a segment.
    pub shared_stations: Vec<SharedStation>,
    /// What the kernel dropped since its source came by the wrong interface.
    pub reverse_path_drops: u64,
    /// Chains on the forward hook whose policy is drop: family, table and chain.
    pub forward_drops: Vec<String>,
    /// Chains of netfilter's that translate sources.
    pub nat_chains: Vec<NatChain>,
    /// What natgw dropped, by the name of the reason.
    pub drops: BTreeMap<String, u64>,
    /// What the daemon warns of.
    pub warnings: Vec<String>,
    /// The kernel's default routes, of the main table.
    pub default_routes: Vec<DefaultRoute>,
    /// Its rules.
    pub rules: Vec<RuleRow>,
    /// Its external addresses.
    pub pools: Vec<PoolRow>,
    /// Its sessions: those of `host`, or all.
    pub sessions: Vec<SessionRow>,
    /// Its virtual servers.
    pub services: Vec<ServiceRow>,
    /// Where the inside networks find the gateway.
    pub inside_addresses: Vec<Ipv4Addr>,
    /// Whom the question is about.
    pub host: Option<Ipv4Addr>,
    /// Where that host is.
    pub station: Option<Station>,
    /// Who answers ARP, as far as was asked.
    pub asked: Vec<Asked>,
    /// What later kernels have, "version: what it is like without".
    pub kernel_lacks: Vec<String>,
    /// Whether the kernel compiles programs; a network namespace of its own does not show it.
    pub jit: Option<bool>,
    /// Whether the kernel tells its types.
    pub btf: bool,
    /// Capabilities without which not everything is seen.
    pub may_not: Vec<&'static str>,
}

/// An interface that natgw serves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// The filter in force: the stricter of its own and that of all.
    pub rp_filter: u8,
    /// Which ARP requests the kernel leaves unanswered there: the stricter of its own setting and that of all.
    pub arp_ignore: u8,
    /// `inside` or `outside`.
    pub side: String,
    /// `up`, `down` or `missing`.
    pub state: String,
    /// How XDP is attached.
    pub mode: String,
    /// Its driver, where the kernel names one.
    pub driver: String,
    /// Queues that natgw serves.
    pub queues: u32,
    /// Queues that it receives on.
    pub present: u32,
    /// Its subnets, without addresses that natgw has added.
    pub networks: Vec<Ipv4Net>,
    /// Its addresses, without those that natgw has added.
    pub addresses: Vec<Ipv4Addr>,
    /// The largest IP packet it takes; 0 where that cannot be told.
    pub mtu: u32,
    /// Whether it is a veth, whose other end may be a container.
    pub veth: bool,
    /// Whether frames may be redirected to it, where the kernel tells.
    pub takes_redirects: Option<bool>,
    /// Whether it merges segments into frames larger than its MTU (LRO).
    pub merges_segments: bool,
}

/// A default route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The interface that it leaves by.
    pub interface: String,
    /// The router, if there is one.
    pub gateway: Option<Ipv4Addr>,
    /// The lower wins.
    pub metric: u32,
    /// Whether the router was asked for its Ethernet address and did not answer.
    pub silent: bool,
    /// Whether the kernel has its Ethernet address.
    pub known: bool,
}

/// A host that is seen on several interfaces at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedStation {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its Ethernet address.
    pub mac: String,
    /// The names of the interfaces.
    pub interfaces: Vec<String>,
}

/// A chain that translates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NatChain {
    /// Family, table and chain.
    pub chain: String,
    /// `masquerade` or `snat`.
    pub action: String,
}

/// Where a host is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Station {
    /// The interface that leads there.
    pub interface: String,
    /// Its Ethernet address, or that of the router before it.
    pub mac: Option<String>,
    /// Why there is no way, if there is none.
    pub route_fault: Option<String>,
}

impl Facts {
    /// Asks everybody. Only the daemon has to answer; what others do not tell is not judged.
    pub fn gather(socket: &Path, host: Option<Ipv4Addr>) -> Result<Self, ClientError> {
        let status: StatusReport = ask(socket, &Request::Status, |_: IgnoredAny| ())?;
        let mut facts = Self {
            host,
            passed: status.packets.passed,
            warnings: status.warnings,
            drops: status.drops.into_iter().map(|row| (row.reason, row.packets)).collect(),
            ..Self::default()
        };
        let _: Value = ask(socket, &Request::RuleList, |row| facts.rules.push(row))?;
        let _: Value = ask(socket, &Request::PoolList, |row| facts.pools.push(row))?;
        let _: Value = ask(socket, &Request::ServiceList, |row| facts.services.push(row))?;
        let inside = status.interfaces.iter().filter(|interface| interface.side == "inside");
        facts.inside_addresses = inside.flat_map(|interface| interface.addresses.iter().copied()).collect();
        let inside = host.map(|address| EndpointFilter { net: address.into(), port: None });
        let filter = SessionFilter { inside, ..SessionFilter::default() };
        let _: Value = ask(socket, &Request::SessionList { filter }, |row| {
            if facts.sessions.len() < SESSIONS {
                facts.sessions.push(row);
            }
        })?;
        let [all_filter, all_ignore] = ["rp_filter", "arp_ignore"].map(|key| setting("all", key));
        facts.interfaces = status
            .interfaces
            .into_iter()
            .map(|interface| InterfaceFacts {
                rp_filter: setting(&interface.name, "rp_filter").max(all_filter).unwrap_or(0),
                arp_ignore: setting(&interface.name, "arp_ignore").max(all_ignore).unwrap_or(0),
                driver: driver(&interface.name),
                present: receive_queues(&interface.name),
                queues: interface.queues,
                side: interface.side,
                state: interface.state,
                mode: interface.mode,
                merges_segments: merges_segments(&interface.name),
                name: interface.name,
                ..InterfaceFacts::default()
            })
            .collect();
        facts.ip_forward = read("/proc/sys/net/ipv4/ip_forward").map(|value| value != "0");
        facts.reverse_path_drops = fs::read_to_string("/proc/net/netstat")
            .ok()
            .and_then(|text| extended_count(&text, "IPReversePathFilter"))
            .unwrap_or(0);
        if let Some(ruleset) = nft_ruleset() {
            (facts.forward_drops, facts.nat_chains) = read_ruleset(&ruleset);
        }
        let arp = fs::read_to_string("/proc/net/arp").unwrap_or_default();
        facts.default_routes =
            default_routes(&fs::read_to_string("/proc/net/route").unwrap_or_default(), &arp);
        if let Ok(mut host) = Host::open() {
            facts.shared_stations = shared_stations(&host, &facts.interfaces);
            for interface in &mut facts.interfaces {
                complete(&mut host, interface);
            }
            let routers: Vec<Ipv4Addr> =
                facts.default_routes.iter().filter_map(|route| route.gateway).collect();
            facts.asked = asked::gather(&host, &facts.interfaces, &routers, facts.host);
        }
        for route in &mut facts.default_routes {
            // A router that answers nothing now may be one that is known still.
            let unanswered = facts.asked.iter().any(|asked| {
                asked.stations.is_empty()
                    && asked.interface == route.interface
                    && Some(asked.address) == route.gateway
            });
            route.silent |= unanswered && !route.known;
        }
        facts.kernel_lacks = preflight::kernel().unwrap_or_default();
        facts.jit = read("/proc/sys/net/core/bpf_jit_enable").map(|value| value != "0");
        facts.btf = Path::new("/sys/kernel/btf/vmlinux").exists();
        facts.may_not = may_not();
        facts.station = host.and_then(locate);
        Ok(facts)
    }
}

fn ask<R: serde::de::DeserializeOwned, D: serde::de::DeserializeOwned>(
    socket: &Path,
    request: &Request,
    mut row: impl FnMut(R),
) -> Result<D, ClientError> {
    Client::connect(socket)?.request(request, |found| {
        row(found);
        Ok(())
    })
}

fn read(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn setting(interface: &str, key: &str) -> Option<u8> {
    read(&format!("/proc/sys/net/ipv4/conf/{interface}/{key}"))?.parse().ok()
}

/// Who drives an interface.
fn driver(interface: &str) -> String {
    let link = fs::read_link(format!("/sys/class/net/{interface}/device/driver")).ok();
    link.and_then(|link| Some(link.file_name()?.to_string_lossy().into_owned()))
        .unwrap_or_else(|| "of no device".to_owned())
}

/// Queues that an interface receives on now; none that can be told: 0.
fn receive_queues(interface: &str) -> u32 {
    let Ok(entries) = fs::read_dir(format!("/sys/class/net/{interface}/queues")) else { return 0 };
    let receive = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("rx-"));
    u32::try_from(receive.count()).unwrap_or(0)
}

/// What netlink tells of an interface.
fn complete(host: &mut Host, interface: &mut InterfaceFacts) {
    let Some(link) = host.link_by_name(&interface.name) else { return };
    let index = link.index;
    interface.mtu = link.mtu;
    interface.veth = link.kind.as_deref() == Some("veth");
    let own = host.addresses(index).iter().filter(|address| !address.claimed);
    interface.addresses = own.clone().map(|address| address.addr).collect();
    let networks = own.filter(|address| address.prefix < 32);
    let networks = networks.filter_map(|address| Ipv4Net::new(address.addr, address.prefix).ok());
    interface.networks = networks.map(|net| net.trunc()).collect();
    let features = host.xdp_features(index).ok().flatten();
    interface.takes_redirects = features.map(|features| features.ndo_xmit);
}

/// Capabilities that looking takes, of those that who asks has not.
fn may_not() -> Vec<&'static str> {
    let (held, needed) = (effective(), CapabilitySet::NET_ADMIN | CapabilitySet::NET_RAW);
    let lacks = KEPT.iter().filter(|(one, ..)| needed.contains(*one) && !held.contains(*one));
    lacks.map(|(_, name, _)| *name).collect()
}

/// What `/proc/net/route` has for 0.0.0.0/0: a line of fields each, addresses in hexadecimal as they lie in memory.
fn default_routes(text: &str, arp: &str) -> Vec<DefaultRoute> {
    // Address, type, flags (0: no answer yet), Ethernet address, mask, device.
    let flags = |gateway: Ipv4Addr, interface: &str| {
        arp.lines().map(str::split_whitespace).find_map(|fields| {
            let fields: Vec<&str> = fields.collect();
            match fields.as_slice() {
                [address, _, flags, _, _, device]
                    if *address == gateway.to_string() && *device == interface =>
                {
                    Some(*flags)
                }
                _ => None,
            }
        })
    };
    let address =
        |word: &str| u32::from_str_radix(word, 16).ok().map(|raw| Ipv4Addr::from(raw.to_ne_bytes()));
    let route = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [interface, "00000000", gateway, _, _, _, metric, "00000000", ..] = fields.as_slice() else {
            return None;
        };
        let gateway = address(gateway).filter(|gateway| !gateway.is_unspecified());
        let flags = gateway.and_then(|gateway| flags(gateway, interface));
        Some(DefaultRoute {
            interface: (*interface).to_owned(),
            gateway,
            metric: metric.parse().ok()?,
            silent: flags == Some("0x0"),
            known: flags.is_some_and(|flags| flags != "0x0"),
        })
    };
    text.lines().filter_map(route).collect()
}

/// The same address at the same Ethernet address on two of the interfaces: its ARP requests reach both.
fn shared_stations(host: &Host, interfaces: &[InterfaceFacts]) -> Vec<SharedStation> {
    let mut seen: BTreeMap<(Ipv4Addr, [u8; 6]), Vec<String>> = BTreeMap::new();
    for (ifindex, address, neighbour) in host.neighbours() {
        let name = host.link(ifindex).map(|link| link.name.as_str()).unwrap_or_default();
        if interfaces.iter().any(|interface| interface.name == name) {
            seen.entry((address, neighbour.mac)).or_default().push(name.to_owned());
        }
    }
    seen.into_iter()
        .filter(|(_, interfaces)| interfaces.len() > 1)
        .map(|((address, mac), mut interfaces)| {
            interfaces.sort();
            SharedStation { address, mac: text(mac), interfaces }
        })
        .collect()
}

/// An Ethernet address as it is written.
pub(super) fn text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A number of `/proc/net/netstat`: a line of names, then a line of values.
fn extended_count(text: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (lines.next()?, lines.next()?);
    let place = names.split_whitespace().position(|word| word == name)?;
    values.split_whitespace().nth(place)?.parse().ok()
}

/// The rules of netfilter, those of iptables-nft included; none where there is no nft.
fn nft_ruleset() -> Option<Value> {
    let output = Command::new("nft")
        .args(["-j", "list", "ruleset"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    serde_json::from_slice(&output.stdout).ok()
}

/// Chains that drop what is forwarded, and chains that translate sources.
fn read_ruleset(ruleset: &Value) -> (Vec<String>, Vec<NatChain>) {
    let text = |object: &Value, field: &str| object[field].as_str().unwrap_or_default().to_owned();
    let place = |object: &Value, chain: &str| {
        format!("{} {} {}", text(object, "family"), text(object, "table"), text(object, chain))
    };
    let mut drops = Vec::new();
    let mut translating: Vec<NatChain> = Vec::new();
    for entry in ruleset["nftables"].as_array().into_iter().flatten() {
        if let Some(chain) = entry.get("chain")
            && chain["hook"] == "forward"
            && chain["policy"] == "drop"
        {
            drops.push(place(chain, "name"));
        }
        let Some(rule) = entry.get("rule") else { continue };
        let actions = rule["expr"].as_array().into_iter().flatten().filter_map(Value::as_object);
        // iptables-nft keeps what nft has no words for as `xt`, with the target's name.
        let action = actions.flat_map(serde_json::Map::iter).find_map(|(name, value)| match name.as_str() {
            "masquerade" | "snat" => Some(name.clone()),
            "xt" if value["name"] == "MASQUERADE" || value["name"] == "SNAT" => {
                Some(text(value, "name").to_lowercase())
            }
            _ => None,
        });
        if let Some(action) = action {
            let chain = NatChain { chain: place(rule, "chain"), action };
            if !translating.contains(&chain) {
                translating.push(chain);
            }
        }
    }
    (drops, translating)
}

/// Where the kernel finds a host.
fn locate(address: Ipv4Addr) -> Option<Station> {
    let mut host = Host::open().ok()?;
    let query = RouteQuery { source: Ipv4Addr::UNSPECIFIED, destination: address, ingress: 0 };
    let route = match host.route(query) {
        Ok(route) => route,
        Err(error) => {
            let fault = Some(error.to_string());
            return Some(Station { interface: String::new(), mac: None, route_fault: fault });
        }
    };
    let mac =
        host.neighbour(route.ifindex, route.gateway.unwrap_or(address)).map(|neighbour| text(neighbour.mac));
    let interface = host.link(route.ifindex).map_or_else(String::new, |link| link.name.clone());
    Some(Station { interface, mac, route_fault: None })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn netstat_is_two_lines() {
        let text = "TcpExt: SyncookiesSent IPReversePathFilter X\nTcpExt: 0 17 3\nIpExt: A\nIpExt: 1\n";
        assert_eq!(extended_count(text, "IPReversePathFilter"), Some(17));
        assert_eq!(extended_count(text, "Missing"), None);
    }

    #[test]
    fn default_routes_are_read_from_proc() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
                    wan\t00000000\tFE7100CB\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
                    ppp0\t00000000\t00000000\t0001\t0\t0\t0\t00000000\t0\t0\t0\n\
                    lan\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        let arp = "IP address       HW type     Flags       HW address            Mask     Device\n\
                   203.0.113.254    0x1         0x0         00:00:00:00:00:00     *        wan\n";
        let routes = default_routes(text, arp);
        let gateway = Some(Ipv4Addr::new(203, 0, 113, 254));
        assert_eq!(routes.len(), 2);
        assert_eq!(
            routes[0],
            DefaultRoute { interface: "wan".to_owned(), gateway, metric: 100, silent: true, known: false }
        );
        assert_eq!((routes[1].gateway, routes[1].metric, routes[1].silent), (None, 0, false));
    }

    #[test]
    fn a_rule_set_of_both_tools() {
        let ruleset = json!({"nftables": [
            {"chain": {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}},
            {"chain": {"family": "inet", "table": "fw", "name": "fine", "hook": "forward", "policy": "accept"}},
            {"rule": {"family": "ip", "table": "nat", "chain": "post", "expr": [{"masquerade": null}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "post", "expr": [{"masquerade": null}]}},
            {"rule": {"family": "ip", "table": "nat", "chain": "POSTROUTING",
                      "expr": [{"match": {}}, {"xt": {"type": "target", "name": "MASQUERADE"}}]}},
        ]});
        let (drops, chains) = read_ruleset(&ruleset);
        assert_eq!(drops, ["ip filter FORWARD"]);
        let chains: Vec<String> = chains.into_iter().map(|chain| chain.chain).collect();
        assert_eq!(chains, ["ip nat post", "ip nat POSTROUTING"]);
    }
}
