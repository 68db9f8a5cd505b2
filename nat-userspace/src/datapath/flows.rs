//! The flow table: sessions' lines and their entries in the index, written as memory while the program reads.

use crate::hash::HashSet;
use std::io;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use aya::maps::{MapData, MapError};
use nat_common::activity::Activity;
use nat_common::report::Report;
use nat_common::table::{self, FlowLine, PLACES, SEGMENT, SESSIONS, Secret, SessionLines};
use nat_common::{Direction, FlowKey, FlowValue};

use super::Mapped;
use super::grace::{Answer, Grace, Maps, Part};
use super::index::Index;
use super::object::LoadError;

/// How quickly a segment is used up in a flood.
const MOMENT: Duration = Duration::from_millis(500);

/// Segments of lines that are asked for together in a flood: each has its maker wait for a grace period, which is as
/// long as a flood takes to fill one or two.
const AHEAD: u32 = 3;

/// How long no more segments are asked for after one could not be made.
const SHORTAGE: Duration = Duration::from_secs(1);

/// The kernel's flow table.
pub struct FlowTable {
    index: Index,
    segments: Vec<Mapped<SessionLines>>,
    grace: Grace,
    /// Segments asked for, those that are there included, of index and lines.
    asked: [u32; 2],
    /// Segments that have come before others of smaller numbers.
    early: Vec<(Part, u32, MapData)>,
    /// Whether a segment could not be made, while others are still being made.
    missed: [bool; 2],
    /// Segments that are being made.
    pending: [u32; 2],
    /// The first segment of the index, and whether another is being let go for it.
    first: MapData,
    lets_go: bool,
    /// Segments of lines there may be.
    most: u32,
    /// How many there were when more were asked for last, and when that was.
    grown: (u32, Instant),
    /// There was no memory for a segment: before then none is asked for.
    again: Option<Instant>,
    /// Sessions that found no place since the last [`FlowTable::flush`].
    failed: Vec<u32>,
    released: Vec<u32>,
}

/// A session as the table of an earlier daemon has it.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Its slot.
    pub session: u32,
    /// Key and verdict of each direction.
    pub entries: [(FlowKey, FlowValue); 2],
    /// What opened it.
    pub origin: u32,
}

impl FlowTable {
    /// The table in these maps, for at most `sessions` sessions. The threads that wait have handles of their own.
    pub(super) fn new(
        maps: &mut Maps,
        for_grace: Vec<Maps>,
        level: Mapped<u64>,
        sessions: u32,
        secret: Secret,
    ) -> Result<Self, LoadError> {
        let (places, first_of_index) = there(maps, Part::Index, PLACES)?;
        let (segments, first) = there(maps, Part::Lines, SEGMENT)?;
        let again = handle(&first_of_index).map_err(|source| LoadError::Map { name: "INDEX", source })?;
        let grace = Grace::new(for_grace, first, again)
            .map_err(|source| LoadError::Memory { name: "LINES", source })?;
        Ok(Self {
            asked: [number(places.len()), number(segments.len())],
            early: Vec::new(),
            missed: [false; 2],
            pending: [0; 2],
            index: Index::new(places, level, secret),
            first: first_of_index,
            lets_go: false,
            most: capacity(sessions).div_ceil(SEGMENT) + 1,
            grown: (0, Instant::now()),
            segments,
            grace,
            again: None,
            failed: Vec::new(),
            released: Vec::new(),
        })
    }

    /// Writes a session's lines and enters them, the reply first, so that an answer finds its line before anything
    /// can ask for it. What its packets did stays as it is. A host that reaches itself has one key for both.
    pub fn open(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) {
        self.make_ready(session);
        self.tend_index();
        let lines = Direction::BOTH.map(|direction| table::line_of(session, direction));
        let [(original, _), (reply, _)] = entries;
        let written = self.write(session, entries, origin);
        let segments = &self.segments;
        let key_of = |line| key_of(segments, line);
        let alike = original == reply;
        if !written || !(alike || self.index.insert(reply, lines[1], key_of)) {
            self.failed.push(session);
        } else if !self.index.insert(original, lines[0], key_of) {
            self.index.remove(reply, lines[1], key_of);
            self.failed.push(session);
        }
    }

