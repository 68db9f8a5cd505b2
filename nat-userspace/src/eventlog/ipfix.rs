//! Messages of IPFIX (RFC 7011) with the records of RFC 8158 section 5.

use std::net::Ipv4Addr;
use std::time::{SystemTime, UNIX_EPOCH};

use super::record::{named, utc};
use crate::gateway::{Event, Happening, Quota, Stepped, Threshold};

/// Below the MTU of an Ethernet, whatever a tunnel takes of it.
const LARGEST: usize = 1400;
const HEADER: usize = 16;
const VERSION: u16 = 10;
/// The set of templates (RFC 7011 section 3.3.2).
const TEMPLATE_SET: u16 = 2;
/// One NAT instance is one observation domain.
const DOMAIN: u32 = 1;

/// Information elements, by the numbers of IANA's registry, with their sizes.
mod element {
    pub(super) type Element = (u16, u16);
    pub(super) const PROTOCOL: Element = (4, 1);
    pub(super) const SOURCE_PORT: Element = (7, 2);
    pub(super) const SOURCE: Element = (8, 4);
    pub(super) const DESTINATION_PORT: Element = (11, 2);
    pub(super) const DESTINATION: Element = (12, 4);
    pub(super) const POST_SOURCE: Element = (225, 4);
    pub(super) const POST_DESTINATION: Element = (226, 4);
    pub(super) const POST_SOURCE_PORT: Element = (227, 2);
    pub(super) const POST_DESTINATION_PORT: Element = (228, 2);
    pub(super) const NAT_EVENT: Element = (230, 1);
    pub(super) const POOL: Element = (283, 4);
    pub(super) const TIME: Element = (323, 8);
    pub(super) const FIRST_PORT: Element = (361, 2);
    pub(super) const LAST_PORT: Element = (362, 2);
    pub(super) const QUOTA: Element = (466, 4);
    pub(super) const THRESHOLD: Element = (467, 4);
    pub(super) const MOST_SESSIONS: Element = (471, 4);
    pub(super) const MOST_MAPPINGS: Element = (472, 4);
    pub(super) const MOST_PER_USER: Element = (473, 4);
    pub(super) const MOST_SUBSCRIBERS: Element = (474, 4);
    pub(super) const MOST_FRAGMENTS: Element = (475, 4);
    pub(super) const ADDRESSES_HIGH: Element = (476, 4);
    pub(super) const ADDRESSES_LOW: Element = (477, 4);
    pub(super) const PORTS_HIGH: Element = (478, 4);
    pub(super) const PER_USER_HIGH: Element = (480, 4);
    pub(super) const GLOBAL_HIGH: Element = (481, 4);
}
use element::{
    ADDRESSES_HIGH, ADDRESSES_LOW, DESTINATION, DESTINATION_PORT, FIRST_PORT, GLOBAL_HIGH, LAST_PORT,
    MOST_FRAGMENTS, MOST_MAPPINGS, MOST_PER_USER, MOST_SESSIONS, MOST_SUBSCRIBERS, NAT_EVENT, PER_USER_HIGH,
    POOL, PORTS_HIGH, POST_DESTINATION, POST_DESTINATION_PORT, POST_SOURCE, POST_SOURCE_PORT, PROTOCOL,
    QUOTA, SOURCE, SOURCE_PORT, THRESHOLD, TIME,
};

/// The shapes of records. Each begins with time and event; the number of a template is 256 and its place.
const TEMPLATES: [&[element::Element]; 16] = [
    &[TIME, NAT_EVENT, PROTOCOL, SOURCE, POST_SOURCE, SOURCE_PORT, POST_SOURCE_PORT],
    &[
        TIME,
        NAT_EVENT,
        PROTOCOL,
        SOURCE,
        POST_SOURCE,
        SOURCE_PORT,
        POST_SOURCE_PORT,
        DESTINATION,
        POST_DESTINATION,
        DESTINATION_PORT,
        POST_DESTINATION_PORT,
    ],
    &[TIME, NAT_EVENT, SOURCE, POST_SOURCE],
    &[TIME, NAT_EVENT, SOURCE, POST_SOURCE, FIRST_PORT, LAST_PORT],
    &[TIME, NAT_EVENT, POOL],
    &[TIME, NAT_EVENT, POST_SOURCE, PROTOCOL],
    &[TIME, NAT_EVENT, QUOTA, MOST_SESSIONS],
    &[TIME, NAT_EVENT, QUOTA, MOST_PER_USER, SOURCE],
    &[TIME, NAT_EVENT, QUOTA, MOST_FRAGMENTS],
    &[TIME, NAT_EVENT, THRESHOLD, ADDRESSES_HIGH, POOL],
    &[TIME, NAT_EVENT, THRESHOLD, ADDRESSES_LOW, POOL],
    &[TIME, NAT_EVENT, THRESHOLD, PORTS_HIGH],
    &[TIME, NAT_EVENT, THRESHOLD, PER_USER_HIGH, SOURCE],
    &[TIME, NAT_EVENT, THRESHOLD, GLOBAL_HIGH],
    &[TIME, NAT_EVENT, QUOTA, MOST_MAPPINGS],
    &[TIME, NAT_EVENT, QUOTA, MOST_SUBSCRIBERS],
];

