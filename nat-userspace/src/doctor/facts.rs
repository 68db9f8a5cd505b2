//! What the checks judge, gathered from the daemon, `/proc`, netlink and nft.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde::de::IgnoredAny;
use serde_json::Value;

use crate::api::{
    Client, ClientError, EndpointFilter, PoolRow, Request, RuleRow, ServiceRow, SessionFilter, SessionRow,
    StatusReport,
};
use crate::host::{Host, RouteQuery};

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
}

/// An interface that natgw serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// The filter in force: the stricter of its own and that of all.
    pub rp_filter: u8,
    /// Which ARP requests the kernel leaves unanswered there: the stricter of its own setting and that of all.
    pub arp_ignore: u8,
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
                name: interface.name,
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
        if let Ok(host) = Host::open() {
            facts.shared_stations = shared_stations(&host, &facts.interfaces);
        }
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
fn text(mac: [u8; 6]) -> String {
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