    /// Writes the verdicts of a session anew; its keys are what they were.
    pub fn replace(&mut self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) {
        self.write(session, entries, origin);
    }

    /// Takes a session's lines out of the index. Its slot is [released](FlowTable::released) once nothing reads them.
    pub fn close(&mut self, session: u32, keys: &[FlowKey; 2]) {
        for (direction, key) in Direction::BOTH.into_iter().zip(keys) {
            self.index.remove(key, table::line_of(session, direction), |line| key_of(&self.segments, line));
        }
        self.grace.close(session);
    }

    /// A session that the program has written: as it is, if it can be read.
    pub fn session(&self, session: u32) -> Option<Found> {
        let lines = self.lines(session)?;
        Some(Found {
            session,
            entries: lines.directions.map(|line| (line.key, line.value)),
            origin: lines.origin(),
        })
    }

    /// Sees to it that a session's lines are there, for the program to write. `false` if they are not there yet: they have
    /// been asked for.
    pub fn prepare(&mut self, session: u32) -> bool {
        self.ask_for(session);
        self.line(session, Direction::Original).is_some()
    }

    /// Counts the entries of a session that the program has opened, and enters what it found no place for. `false` if
    /// there is none, or one of its keys is another session's: then it is to be closed.
    pub fn adopt(&mut self, report: &Report, found: &Found) -> bool {
        self.tend_index();
        let segments = &self.segments;
        let adopted = Direction::BOTH.map(|direction| {
            let (key, _) = &found.entries[direction as usize];
            let entered = (report.entered[direction as usize], report.in_force);
            let line = table::line_of(found.session, direction);
            self.index.adopt(key, line, entered, |line| key_of(segments, line))
        });
        adopted == [true; 2]
    }

    /// The session whose line a key has, and the direction of its packets.
    pub fn find(&self, key: &FlowKey) -> Option<(u32, Direction)> {
        let line = self.index.search(key, |line| key_of(&self.segments, line))?;
        let direction = if line & 1 == 0 { Direction::Original } else { Direction::Reply };
        Some((table::session_of(line)?, direction))
    }

    /// Asks memory for the place where the search for a key begins.
    pub fn expect(&self, key: &FlowKey) {
        self.index.expect(key);
    }

    /// Waits until the programs that run now have ended.
    pub fn wait_for_programs(&mut self) {
        self.grace.wait();
    }

