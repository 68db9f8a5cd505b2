//! Which sessions a request is about.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::SessionRow;
use crate::config::show_prefix;
use crate::eventlog::{Place, Record};

/// Sessions for which everything that is given holds; nothing given means all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionFilter {
    /// The inside host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inside: Option<EndpointFilter>,
    /// The external endpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<EndpointFilter>,
    /// The remote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remote: Option<EndpointFilter>,
    /// As [`SessionRow::protocol`] has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// As [`SessionRow::state`] has it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The rule's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

impl SessionFilter {
    /// Whether the session is meant.
    pub fn matches(&self, row: &SessionRow) -> bool {
        let endpoint = |filter: &Option<EndpointFilter>, endpoint| {
            filter.as_ref().is_none_or(|filter| filter.matches(endpoint))
        };
        let word = |filter: &Option<String>, word: &str| filter.as_ref().is_none_or(|filter| filter == word);
        endpoint(&self.inside, row.inside)
            && endpoint(&self.outside, row.outside)
            && endpoint(&self.remote, row.remote)
            && word(&self.protocol, &row.protocol)
            && word(&self.state, &row.state)
            && word(&self.rule, &row.rule)
    }

    /// Whether the session is meant that a record tells of.
    pub fn matches_record(&self, record: &Record) -> bool {
        let place = |filter: &Option<EndpointFilter>, place: Option<Place>| {
            filter.as_ref().is_none_or(|filter| match place {
                Some(Place::Endpoint(endpoint)) => filter.matches(endpoint),
                _ => false,
            })
        };
        let word = |filter: &Option<String>, word: Option<&str>| {
            filter.as_ref().is_none_or(|filter| word == Some(filter.as_str()))
        };
        place(&self.inside, record.inside)
            && place(&self.outside, record.outside)
            && place(&self.remote, record.remote.map(Place::Endpoint))
            && word(&self.protocol, record.protocol.as_deref())
            && word(&self.state, record.state.as_deref())
            && word(&self.rule, record.rule.as_deref())
    }

    /// Whether nothing is given, so that all sessions are meant.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Endpoints of a prefix, at one port or at any: `10.1.1.7`, `10.1.1.7:80`, `10.1.1.0/24`,
/// `10.1.1.0/24:80`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndpointFilter {
    /// The addresses.
    pub net: Ipv4Net,
    /// The port or ICMP identifier, in host byte order.
    pub port: Option<u16>,
}

impl EndpointFilter {
    /// Whether the endpoint is meant.
    pub fn matches(&self, endpoint: SocketAddrV4) -> bool {
        self.net.contains(endpoint.ip()) && self.port.is_none_or(|port| port == endpoint.port())
    }
}

impl FromStr for EndpointFilter {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let (host, port) = match word.split_once(':') {
            None => (word, None),
            Some((host, port)) => (host, Some(port.parse::<u16>().ok())),
        };
        let net = host.parse::<Ipv4Addr>().map(Ipv4Net::from).or_else(|_| host.parse::<Ipv4Net>());
        match (net, port) {
            (Ok(net), None) => Ok(Self { net: net.trunc(), port: None }),
            (Ok(net), Some(Some(port))) => Ok(Self { net: net.trunc(), port: Some(port) }),
            _ => Err(format!(
                "`{word}` is not an address, address:port or prefix (10.1.1.7, 10.1.1.7:80, 10.1.1.0/24)"
            )),
        }
    }
}

impl fmt::Display for EndpointFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&show_prefix(self.net))?;
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

impl Serialize for EndpointFilter {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for EndpointFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
