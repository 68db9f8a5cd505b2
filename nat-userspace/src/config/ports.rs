//! Ports that a rule may use, where it shares its external addresses with other gateways.

use std::fmt;

use serde_spanned::Spanned;

use super::address::PortRange;
use super::error::{Fault, Problems};
use super::file;

/// The ports that are one customer's of those who share an address (MAP-E and lw4o6, RFC 7597
/// section 5.1): in 16 bits, from the highest, `offset` bits that are not all zero, `length` bits
/// that are `id`, and whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSet {
    /// Bits before the identifier.
    pub offset: u8,
    /// Bits of the identifier, at least one.
    pub length: u8,
    /// The port-set identifier (PSID).
    pub id: u16,
}

impl PortSet {
    /// Whether the port is in the set.
    pub fn contains(self, port: u16) -> bool {
        let bits = u32::from(port);
        let (before, after) = (16 - u32::from(self.offset), 16 - u32::from(self.offset + self.length));
        // Without bits before it there is nothing that could keep the well-known ports out.
        let is_excluded = self.offset > 0 && bits >> before == 0;
        !is_excluded && (bits >> after) & ((1 << self.length) - 1) == u32::from(self.id)
    }
}

/// A range, or what a port set leaves of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// From where to where.
    pub range: PortRange,
    /// The set they are in.
    pub set: Option<PortSet>,
}

impl Ports {
    /// Whether the port is one of them.
    pub fn contains(self, port: u16) -> bool {
        self.range.contains(port) && self.set.is_none_or(|set| set.contains(port))
    }

    /// All of them.
    pub fn iter(self) -> impl Iterator<Item = u16> {
        (self.range.first..=self.range.last).filter(move |&port| self.contains(port))
    }
}

impl From<PortRange> for Ports {
    fn from(range: PortRange) -> Self {
        Self { range, set: None }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.range)?;
        match self.set {
            Some(PortSet { offset, length, id }) => {
                write!(f, ", set {id} of {} at bit {offset}", 1u32 << length)
            }
            None => Ok(()),
        }
    }
}

/// Judges `port_set` of a rule with these ports.
pub(super) fn port_set(
    raw: &Spanned<file::PortSet>,
    range: PortRange,
    problems: &mut Problems<'_>,
) -> Option<PortSet> {
    problems.check(&raw.span(), judge(raw.get_ref(), range))
}

fn judge(raw: &file::PortSet, range: PortRange) -> Result<PortSet, Fault> {
    let within = |name: &str, value: i64, least: u8, most: u8| {
        u8::try_from(value).ok().filter(|bits| (least..=most).contains(bits)).ok_or_else(|| {
            Fault::new(
                format!("`{name}` of a port set is not {value}"),
                format!("bits from {least} to {most}: a port has 16"),
            )
        })
    };
    let offset = within("offset", raw.offset.unwrap_or(OFFSET), 0, 15)?;
    let length = within("length", raw.length, 1, 16 - offset)?;
    let id = u16::try_from(raw.id).ok().filter(|&id| u32::from(id) < 1 << length).ok_or_else(|| {
        Fault::new(
            format!("there is no port set {} in {length} bits", raw.id),
            format!("an id from 0 to {}", (1u32 << length) - 1),
        )
    })?;
    let set = PortSet { offset, length, id };
    if (Ports { range, set: Some(set) }).iter().next().is_none() {
        return Err(Fault::new(
            format!("the port set has none of the ports {range}"),
            "leave `ports` out, or give a range that the set has ports of",
        ));
    }
    Ok(set)
}

/// The bits that keep ports 0 to 1023 out of every set (RFC 7597 section 5.1).
const OFFSET: i64 = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 7597 appendix A, example 1: 6 bits before it, 8 bits of 0x34: ports 1232 to 1235, 2256
    /// to 2259, and so on up to 64720 to 64723.
    #[test]
    fn prt_10_the_example_of_rfc_7597() {
        let set = Some(PortSet { offset: 6, length: 8, id: 0x34 });
        let ports: Vec<u16> = Ports { range: PortRange { first: 1, last: 65_535 }, set }.iter().collect();
        assert_eq!(ports[..5], [1232, 1233, 1234, 1235, 2256]);
        assert_eq!(ports[ports.len() - 4..], [64_720, 64_721, 64_722, 64_723]);
        assert_eq!(ports.len(), 63 * 4);
    }
}