    /// Sessions that found no place since the last time: their packets must not be sent.
    pub fn flush(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.failed)
    }

    /// Slots of closed sessions that no running program refers to any more.
    pub fn released(&mut self) -> Vec<u32> {
        self.listen();
        std::mem::take(&mut self.released)
    }

    /// What the packets of a session did.
    pub fn activity(&self, session: u32) -> Activity {
        let line = |direction| {
            // SAFETY: a live line; volatile, because the program writes it too.
            self.line(session, direction).map(|line| unsafe { line.read_volatile() }.activity())
        };
        Activity { directions: Direction::BOTH.map(|direction| line(direction).unwrap_or_default()) }
    }

    /// Overwrites that.
    pub fn set_activity(&mut self, session: u32, activity: &Activity) {
        self.make_ready(session);
        for (direction, activity) in Direction::BOTH.into_iter().zip(&activity.directions) {
            if let Some(line) = self.line(session, direction) {
                // SAFETY: a live line. The program may be adding to its counters, which then miss a packet.
                unsafe { (*line).set_activity(activity) };
            }
        }
    }

    /// Every whole session, as a daemon that takes the table over finds it, and every next hop that a line names, be it
    /// of half a session.
    pub fn sessions(&self) -> (Vec<Found>, HashSet<u16>) {
        let mut hops = HashSet::default();
        let whole = |line| {
            let session = table::session_of(line)?;
            let lines = self.lines(session)?;
            let [original, reply] = Direction::BOTH.map(|direction| table::line_of(session, direction));
            let entries = lines.directions.map(|line| (line.key, line.value));
            hops.insert(entries[(line & 1) as usize].1.next_hop);
            let [(first, _), (second, _)] = &entries;
            let is_whole = line == original
                && self.index.has(first, original)
                && (first == second || self.index.has(second, reply));
            is_whole.then(|| Found { session, entries, origin: lines.origin() })
        };
        let found = self.index.lines().filter_map(whole).collect();
        (found, hops)
    }

    /// Takes everything out but these sessions, and waits until no program reads what was taken out.
    pub fn retain(&mut self, sessions: &HashSet<u32>) {
        let keep = |line| table::session_of(line).is_some_and(|session| sessions.contains(&session));
        self.index.retain(keep, |line| key_of(&self.segments, line));
        self.wait_for_programs();
    }

    fn write(&self, session: u32, entries: &[(FlowKey, FlowValue); 2], origin: u32) -> bool {
        let halves = [origin >> 16, origin & 0xffff].map(|half| u16::try_from(half).unwrap_or(0));
        Direction::BOTH.into_iter().zip(entries).zip(halves).all(|((direction, (key, value)), origin)| {
            let Some(line) = self.line(session, direction) else { return false };
            // SAFETY: a live line. Before it is in the index nobody reads it; after that its key is written over
            // with the same bytes, and verdicts in force differ by their next hop, one aligned word.
            unsafe {
                (&raw mut (*line).key).write_volatile(*key);
                (&raw mut (*line).value).write_volatile(*value);
                (&raw mut (*line).origin).write_volatile(origin);
            }
            true
        })
    }

    fn lines(&self, session: u32) -> Option<SessionLines> {
        let (segment, at) = table::segment_of(table::line_of(session, Direction::Original));
        self.segments.get(segment as usize)?.read(at)
    }

    fn line(&self, session: u32, direction: Direction) -> Option<*mut FlowLine> {
        let (segment, at) = table::segment_of(table::line_of(session, direction));
        let lines = self.segments.get(segment as usize)?.at(at)?;
        // SAFETY: a session has two lines.
        Some(unsafe { lines.cast::<FlowLine>().add(direction as usize) }.as_ptr())
    }

    /// Sees to it that a session's lines are there, if they can be had.
    fn make_ready(&mut self, session: u32) {
        let segment = self.ask_for(session);
        while segment >= number(self.segments.len()) && segment < self.asked[Part::Lines as usize] {
            self.grace.wait_for_answer();
            self.listen();
        }
    }

    /// Asks for lines beyond a session's before they are needed: one whom the kernel makes wait is better the other
    /// thread than this one. Its segment.
    fn ask_for(&mut self, session: u32) -> u32 {
        let (segment, at) = table::segment_of(table::line_of(session, Direction::Original));
        let there = number(self.segments.len());
        if (segment < there && (segment + 1 < there || at < SEGMENT / 4)) || self.is_short() {
            return segment;
        }
        let wanted = there + if self.is_flooded(there) { AHEAD } else { (there / 4).max(1) };
        self.ask(Part::Lines, wanted.min(self.most));
        self.listen();
        segment
    }

    /// Lets the index have the segments that it needs as soon as they are there.
    fn tend_index(&mut self) {
        if self.index.wants() > number(self.index.segments()) {
            self.listen();
        }
    }

    /// Whether the last segment before these was used up in a moment: then the next ones will be, too.
    fn is_flooded(&mut self, segments: u32) -> bool {
        let (known, since) = self.grown;
        if known == segments {
            return false;
        }
        self.grown = (segments, Instant::now());
        since.elapsed() < MOMENT
    }

    /// Whether there was no memory for a segment just now.
    fn is_short(&mut self) -> bool {
        self.again = self.again.filter(|again| Instant::now() < *again);
        self.again.is_some()
    }

    fn ask(&mut self, part: Part, wanted: u32) {
        let asked = &mut self.asked[part as usize];
        while *asked < wanted {
            self.grace.make(part, *asked);
            self.pending[part as usize] += 1;
            *asked += 1;
        }
    }

    /// Takes what the other thread has to say.
    fn listen(&mut self) {
        if !self.is_short() {
            self.ask(Part::Index, self.index.wants());
        }
        if let Some(outgrown) = self.index.outgrown().filter(|_| !self.lets_go) {
            self.lets_go = true;
            self.grace.let_go(outgrown);
        }
        while let Some(answer) = self.grace.answer() {
            match answer {
                Answer::Passed(sessions) => self.released.extend(sessions),
                Answer::LetGo(segment, result) => {
                    self.lets_go = false;
                    let memory = result.map_err(io::Error::other);
                    let memory = memory.and_then(|()| Mapped::new(self.first.fd(), PLACES));
                    if let Err(error) = &memory {
                        tracing::debug!(%error, segment, "the memory of a level of the index stays");
                    }
                    self.index.let_go(memory.ok());
                }
                Answer::Made(part, at, made) => {
                    self.pending[part as usize] -= 1;
                    let added = made.map_err(io::Error::other).and_then(|map| {
                        self.early.push((part, at, map));
                        self.add_in_order(part)
                    });
                    if let Err(error) = added {
                        tracing::warn!(%error, ?part, segment = at, "no memory for more sessions");
                        self.missed[part as usize] = true;
                        self.again = Some(Instant::now() + SHORTAGE);
                    }
                    self.give_up_missed(part);
                }
            }
        }
    }

    /// Takes those segments that are the next in turn.
    fn add_in_order(&mut self, part: Part) -> io::Result<()> {
        loop {
            let next = self.there(part);
            let Some(found) = self.early.iter().position(|(own, at, _)| (*own, *at) == (part, next)) else {
                return Ok(());
            };
            let (_, _, map) = self.early.swap_remove(found);
            match part {
                Part::Index => self.index.add(Mapped::new(map.fd(), PLACES)?),
                Part::Lines => self.segments.push(Mapped::new(map.fd(), SEGMENT)?),
            }
        }
    }

    /// After one that could not be made the next would be out of place: once none of them is being made any more, who
    /// waits for them waits no longer, and they are asked for anew. A shortage may pass.
    fn give_up_missed(&mut self, part: Part) {
        if self.pending[part as usize] == 0 && std::mem::take(&mut self.missed[part as usize]) {
            self.asked[part as usize] = self.there(part);
            self.early.retain(|(own, _, _)| *own != part);
        }
    }

    /// Segments there are.
    fn there(&self, part: Part) -> u32 {
        number(match part {
            Part::Index => self.index.segments(),
            Part::Lines => self.segments.len(),
        })
    }
}

