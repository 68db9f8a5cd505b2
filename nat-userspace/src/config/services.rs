//! Virtual servers: one external endpoint, several servers behind it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::time::Duration;

use serde_spanned::Spanned;

use super::error::Fault;
use super::file;
use super::rules::{Judge, Placed, parse_external};
use super::timeouts::parse_duration;
use super::validate::{choose, required};
use super::{CheckKind, ForwardAddress, Method, PortRange, Scheduler, address, protocol_name};

/// Spreads what comes to an external endpoint over servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceRule {
    /// Unique among all rules; `service-1`, … if not given.
    pub name: String,
    /// TCP or UDP.
    pub protocol: u8,
    /// Where the packets come in.
    pub external: ForwardAddress,
    /// At which port.
    pub port: u16,
    /// How packets reach a server.
    pub method: Method,
    /// How a server is chosen.
    pub scheduler: Scheduler,
    /// How long a client that has gone keeps its server; zero for not at all.
    pub persistence: Duration,
    /// How many leading bits of a client's address have one server.
    pub persistence_prefix: u8,
    /// How a dead server is found out.
    pub check: Check,
    /// No endpoint twice; may be empty.
    pub servers: Vec<ServerConfig>,
}

/// A server of a [`ServiceRule`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Its own endpoint.
    pub address: SocketAddrV4,
    /// Its share; one of 0 gets no new connections.
    pub weight: u32,
}

/// How a server's health is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// What is asked of it.
    pub kind: CheckKind,
    /// From one question to the next.
    pub interval: Duration,
    /// How long it may take to answer.
    pub timeout: Duration,
    /// So many failures in a row, and it is down.
    pub fall: u32,
    /// So many answers in a row, and it is up again.
    pub rise: u32,
    /// What an HTTP check asks for.
    pub path: String,
    /// What it wants to hear.
    pub status: u16,
}

impl Check {
    fn default_of(kind: CheckKind) -> Self {
        Self {
            kind,
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            fall: 3,
            rise: 2,
            path: "/".to_owned(),
            status: 200,
        }
    }
}

impl ServiceRule {
    /// What a rule's servers can be: `Err` says why this one cannot.
    pub fn may_have(&self, server: SocketAddrV4) -> Result<(), String> {
        if self.method != Method::Nat && server.port() != self.port {
            return Err(format!(
                "with {} the port stays as it is: {}:{}",
                self.method.name(),
                server.ip(),
                self.port
            ));
        }
        Ok(())
    }
}

impl Judge<'_, '_> {
    pub(super) fn services(&mut self, raw: &[Spanned<file::Service>]) -> Vec<Placed<ServiceRule>> {
        raw.iter().enumerate().filter_map(|(index, section)| self.one_service(index, section)).collect()
    }

    fn one_service(&mut self, index: usize, section: &Spanned<file::Service>) -> Option<Placed<ServiceRule>> {
        let raw = section.get_ref();
        let name = self.name(raw.name.as_ref(), "service", index, &section.span());
        let protocol = match &raw.protocol {
            None => Some(TCP),
            Some(word) => self.problems.check(&word.span(), parse_service_protocol(word.get_ref())),
        };
        let hint = "external = \"203.0.113.1:80\" or \"wan:80\"";
        let external =
            required(raw.external.as_ref(), section, "external", hint, self.problems).and_then(|value| {
                let parsed = parse_external(value.get_ref())
                    .and_then(|(host, ports)| Ok((host, single_port(value.get_ref(), ports)?)));
                let (host, port) = self.problems.check(&value.span(), parsed)?;
                if let ForwardAddress::Interface(name) = &host {
                    self.outside_interface(name, &value.span());
                }
                Some((host, port))
            });
        let method = choose(raw.method.as_ref(), &Method::WORDS, self.problems);
        let scheduler = choose(raw.scheduler.as_ref(), &Scheduler::WORDS, self.problems);
        let persistence = match &raw.persistence {
            None => Some(Duration::ZERO),
            Some(word) => self.problems.check(&word.span(), parse_duration(&word.get_ref().0, true)),
        };
        let persistence_prefix =
            self.number(raw.persistence_prefix.as_ref(), 32, 1..=32, "bits of an address, such as 24");
        let check = self.check(raw.check.as_ref(), protocol);
        let ((external, port), protocol) = (external?, protocol?);
        let mut rule = ServiceRule {
            name,
            protocol,
            external,
            port,
            method,
            scheduler,
            persistence: persistence?,
            persistence_prefix: u8::try_from(persistence_prefix?).unwrap_or(32),
            check: check?,
            servers: Vec::new(),
        };
        self.servers(&mut rule, section);
        Some(Placed { span: section.span(), rule })
    }

