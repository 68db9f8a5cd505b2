//! Moving in: the sessions of a fast path with another layout, read by its [description](super::layout), become this
//! one's before its links do. What an end in between leaves is either the other's, whole, or this one's.

use std::path::PathBuf;

use aya::maps::{ArrayOfMaps, HashMap, Map, MapData, MapError};
use nat_common::activity::{Activity, DirectionActivity};
use nat_common::delegate::{Grant, GrantKey};
use nat_common::flow::{Action, Rewrite};
use nat_common::table::{self, session_of};
use nat_common::{Direction, FlowKey, FlowValue};

use super::attach::{other_layouts, pinned_links, remove_pins};
use super::flows::{FlowTable, Found};
use super::layout::{Field, Layout, number};
use super::mapped::Mapped;
use super::object::{Datapath, LoadError};
use crate::hash::HashSet;

/// Sessions between two looks at what the thread that makes segments has to say.
const PIECE: usize = 256;

/// Whoever the first packet after the move goes to is looked up anew.
const UNKNOWN_HOP: u16 = 0;

/// A fast path with another layout.
pub(super) struct Earlier {
    pins: PathBuf,
    layout: Layout,
}

/// Memory of segments of a map of maps, one after the other.
struct Segments {
    memory: Vec<Mapped<u64>>,
    /// Bytes of each.
    bytes: usize,
}

impl Earlier {
    /// The one that has these pins, if its layout is described in a way that this version can read.
    pub(super) fn of(pins: PathBuf) -> Option<Self> {
        let layout = Layout::of(&pins)?;
        Some(Self { pins, layout })
    }

    /// Its pins.
    pub(super) fn into_pins(self) -> PathBuf {
        self.pins
    }

    /// Has its program open nothing more by itself, as far as its grants are known: it would be missed.
    fn revoke(&self) -> Result<(), MapError> {
        let map = Map::HashMap(MapData::from_pin(self.pins.join("GRANTED"))?);
        let mut granted: HashMap<MapData, GrantKey, Grant> = map.try_into()?;
        let keys: Vec<GrantKey> = granted.keys().filter_map(Result::ok).collect();
        keys.iter().try_for_each(|key| granted.remove(key))
    }

    /// Copies its sessions into a table that is empty.
    pub(super) fn move_into(&self, flows: &mut FlowTable) -> Result<(), LoadError> {
        if let Err(error) = self.revoke() {
            tracing::debug!(%error, "grants of the other layout stay until its program goes");
        }
        flows.wait_for_programs();
        let sessions = self.sessions()?;
        for piece in sessions.chunks(PIECE) {
            for (Found { session, entries, origin }, activity) in piece {
                flows.open(*session, entries, *origin);
                flows.set_activity(*session, activity);
            }
            // Nothing was closed; segments that were asked for are taken.
            flows.released();
        }
        let lost = flows.flush().len();
        tracing::info!(
            from = %self.pins.display(),
            sessions = sessions.len() - lost,
            lost,
            "moved sessions from the table of another layout"
        );
        Ok(())
    }

    fn sessions(&self) -> Result<Vec<(Found, Activity)>, LoadError> {
        let lines = self.index()?;
        let width = self.layout.place(Field::Session).width as usize;
        let segments = self.segments("LINES")?;
        let read = |&line: &u32| {
            let session = session_of(line).filter(|_| line & 1 == 0)?;
            let found = self.session(session, &segments.read((line >> 1) as usize, width)?);
            // One direction alone is of a session half written, or half gone; a host that reaches itself has one key.
            let [(original, _), (reply, _)] = &found.0.entries;
            (lines.contains(&(line | 1)) || original == reply).then_some(found)
        };
        Ok(lines.iter().filter_map(read).collect())
    }

    /// The lines that are in its index.
    fn index(&self) -> Result<HashSet<u32>, LoadError> {
        const NAME: &str = "LEVEL";
        let level = MapData::from_pin(self.pins.join(NAME)).map_err(|source| map_error(NAME, source))?;
        let level = Mapped::<u64>::new(level.fd(), 1).map_err(|source| memory_error(NAME, source))?;
        let level = table::level_of(level.load(0)) as usize;
        let entry = self.layout.place(Field::Entry);
        let segments = self.segments("INDEX")?;
        let lines = (level..2 * level).filter_map(|place| {
            let entry_at = number(&segments.read(place, entry.width as usize)?);
            u32::try_from(entry_at & ((1 << entry.at) - 1)).ok().filter(|line| *line > 1)
        });
        Ok(lines.collect())
    }