/// Another handle of a map.
fn handle(map: &MapData) -> Result<MapData, MapError> {
    let handle = map
        .fd()
        .as_fd()
        .try_clone_to_owned()
        .map_err(|io_error| MapError::SyscallError(aya::sys::SyscallError { call: "fcntl", io_error }))?;
    MapData::from_fd(handle)
}

/// The segments of a map that are there, or the first one; and the first one's map.
fn there<T: Copy>(maps: &mut Maps, part: Part, entries: u32) -> Result<(Vec<Mapped<T>>, MapData), LoadError> {
    let name = if part == Part::Index { "INDEX" } else { "LINES" };
    let memory = |source| LoadError::Memory { name, source };
    let failed = |source| LoadError::Map { name, source };
    let (mut segments, mut first) = (Vec::new(), None);
    loop {
        let map = if part == Part::Index { &maps.index } else { &maps.lines };
        let segment = match map.get(&number(segments.len()), 0) {
            Ok(segment) => segment,
            // Only what is not there is made: a segment that cannot be opened may have sessions.
            Err(MapError::KeyNotFound | MapError::OutOfBounds { .. }) => match first {
                Some(first) => return Ok((segments, first)),
                None => maps.make(part, 0).map_err(failed)?,
            },
            Err(source) => return Err(failed(source)),
        };
        segments.push(Mapped::new(segment.fd(), entries).map_err(memory)?);
        first.get_or_insert(segment);
    }
}

/// The key of a line.
fn key_of(segments: &[Mapped<SessionLines>], line: u32) -> FlowKey {
    let (segment, at) = table::segment_of(line);
    let Some(lines) = segments.get(segment as usize).and_then(|segment| segment.at(at)) else {
        return FlowKey::default();
    };
    // SAFETY: a session has two lines, both live; volatile, because the program writes them, too.
    unsafe { (&raw const (*lines.as_ptr()).directions[(line & 1) as usize].key).read_volatile() }
}

/// Slots that are set aside for so many sessions: more, because those of closed ones rest a while.
pub fn capacity(sessions: u32) -> u32 {
    sessions.saturating_add(sessions / 4).saturating_add(1024).min(SESSIONS)
}

fn number(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}