    fn servers(&mut self, rule: &mut ServiceRule, section: &Spanned<file::Service>) {
        let raw = &section.get_ref().server;
        if let Some(extra) = raw.get(MOST_SERVERS) {
            self.problems.add(
                &extra.span(),
                Fault::new(
                    format!("{} servers are more than the {MOST_SERVERS} a service may have", raw.len()),
                    "spread them over several services",
                ),
            );
        }
        if raw.is_empty() {
            self.warnings.push(format!(
                "[[service]] {} has no [[service.server]]: its clients are refused until one is added",
                rule.name
            ));
        }
        for server in raw {
            let hint = "address = \"10.1.1.21:8080\"";
            let value = required(server.get_ref().address.as_ref(), server, "address", hint, self.problems);
            let weight =
                self.number(server.get_ref().weight.as_ref(), 1, 0..=MOST_WEIGHT, "0 takes nothing new");
            let Some(value) = value else { continue };
            let Some(address) = self.problems.check(&value.span(), parse_server(value.get_ref(), rule.port))
            else {
                continue;
            };
            if rule.servers.iter().any(|other| other.address == address) {
                let fault = Fault::new(
                    format!("a second server of `{}` is {address}", rule.name),
                    "give one of them a larger weight instead",
                );
                self.problems.add(&value.span(), fault);
            } else if let Err(why) = rule.may_have(address) {
                let hint = format!("write {}:{}, or method = \"nat\"", address.ip(), rule.port);
                self.problems.add(&value.span(), Fault::new(why, hint));
            } else if let Some(weight) = weight {
                rule.servers.push(ServerConfig { address, weight });
            }
        }
    }

    fn check(&mut self, raw: Option<&Spanned<file::Check>>, protocol: Option<u8>) -> Option<Check> {
        // What a UDP server answers to, only its operator knows.
        let default = if protocol == Some(UDP) { CheckKind::None } else { CheckKind::Tcp };
        let Some(raw) = raw.map(Spanned::get_ref) else { return Some(Check::default_of(default)) };
        let kind = match raw.kind.as_ref() {
            None => default,
            Some(word) if word.get_ref() == "https" => {
                self.problems.add(
                    &word.span(),
                    Fault::new(
                        "this version checks no server by TLS (`https`)",
                        "kind = \"tcp\" sees whether the port answers; \"http\" asks on a port without TLS",
                    ),
                );
                return None;
            }
            Some(_) => choose(raw.kind.as_ref(), &CheckKind::WORDS, self.problems),
        };
        let standard = Check::default_of(kind);
        let mut time = |value: &Option<Spanned<file::Word>>, default: Duration| match value {
            None => Some(default),
            Some(word) => self.problems.check(&word.span(), parse_check_time(&word.get_ref().0)),
        };
        let interval = time(&raw.interval, standard.interval);
        let timeout = time(&raw.timeout, standard.timeout);
        let hint = "checks in a row, such as 3";
        let fall = self.number(raw.fall.as_ref(), standard.fall, 1..=MOST_IN_A_ROW, hint);
        let rise = self.number(raw.rise.as_ref(), standard.rise, 1..=MOST_IN_A_ROW, hint);
        let status = self.number(
            raw.status.as_ref(),
            u32::from(standard.status),
            100..=599,
            "an HTTP status, such as 200",
        );
        for (key, place) in [
            ("path", raw.path.as_ref().map(Spanned::span)),
            ("status", raw.status.as_ref().map(Spanned::span)),
        ] {
            if let Some(place) = place
                && kind != CheckKind::Http
            {
                let fault = Fault::new(
                    format!("`{key}` means nothing to a check of kind `{}`", kind.name()),
                    "kind = \"http\", or take it out",
                );
                self.problems.add(&place, fault);
            }
        }
        let path = match &raw.path {
            None => Some(standard.path),
            Some(word) => self.problems.check(&word.span(), parse_path(word.get_ref())),
        };
        Some(Check {
            kind,
            interval: interval?,
            timeout: timeout?,
            fall: fall?,
            rise: rise?,
            path: path?,
            status: u16::try_from(status?).unwrap_or(standard.status),
        })
    }

