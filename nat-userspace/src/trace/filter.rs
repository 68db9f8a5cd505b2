//! Which packets: `src host 10.1.1.7 and tcp and port 443`, in tcpdump's words.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use nat_common::trace::{Query, TERMS, Term, Tuple};

use crate::config::protocol_number;
use crate::gateway::network;

/// Packets for which every condition holds, before or after translation; without conditions all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    terms: Vec<Term>,
}

/// Why a filter makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("filter: {0}")]
pub struct FilterError(String);

impl FilterError {
    /// What to do about it.
    pub const HINT: &'static str = "such as: host 10.1.1.7 and tcp and port 443; the words are host, net, port, proto, src, dst, tcp, udp, icmp, and";
}

impl Filter {
    /// The query that asks for it.
    pub fn query(&self, per_second: u32) -> Query {
        let mut query = Query { active: 1, per_second, ..Query::default() };
        for (place, term) in query.terms.iter_mut().zip(&self.terms) {
            *place = *term;
            query.count += 1;
        }
        query
    }

    /// Whether it means packets of these endpoints.
    pub fn matches(&self, tuple: &Tuple) -> bool {
        self.query(0).matches(tuple)
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let mut terms = Vec::new();
        let mut words = text.split_whitespace().peekable();
        while words.peek().is_some() {
            terms.push(term(&mut words)?);
            match words.next() {
                None => break,
                Some("and" | "&&") if words.peek().is_some() => {}
                Some("and" | "&&") => return Err(FilterError("nothing comes after `and`".to_owned())),
                Some(word) => return Err(FilterError(format!("`and` is missing before `{word}`"))),
            }
        }
        if terms.len() > TERMS {
            return Err(FilterError(format!("{} conditions, {TERMS} are possible", terms.len())));
        }
        Ok(Self { terms })
    }
}

fn term<'word>(words: &mut impl Iterator<Item = &'word str>) -> Result<Term, FilterError> {
    let mut need =
        |after: &str| words.next().ok_or_else(|| FilterError(format!("nothing comes after `{after}`")));
    let mut word = need("the filter's beginning")?;
    let sides = match word {
        "src" => Term::SOURCE,
        "dst" => Term::DESTINATION,
        _ => Term::SOURCE | Term::DESTINATION,
    };
    let has_side = matches!(word, "src" | "dst");
    if has_side {
        word = need(word)?;
    }
    match word {
        "host" | "net" => addresses(need(word)?, sides),
        "port" => {
            let port = need(word)?;
            let number = port
                .parse::<u16>()
                .map_err(|_| FilterError(format!("`{port}` is no port from 0 to 65535")))?;
            Ok(Term { number: number.to_be(), kind: Term::PORT, sides, ..Term::default() })
        }
        "proto" if !has_side => protocol(need(word)?),
        "tcp" | "udp" | "icmp" if !has_side => protocol(word),
        address if has_side => addresses(address, sides),
        word => Err(FilterError(format!("`{word}` is not understood"))),
    }
}

fn addresses(word: &str, sides: u8) -> Result<Term, FilterError> {
    let net = word.parse::<Ipv4Addr>().map(Ipv4Net::from).or_else(|_| word.parse::<Ipv4Net>());
    let net = net.map_err(|_| FilterError(format!("`{word}` is no IPv4 address or prefix")))?.trunc();
    Ok(Term {
        address: network(net.network()),
        mask: network(net.netmask()),
        kind: Term::ADDRESS,
        sides,
        ..Term::default()
    })
}

fn protocol(word: &str) -> Result<Term, FilterError> {
    let number = protocol_number(&word.to_lowercase())
        .ok_or_else(|| FilterError(format!("`{word}` is no protocol: tcp, udp, icmp or a number")))?;
    Ok(Term { number: number.into(), kind: Term::PROTOCOL, sides: 0, ..Term::default() })
}

impl fmt::Display for Filter {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let both = Term::SOURCE | Term::DESTINATION;
        for (position, term) in self.terms.iter().enumerate() {
            let side = match term.sides {
                Term::SOURCE => "src ",
                Term::DESTINATION => "dst ",
                _ => "",
            };
            debug_assert!(term.sides <= both);
            let and = if position == 0 { "" } else { " and " };
            match term.kind {
                Term::PORT => write!(out, "{and}{side}port {}", u16::from_be(term.number))?,
                Term::PROTOCOL => write!(out, "{and}proto {}", term.number)?,
                _ => {
                    let bits = u32::from_be(term.mask).count_ones();
                    let address = crate::gateway::address(term.address);
                    write!(out, "{and}{side}net {address}/{bits}")?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_mean_what_tcpdump_means() {
        for (text, shown) in [
            ("", ""),
            ("host 10.1.1.7", "net 10.1.1.7/32"),
            ("src 10.1.1.7 and dst port 443", "src net 10.1.1.7/32 and dst port 443"),
            ("net 10.1.0.9/16 and tcp", "net 10.1.0.0/16 and proto 6"),
            ("proto 47 and src net 10.0.0.0/8", "proto 47 and src net 10.0.0.0/8"),
            ("dst host 10.1.1.7 && icmp", "dst net 10.1.1.7/32 and proto 1"),
        ] {
            let filter: Filter = text.parse().expect(text);
            assert_eq!(filter.to_string(), shown, "{text}");
            assert_eq!(filter.to_string().parse(), Ok(filter), "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        for (text, wrong) in [
            ("hosts 10.1.1.7", "`hosts` is not understood"),
            ("host", "nothing comes after `host`"),
            ("host ten", "`ten` is no IPv4 address or prefix"),
            ("port 65536", "`65536` is no port"),
            ("proto quic", "`quic` is no protocol"),
            ("src tcp", "`tcp` is no IPv4 address"),
            ("tcp port 80", "`and` is missing before `port`"),
            ("tcp and", "nothing comes after `and`"),
            ("10.1.1.7", "`10.1.1.7` is not understood"),
            (
                "tcp and tcp and tcp and tcp and tcp and tcp and tcp and tcp and tcp",
                "9 conditions, 8 are possible",
            ),
        ] {
            let error = text.parse::<Filter>().expect_err(text).to_string();
            assert!(error.contains(wrong), "{text}: {error}");
        }
    }

    #[test]
    fn a_packet_is_meant_by_its_endpoints() {
        let tuple = Tuple {
            source: network([10, 1, 1, 7].into()),
            destination: network([198, 51, 100, 1].into()),
            source_port: 1000u16.to_be(),
            destination_port: 443u16.to_be(),
            protocol: 6,
            is_ipv4: 1,
            has_ports: 1,
            pad: 0,
        };
        for (text, meant) in [
            ("host 198.51.100.1 and tcp", true),
            ("src host 198.51.100.1", false),
            ("dst net 198.51.100.0/24 and dst port 443", true),
            ("src port 443", false),
            ("udp", false),
        ] {
            assert_eq!(text.parse::<Filter>().expect(text).matches(&tuple), meant, "{text}");
        }
    }
}
