//! What a flow table is like, written down beside it, so that a daemon whose own is another can read its sessions:
//! each field's place and width in a pinned map, `LAYOUT`. A field keeps its number for ever; new ones come at the end.

use std::mem::offset_of;
use std::path::Path;

use aya::maps::{Array, Map, MapData, MapError, MapType};
use nat_common::flow::{FlowKey, FlowValue};
use nat_common::table::{FlowLine, LINE_BITS, SessionLines};

use super::object::LoadError;

/// Where it is pinned.
pub(super) const PIN: &str = "LAYOUT";

/// Begins each description: `ngwl`.
const MAGIC: u32 = 0x6e67_776c;

/// Entries of the map: more than there are fields.
const ENTRIES: u32 = 64;

/// What is described. The numbers are for ever.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Place: the magic number. Width: how the index is to be read; 1 is by its level, a number of 8 bytes: so many
    /// places from that on are in force.
    Format = 0,
    /// Place: bits of an entry of the index that name a line. Width: bytes of an entry.
    Entry = 1,
    /// Place: bytes from one direction's line to the other's. Width: bytes of a session.
    Session = 2,
    // Of a line, from here on.
    Source = 3,
    Destination = 4,
    SourcePort = 5,
    DestinationPort = 6,
    Protocol = 7,
    Query = 8,
    Realm = 9,
    NewSource = 10,
    NewDestination = 11,
    NewSourcePort = 12,
    NewDestinationPort = 13,
    Action = 14,
    Origin = 15,
    Packets = 16,
    Bytes = 17,
    LastSeen = 18,
    Acknowledged = 19,
    Seen = 20,
}

/// How many there are.
const FIELDS: usize = 21;

/// How the index is read.
const BY_LEVEL: u32 = 1;

/// Where a field is.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Place {
    /// Bytes from the beginning of the line.
    pub(super) at: u32,
    /// Bytes.
    pub(super) width: u32,
}

// SAFETY: two integers without padding.
unsafe impl aya::Pod for Place {}

/// A description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout([Place; FIELDS]);

macro_rules! of_line {
    ($outer:ident . $inner:ident : $type:ty) => {
        place(offset_of!(FlowLine, $outer) + offset_of!($type, $inner), {
            const fn width<T>(_: fn($type) -> T) -> usize {
                size_of::<T>()
            }
            width(|all: $type| all.$inner)
        })
    };
    ($field:ident) => {
        place(offset_of!(FlowLine, $field), {
            const fn width<T>(_: fn(FlowLine) -> T) -> usize {
                size_of::<T>()
            }
            width(|line: FlowLine| line.$field)
        })
    };
}

#[expect(clippy::cast_possible_truncation, reason = "offsets in a line")]
const fn place(at: usize, width: usize) -> Place {
    Place { at: at as u32, width: width as u32 }
}

impl Layout {
    /// This version's.
    pub(super) const OWN: Self = Self([
        Place { at: MAGIC, width: BY_LEVEL },
        Place { at: LINE_BITS, width: 4 },
        place(size_of::<FlowLine>(), size_of::<SessionLines>()),
        of_line!(key.source: FlowKey),
        of_line!(key.destination: FlowKey),
        of_line!(key.source_port: FlowKey),
        of_line!(key.destination_port: FlowKey),
        of_line!(key.protocol: FlowKey),
        of_line!(key.query: FlowKey),
        of_line!(key.realm: FlowKey),
        of_line!(value.source: FlowValue),
        of_line!(value.destination: FlowValue),
        of_line!(value.source_port: FlowValue),
        of_line!(value.destination_port: FlowValue),
        of_line!(value.action: FlowValue),
        of_line!(origin),
        of_line!(packets),
        of_line!(bytes),
        of_line!(last_seen),
        of_line!(acknowledged),
        of_line!(seen),
    ]);