    /// A number within bounds, the default if the key is absent.
    fn number(
        &mut self,
        value: Option<&Spanned<i64>>,
        default: u32,
        bounds: RangeInclusive<u32>,
        hint: &str,
    ) -> Option<u32> {
        let Some(value) = value else { return Some(default) };
        let number = u32::try_from(*value.get_ref()).ok().filter(|number| bounds.contains(number));
        let fault = || {
            Fault::new(
                format!("{} is not from {} to {}", value.get_ref(), bounds.start(), bounds.end()),
                hint.to_owned(),
            )
        };
        self.problems.check(&value.span(), number.ok_or_else(fault))
    }
}

fn parse_service_protocol(word: &str) -> Result<u8, Fault> {
    [TCP, UDP].into_iter().find(|&number| protocol_name(number) == word).ok_or_else(|| {
        Fault::new(
            format!("`{word}` is not a protocol of virtual servers"),
            "\"tcp\" or \"udp\", one for each [[service]]",
        )
    })
}

fn single_port(word: &str, ports: PortRange) -> Result<u16, Fault> {
    if ports.len() == 1 {
        return Ok(ports.first);
    }
    Err(Fault::new(
        format!("`{word}` has {} ports", ports.len()),
        "a [[service]] has one; write one for each",
    ))
}

/// `10.1.1.21:8080`; without a port, the service's.
fn parse_server(word: &str, port: u16) -> Result<SocketAddrV4, Fault> {
    let (host, port) = match word.rsplit_once(':') {
        None => (word, port),
        Some((host, ports)) => (host, single_port(word, address::parse_ports(ports)?)?),
    };
    let host: Ipv4Addr = address::parse_host(host)?;
    Ok(SocketAddrV4::new(host, port))
}

fn parse_check_time(word: &str) -> Result<Duration, Fault> {
    let time = parse_duration(word, true)?;
    if time < SHORTEST_CHECK {
        return Err(Fault::new(
            format!("`{word}` is shorter than {}", humantime::format_duration(SHORTEST_CHECK)),
            "a time such as 2s",
        ));
    }
    Ok(time)
}

fn parse_path(word: &str) -> Result<String, Fault> {
    if word.starts_with('/') && word.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(word.to_owned());
    }
    Err(Fault::new(
        format!("`{word}` is not the path of a URL"),
        "it begins with `/` and has no blanks: path = \"/health\"",
    ))
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A thread each looks at their health.
const MOST_SERVERS: usize = 256;
/// Large enough for any ratio, small enough to add up.
const MOST_WEIGHT: u32 = 65_535;
/// Of checks until a server is down, or up.
const MOST_IN_A_ROW: u32 = 1000;
/// So that checks are no load.
const SHORTEST_CHECK: Duration = Duration::from_millis(50);