/// The number of the first template of an exporter's own (RFC 7011 section 3.4.1).
const FIRST_TEMPLATE: u16 = 256;

/// Makes messages.
pub(super) struct Exporter {
    destinations: bool,
    message: Vec<u8>,
    /// Where the set begins that is being filled, and its template.
    set: Option<(usize, u16)>,
    records: u32,
    /// Records in all messages before this.
    sequence: u32,
}

impl Exporter {
    pub(super) fn new(destinations: bool) -> Self {
        Self { destinations, message: vec![0; HEADER], set: None, records: 0, sequence: 0 }
    }

    /// Another exporter of the same stream, for a message with the templates alone.
    pub(super) fn apart(&self) -> Self {
        Self { sequence: self.sequence, ..Self::new(self.destinations) }
    }

    /// Records in the message.
    pub(super) fn records(&self) -> u32 {
        self.records
    }

    /// Puts the templates into the message, which holds nothing yet.
    pub(super) fn add_templates(&mut self) {
        self.begin_set(TEMPLATE_SET);
        for (number, elements) in (FIRST_TEMPLATE..).zip(TEMPLATES) {
            self.put(&number.to_be_bytes());
            self.put(&u16::try_from(elements.len()).unwrap_or(0).to_be_bytes());
            for (element, size) in elements {
                self.put(&element.to_be_bytes());
                self.put(&size.to_be_bytes());
            }
        }
        self.end_set();
    }

    /// Puts a record in. `false` if the message has no room for it.
    pub(super) fn add(&mut self, event: &Event) -> bool {
        let Values { template, bytes } = self.values(event);
        let number = FIRST_TEMPLATE + template;
        let is_other = self.set.is_none_or(|(_, open)| open != number);
        let needed = bytes.len() + if is_other { 4 } else { 0 };
        if self.message.len() + needed > LARGEST {
            return false;
        }
        if is_other {
            self.end_set();
            self.begin_set(number);
        }
        self.put(&bytes);
        self.records += 1;
        true
    }

    /// The message as it is to be sent.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.end_set();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let length = u16::try_from(self.message.len()).unwrap_or(0);
        // Seconds modulo 2^32, as the field is.
        let now = u32::try_from(now & u64::from(u32::MAX)).unwrap_or(0);
        let fields = [u32::from(VERSION) << 16 | u32::from(length), now, self.sequence, DOMAIN];
        for (place, field) in self.message.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *place = field.to_be_bytes();
        }
        &self.message
    }

    /// Begins the next message.
    pub(super) fn next(&mut self) {
        self.sequence = self.sequence.wrapping_add(self.records);
        self.records = 0;
        self.set = None;
        self.message.truncate(HEADER);
    }

    fn begin_set(&mut self, number: u16) {
        self.set = Some((self.message.len(), number));
        self.put(&number.to_be_bytes());
        self.put(&[0; 2]);
    }

    fn end_set(&mut self) {
        let Some((start, _)) = self.set.take() else { return };
        let length = u16::try_from(self.message.len() - start).unwrap_or(0);
        if let Some(field) = self.message.get_mut(start + 2..start + 4) {
            field.copy_from_slice(&length.to_be_bytes());
        }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.message.extend_from_slice(bytes);
    }

    /// A record's values, in the order of its template.
    fn values(&self, event: &Event) -> Values {
        let time = utc(event).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let (_, number) = named(&event.what);
        let mut values = Values { template: 0, bytes: Vec::with_capacity(40) };
        values.put(&u64::try_from(time).unwrap_or(0).to_be_bytes());
        values.put(&[number]);
        let level = |values: &mut Values, template: u16, kind: u32, limit: u32| {
            values.template = template;
            values.put(&kind.to_be_bytes());
            values.put(&limit.to_be_bytes());
        };
        match event.what {
            Happening::SessionCreated(ends)
            | Happening::SessionDeleted(ends)
            | Happening::SessionStep(Stepped { ends, .. }) => {
                values.put(&[ends.protocol]);
                values
                    .pair([*ends.inside.ip(), *ends.outside.ip()], [ends.inside.port(), ends.outside.port()]);
                if self.destinations {
                    values.template = 1;
                    let (before, after) = (ends.remote_inside, ends.remote);
                    values.pair([*before.ip(), *after.ip()], [before.port(), after.port()]);
                }
            }
            Happening::MappingCreated(binding) | Happening::MappingDeleted(binding) => {
                let (inside, outside) = (binding.inside, binding.outside);
                values.put(&[binding.protocol]);
                values.pair([*inside.ip(), *outside.ip()], [inside.port(), outside.port()]);
            }
            Happening::AddressBound(pair) | Happening::AddressReleased(pair) => {
                values.template = 2;
                values.pair([pair.inside, pair.outside], []);
            }
            Happening::BlockTaken(block) | Happening::BlockReleased(block) => {
                values.template = 3;
                values.pair([block.inside, block.outside], [block.ports.first, block.ports.last]);
            }
            Happening::AddressesExhausted(pool) => {
                values.template = 4;
                values.put(&pool.to_be_bytes());
            }
            Happening::PortsExhausted(outside, protocol) => {
                values.template = 5;
                values.put(&outside.octets());
                values.put(&[protocol]);
            }
            Happening::Quota(Quota::Sessions(most)) => level(&mut values, 6, 1, most),
            Happening::Quota(Quota::Source(most, source)) => {
                level(&mut values, 7, 3, most);
                values.put(&source.octets());
            }
            Happening::Quota(Quota::Mappings(most)) => level(&mut values, 14, 2, most),
            Happening::Quota(Quota::Sources(most)) => level(&mut values, 15, 4, most),
            Happening::Quota(Quota::Fragments(most)) => level(&mut values, 8, 5, most),
            Happening::Threshold(Threshold::AddressesHigh(pool, high)) => {
                level(&mut values, 9, 1, high);
                values.put(&pool.to_be_bytes());
            }
            Happening::Threshold(Threshold::AddressesLow(pool, low)) => {
                level(&mut values, 10, 2, low);
                values.put(&pool.to_be_bytes());
            }
            Happening::Threshold(Threshold::Ports(high)) => level(&mut values, 11, 3, high),
            Happening::Threshold(Threshold::Source(high, source)) => {
                level(&mut values, 12, 4, high);
                values.put(&source.octets());
            }
            Happening::Threshold(Threshold::Sessions(high)) => level(&mut values, 13, 5, high),
        }
        values
    }
}