    /// Writes this version's down, if that is not done yet.
    pub(super) fn describe(pins: &Path) -> Result<(), LoadError> {
        let pin = pins.join(PIN);
        if pin.exists() {
            return Ok(());
        }
        let failed = |source| LoadError::Map { name: PIN, source };
        let width = u32::try_from(size_of::<Place>()).unwrap_or(0);
        let map = aya_obj::Map::new_from_params(MapType::Array as u32, 4, width, ENTRIES, 0);
        let map = MapData::create(map, PIN, None).map_err(failed)?;
        let mut array: Array<MapData, Place> = Map::Array(map).try_into().map_err(failed)?;
        for (number, place) in (0..).zip(Self::OWN.0) {
            array.set(number, &place, 0).map_err(failed)?;
        }
        // Only what is whole is pinned.
        array.pin(&pin).map_err(|source| LoadError::Pin { name: PIN, source })
    }

    /// The description beside a table. `None` if there is none, or none that this version can read a table by.
    pub(super) fn of(pins: &Path) -> Option<Self> {
        let map = Map::Array(MapData::from_pin(pins.join(PIN)).ok()?);
        let array: Array<MapData, Place> = map.try_into().ok()?;
        let places: Result<Vec<Place>, MapError> =
            (0..).take(FIELDS).map(|number: u32| array.get(&number, 0)).collect();
        let layout = Self(places.ok()?.try_into().ok()?);
        layout.can_be_read().then_some(layout)
    }

    fn can_be_read(&self) -> bool {
        let Place { at: magic, width: kind } = self.place(Field::Format);
        let Place { at: bits, width: entry } = self.place(Field::Entry);
        let Place { at: direction, width: session } = self.place(Field::Session);
        let fields = &self.0[Field::Source as usize..];
        magic == MAGIC
            && kind == BY_LEVEL
            && matches!(entry, 4 | 8)
            && bits < entry * 8
            && session % 8 == 0
            && direction.checked_mul(2).is_some_and(|both| both <= session)
            && fields.iter().all(|&Place { at, width }| {
                matches!(width, 1 | 2 | 4 | 8) && at.checked_add(width).is_some_and(|end| end <= direction)
            })
    }

    pub(super) const fn place(&self, field: Field) -> Place {
        self.0[field as usize]
    }

    /// A field of a line.
    pub(super) fn read(&self, line: &[u8], field: Field) -> u64 {
        let Place { at, width } = self.place(field);
        number(line.get(at as usize..).and_then(|rest| rest.get(..width as usize)).unwrap_or_default())
    }
}

/// A number of this machine's byte order.
pub(super) fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    if cfg!(target_endian = "little") {
        whole[..bytes.len()].copy_from_slice(bytes);
    } else {
        whole[8 - bytes.len()..].copy_from_slice(bytes);
    }
    u64::from_ne_bytes(whole)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever changes this changes what is pinned: [`nat_common::abi::VERSION`] has to grow with it.
    #[test]
    fn the_layout_of_version_10() {
        let places = Layout::OWN.0.map(|Place { at, width }| (at, width));
        let table = [(MAGIC, 1), (26, 4), (64, 128)];
        let key = [(0, 4), (4, 4), (8, 2), (10, 2), (12, 1), (13, 1), (14, 2)];
        let value = [(16, 4), (20, 4), (24, 2), (26, 2), (34, 1)];
        let line = [(36, 2), (40, 8), (48, 8), (56, 4), (60, 4), (38, 1)];
        assert_eq!(places.to_vec(), [&table[..], &key, &value, &line].concat());
        assert_eq!(nat_common::abi::VERSION, 10);
        assert!(Layout::OWN.can_be_read());
    }

    #[test]
    fn what_cannot_be_read_is_told_from_what_can() {
        let spoilt = |field: Field, place| {
            let mut layout = Layout::OWN;
            layout.0[field as usize] = place;
            layout.can_be_read()
        };
        assert!(spoilt(Field::Packets, Place { at: 40, width: 4 }));
        assert!(!spoilt(Field::Packets, Place { at: 60, width: 8 }), "beyond the line");
        assert!(!spoilt(Field::Packets, Place { at: u32::MAX, width: 8 }));
        assert!(!spoilt(Field::Packets, Place::default()), "not there");
        assert!(!spoilt(Field::Format, Place { at: MAGIC, width: 2 }), "another index");
        assert!(!spoilt(Field::Entry, Place { at: 32, width: 4 }));
    }
}
