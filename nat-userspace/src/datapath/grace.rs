//! What has to wait until programs that run now have ended: lines are given to other sessions only then, because
//! one of those programs may still be reading them. And segments, whose making makes the caller wait as well.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use aya::maps::{ArrayOfMaps, MapData, MapError, MapType};
use nat_common::table::{BUCKET, Bucket, PLACES, SEGMENT, SessionLines};

use super::object::MMAPABLE;
use crate::privileges;

/// Threads that make segments. All that a flood asks for at a time is made within two grace periods by so many.
pub(super) const MAKERS: usize = 8;

/// A map of segments.
pub(super) type Segments = ArrayOfMaps<MapData, MapData>;

/// What a segment is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// The index.
    Index,
    /// The sessions' lines.
    Lines,
}

/// Both maps of segments.
pub(super) struct Maps {
    pub(super) index: Segments,
    pub(super) lines: Segments,
}

/// What a thread is asked.
enum Request {
    /// To say when no program can hold the lines of these sessions any more.
    Pass(Vec<u32>),
    /// To make the segment with this number.
    Make(Part, u32),
    /// To let go of this segment of the index, and put the first one in its place.
    LetGo(u32),
}

/// What the threads answer.
pub(super) enum Answer {
    /// These sessions' lines are nobody's.
    Passed(Vec<u32>),
    /// A segment is there, or could not be made.
    Made(Part, u32, Result<MapData, MapError>),
    /// A segment of the index is no program's any more, or could not be let go.
    LetGo(u32, Result<(), MapError>),
}

/// The threads that wait: several, because each segment has its maker wait, and many can wait for the same grace period.
pub(super) struct Grace {
    requests: Vec<Sender<Request>>,
    answers: Receiver<Answer>,
    /// Sessions that the thread has not been told of, while it waits for others.
    closed: Vec<u32>,
    waiting: bool,
    /// Answers that came while one was waited for.
    early: VecDeque<Answer>,
}

impl Grace {
    /// A thread for each of these handles of the maps of segments. One of them has that of the first segment of lines as
    /// well, another one that of the index: asking for them by number would want a capability that is dropped soon.
    pub(super) fn new(handles: Vec<Maps>, lines: MapData, index: MapData) -> std::io::Result<Self> {
        let (outbox, answers) = channel();
        let mut requests = Vec::new();
        let (mut lines, mut index) = (Some(lines), Some(index));
        let last = handles.len().saturating_sub(1);
        for (number, mut maps) in handles.into_iter().enumerate() {
            let (requested, inbox) = channel();
            requests.push(requested);
            let outbox = outbox.clone();
            let (first, index) = (lines.take(), if number == last { index.take() } else { None });
            thread::Builder::new().name("grace".to_owned()).spawn(move || {
                privileges::drop_others();
                for request in inbox {
                    let answer = match request {
                        Request::Pass(sessions) => {
                            if let Some(first) = &first {
                                wait_for_programs(&mut maps.lines, first);
                            }
                            Answer::Passed(sessions)
                        }
                        Request::Make(part, number) => Answer::Made(part, number, maps.make(part, number)),
                        Request::LetGo(number) => {
                            let first = index.as_ref().ok_or(MapError::KeyNotFound);
                            Answer::LetGo(number, first.and_then(|first| maps.index.set(number, first, 0)))
                        }
                    };
                    if outbox.send(answer).is_err() {
                        return;
                    }
                }
            })?;
        }
        Ok(Self { requests, answers, closed: Vec::new(), waiting: false, early: VecDeque::new() })
    }

    /// A session's lines are out of the index.
    pub(super) fn close(&mut self, session: u32) {
        self.closed.push(session);
    }

    /// Asks for a segment.
    pub(super) fn make(&self, part: Part, number: u32) {
        // The thread ends with this end of the channel, not before.
        let maker = &self.requests[(number as usize + part as usize) % self.requests.len()];
        let _ = maker.send(Request::Make(part, number));
    }

    /// Asks to let go of a segment of the index.
    pub(super) fn let_go(&self, number: u32) {
        if let Some(last) = self.requests.last() {
            let _ = last.send(Request::LetGo(number));
        }
    }

    /// Waits for programs that run now.
    pub(super) fn wait(&mut self) {
        if self.pass(Vec::new()) {
            // Nothing else was asked yet, or it was before.
            let passed = |answer: &Answer| matches!(answer, Answer::Passed(sessions) if sessions.is_empty());
            self.early.extend(self.answers.iter().take_while(|answer| !passed(answer)));
        }
    }

    fn pass(&self, sessions: Vec<u32>) -> bool {
        self.requests[0].send(Request::Pass(sessions)).is_ok()
    }

    /// Waits until there is an [answer](Grace::answer), or a moment where none is to come.
    pub(super) fn wait_for_answer(&mut self) {
        if self.early.is_empty() {
            self.early.extend(self.answers.recv_timeout(std::time::Duration::from_millis(20)));
        }
    }

    /// The next answer, if there is one.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        if !self.waiting && !self.closed.is_empty() {
            let closed = std::mem::take(&mut self.closed);
            self.waiting = self.pass(closed);
        }
        let answer = self.early.pop_front().or_else(|| self.answers.try_recv().ok())?;
        if matches!(answer, Answer::Passed(_)) {
            self.waiting = false;
        }
        Some(answer)
    }
}

impl Maps {
    /// Makes a segment and hands it to the program.
    pub(super) fn make(&mut self, part: Part, number: u32) -> Result<MapData, MapError> {
        let (map, size, entries) = match part {
            Part::Index => (&mut self.index, size_of::<Bucket>(), PLACES / BUCKET),
            Part::Lines => (&mut self.lines, size_of::<SessionLines>(), SEGMENT),
        };
        let [key, value] = [size_of::<u32>(), size].map(|size| u32::try_from(size).unwrap_or(0));
        let array = aya_obj::Map::new_from_params(MapType::Array as u32, key, value, entries, MMAPABLE);
        let segment = MapData::create(array, "segment", None)?;
        map.set(number, &segment, 0)?;
        Ok(segment)
    }
}

/// Returns when every program that runs now has ended: the kernel waits for them before an update of a map of maps
/// returns (commit 1ae80cf31938), also where it changes nothing.
fn wait_for_programs(segments: &mut Segments, first: &MapData) {
    if let Err(error) = segments.set(0, first, 0) {
        tracing::warn!(%error, "waiting for running programs failed: a second has to do");
        thread::sleep(std::time::Duration::from_secs(1));
    }
}