    /// What one session's lines say. Where it goes next is not taken along.
    fn session(&self, session: u32, lines: &[u8]) -> (Found, Activity) {
        let both = Direction::BOTH.map(|direction| {
            let line = &lines[direction as usize * self.layout.place(Field::Session).at as usize..];
            self.line(line)
        });
        let [(original, value, first, forth), (reply, back, second, answers)] = both;
        let entries = [(original, value), (reply, back)];
        (Found { session, entries, origin: first << 16 | second }, Activity { directions: [forth, answers] })
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "a field that has become wider still holds what it held"
    )]
    fn line(&self, line: &[u8]) -> (FlowKey, FlowValue, u32, DirectionActivity) {
        let field = |field| self.layout.read(line, field);
        let key = FlowKey {
            source: field(Field::Source) as u32,
            destination: field(Field::Destination) as u32,
            source_port: field(Field::SourcePort) as u16,
            destination_port: field(Field::DestinationPort) as u16,
            protocol: field(Field::Protocol) as u8,
            query: field(Field::Query) as u8,
            realm: field(Field::Realm) as u16,
        };
        let rewrite = Rewrite {
            source: field(Field::NewSource) as u32,
            destination: field(Field::NewDestination) as u32,
            source_port: field(Field::NewSourcePort) as u16,
            destination_port: field(Field::NewDestinationPort) as u16,
        };
        let value = match field(Field::Action) as u8 {
            direct if direct == Action::Direct as u8 => {
                FlowValue::relay(Action::Direct, &rewrite, UNKNOWN_HOP)
            }
            tunnel if tunnel == Action::Tunnel as u8 => {
                FlowValue::relay(Action::Tunnel, &rewrite, UNKNOWN_HOP)
            }
            bypass if bypass == Action::Bypass as u8 => FlowValue::bypass(),
            _ => FlowValue::translate(&key, &rewrite, UNKNOWN_HOP),
        };
        let activity = DirectionActivity {
            packets: field(Field::Packets),
            bytes: field(Field::Bytes),
            last_seen: field(Field::LastSeen) as u32,
            acknowledged: field(Field::Acknowledged) as u32,
            seen: field(Field::Seen) as u8,
        };
        (key, value, field(Field::Origin) as u32, activity)
    }

    /// Every segment of a map of maps.
    fn segments(&self, name: &'static str) -> Result<Segments, LoadError> {
        let failed = |source| map_error(name, source);
        let map = Map::ArrayOfMaps(MapData::from_pin(self.pins.join(name)).map_err(failed)?);
        let map: ArrayOfMaps<MapData, MapData> = map.try_into().map_err(failed)?;
        let mut segments = Segments { memory: Vec::new(), bytes: 0 };
        for number in 0.. {
            let segment = match map.get(&number, 0) {
                Ok(segment) => segment,
                Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => break,
                Err(source) => return Err(failed(source)),
            };
            let info = segment.info().map_err(failed)?;
            let bytes = info.value_size().next_multiple_of(8) * info.max_entries();
            let memory = Mapped::new(segment.fd(), bytes / 8).map_err(|source| memory_error(name, source))?;
            segments.memory.push(memory);
            segments.bytes = bytes as usize;
        }
        Ok(segments)
    }
}

impl Segments {
    /// A copy of a value of some bytes, which lie one after the other.
    fn read(&self, index: usize, width: usize) -> Option<Vec<u8>> {
        let at = index * width;
        let memory = self.memory.get(at.checked_div(self.bytes)?)?;
        let begin = at % self.bytes;
        let words = begin / 8..(begin + width).div_ceil(8);
        let words = words.map(|word| Some(memory.load(u32::try_from(word).ok()?).to_ne_bytes()));
        let bytes: Vec<[u8; 8]> = words.collect::<Option<_>>()?;
        Some(bytes.concat().get(begin % 8..begin % 8 + width)?.to_vec())
    }
}

impl Datapath {
    /// Takes along the links of a fast path with another layout, whose sessions are here: who attaches replaces their programs.
    pub fn adopt_links(&self) -> Result<(), LoadError> {
        let Some(earlier) = &self.earlier else { return Ok(()) };
        for link in pinned_links(earlier) {
            let Some(name) = link.file_name() else { continue };
            let failed = |source| LoadError::Pins { path: link.clone(), source };
            std::fs::rename(&link, self.pins.join(name)).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the tables of a fast path with another layout: nothing runs on them any more. So for what a daemon had
    /// left that was killed while it did this.
    pub fn forget_earlier(&mut self) {
        let of_killed = self.pins.parent().map(other_layouts).unwrap_or_default().into_iter();
        let of_killed = of_killed.map(|(path, _)| path).filter(|path| pinned_links(path).is_empty());
        for folder in self.earlier.take().into_iter().chain(of_killed) {
            remove_pins(&folder);
            let _ = std::fs::remove_dir(&folder);
        }
    }
}

fn map_error(name: &'static str, source: MapError) -> LoadError {
    LoadError::Map { name, source }
}

fn memory_error(name: &'static str, source: std::io::Error) -> LoadError {
    LoadError::Memory { name, source }
}