/// The bytes of a record, and the place of its template.
struct Values {
    template: u16,
    bytes: Vec<u8>,
}

impl Values {
    fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn pair<const PORTS: usize>(&mut self, addresses: [Ipv4Addr; 2], ports: [u16; PORTS]) {
        for address in addresses {
            self.put(&address.octets());
        }
        for port in ports {
            self.put(&port.to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::PortRange;
    use crate::gateway::{AddressPair, Binding, Block, Endpoints};

    /// One of each.
    fn everything() -> Vec<Happening> {
        let [inside, outside, remote] =
            ["10.0.0.1:1", "203.0.113.1:2", "198.51.100.1:3"].map(|text| text.parse().unwrap());
        let ends = Endpoints { protocol: 17, inside, outside, remote, remote_inside: remote };
        let binding = Binding { protocol: 6, inside, outside };
        let pair = AddressPair { inside: *inside.ip(), outside: *outside.ip() };
        let ports = PortRange { first: 2000, last: 2099 };
        let block = Block { inside: *inside.ip(), outside: *outside.ip(), ports };
        let source = *inside.ip();
        vec![
            Happening::SessionCreated(ends),
            Happening::SessionDeleted(ends),
            Happening::MappingCreated(binding),
            Happening::MappingDeleted(binding),
            Happening::AddressBound(pair),
            Happening::AddressReleased(pair),
            Happening::BlockTaken(block),
            Happening::BlockReleased(block),
            Happening::AddressesExhausted(1),
            Happening::PortsExhausted(*outside.ip(), 17),
            Happening::Quota(Quota::Sessions(1)),
            Happening::Quota(Quota::Mappings(1)),
            Happening::Quota(Quota::Sources(1)),
            Happening::Quota(Quota::Source(1, source)),
            Happening::Quota(Quota::Fragments(1)),
            Happening::Threshold(Threshold::AddressesHigh(1, 2)),
            Happening::Threshold(Threshold::AddressesLow(1, 2)),
            Happening::Threshold(Threshold::Ports(1)),
            Happening::Threshold(Threshold::Source(1, source)),
            Happening::Threshold(Threshold::Sessions(1)),
        ]
    }

    #[test]
    fn each_record_has_the_length_of_its_template() {
        for destinations in [false, true] {
            let exporter = Exporter::new(destinations);
            for what in everything() {
                let Values { template, bytes } = exporter.values(&Event { at: Instant::now(), what });
                let elements = TEMPLATES[usize::from(template)];
                let length: u16 = elements.iter().map(|(_, size)| size).sum();
                assert_eq!(bytes.len(), usize::from(length), "{what:?}");
            }
        }
    }

    #[test]
    fn messages_are_whole_and_numbered_by_records() {
        let mut exporter = Exporter::new(false);
        exporter.add_templates();
        assert!(exporter.finish().len() < LARGEST);
        exporter.next();
        let event = Event { at: Instant::now(), what: everything()[0] };
        let mut sent = 0_u32;
        for _ in 0..3 {
            while exporter.add(&event) {}
            let records = exporter.records();
            assert_eq!(records, (1400 - 16 - 4) / 22);
            let message = exporter.finish();
            let word = |at: usize| u32::from_be_bytes(message[at..at + 4].try_into().unwrap());
            assert_eq!((word(0) >> 16, word(0) & 0xffff), (10, u32::try_from(message.len()).unwrap()));
            assert_eq!((word(8), word(12)), (sent, DOMAIN));
            assert_eq!(word(16), 256 << 16 | (4 + 22 * records));
            sent += records;
            exporter.next();
        }
    }
}
