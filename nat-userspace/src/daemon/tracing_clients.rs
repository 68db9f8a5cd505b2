//! Packets told of to those who ask, by the programs and by the daemon itself. Nobody is waited for: what a client does
//! not take in time is counted and lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use nat_common::Reason;
use nat_common::trace::{Header, QUERIES, Query, ROOM, Spent, Tracing, Tuple};
use nat_common::vlan::Tags;

use super::control::Post;
use super::worker::Worker;
use crate::api::{ApiError, Reply, Row};
use crate::datapath::{Beside, Traced};
use crate::gateway::{Emission, Explained, Outcome, Released};
use crate::trace::{By, Filter, Frames, Missed, Seen, TraceLine, TraceRow, Verdict, monotonic, tuple};

/// Packets that wait for one client.
const WAITING: usize = 4096;
/// Length of the two MACs, which tags come after.
const MACS: usize = 12;
/// Packets told of by the programs that are looked at in one round.
const ROUND: usize = 512;
/// How often it is looked whether a client is still there, and what it has missed.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Packets sent to a client before its connection is looked at.
const BATCH: usize = 256;

/// One who asks.
struct Tracer {
    query: Query,
    spent: Spent,
    packets: SyncSender<Arc<Seen>>,
    lost: Arc<AtomicU64>,
    snap: u32,
}

/// All who ask, and the programs that tell them.
#[derive(Default)]
pub struct Tracers {
    programs: Option<(Traced, Beside)>,
    tracers: [Option<Tracer>; QUERIES],
}

/// A frame as it came to the daemon, noted before it is judged.
pub struct Noted {
    before: Vec<u8>,
    length: usize,
    found: Explained,
}

impl Tracers {
    /// Whether anybody asks.
    pub fn are_there(&self) -> bool {
        self.programs.is_some()
    }

    /// The programs that tell.
    pub fn programs(&self) -> Option<&Traced> {
        self.programs.as_ref().map(|(traced, _)| traced)
    }

    /// How much of a frame is kept.
    fn snap(&self) -> u32 {
        self.tracers.iter().flatten().map(|tracer| tracer.snap).max().unwrap_or(0)
    }

    /// Has the programs ask what the clients ask.
    fn ask(&mut self) -> Result<(), ApiError> {
        let mut tracing = Tracing { snap: self.snap(), ..Tracing::default() };
        for (query, tracer) in tracing.queries.iter_mut().zip(&self.tracers) {
            *query = tracer.as_ref().map(|tracer| tracer.query).unwrap_or_default();
        }
        match &mut self.programs {
            Some((traced, _)) => traced.ask(&tracing).map_err(|error| failed(&error)),
            None => Ok(()),
        }
    }

    /// Hands a packet to those who ask for it by the daemon's own judgement.
    fn tell(&mut self, seen: Seen) {
        let ends = [tuple(&seen.before), tuple(&seen.after)];
        let wanted = |tracer: &mut Tracer| {
            let meant = ends.iter().any(|end: &Tuple| tracer.query.matches(end));
            meant && tracer.spent.take(seen.time, tracer.query.per_second)
        };
        let mut bits = 0;
        for (number, tracer) in self.tracers.iter_mut().enumerate() {
            if tracer.as_mut().is_some_and(wanted) {
                bits |= 1 << number;
            }
        }
        self.hand_over(bits, seen);
    }

    /// Hands a packet to those whose bits are set.
    fn hand_over(&mut self, bits: u32, seen: Seen) {
        let seen = Arc::new(seen);
        for (number, tracer) in self.tracers.iter().enumerate() {
            if let Some(tracer) = tracer
                && bits & (1 << number) != 0
                && tracer.packets.try_send(Arc::clone(&seen)).is_err()
            {
                tracer.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// What one who asks was not told of.
    fn missed(&self, number: usize) -> Missed {
        let Some(Some(tracer)) = self.tracers.get(number) else { return Missed::default() };
        let [suppressed, lost] = match &self.programs {
            Some((traced, _)) => traced.missed(u32::try_from(number).unwrap_or(0)),
            None => [0; 2],
        };
        Missed {
            suppressed: suppressed + tracer.spent.suppressed,
            lost: lost + tracer.lost.load(Ordering::Relaxed),
        }
    }
}

fn failed(error: &dyn std::error::Error) -> ApiError {
    let hint = "the kernel has to know bpf_xdp_load_bytes (5.18); see the log";
    ApiError::new(format!("trace: {error}"), hint)
}

impl Worker {
    /// What the tracing programs are to be loaded beside, if they are not there yet.
    fn beside(&self) -> Option<Beside> {
        (!self.tracers.are_there()).then(|| self.kernel.datapath.beside())
    }

    /// One more who asks: its number, and what it will be told.
    fn add_tracer(
        &mut self,
        loaded: Option<(Traced, Beside)>,
        query: Query,
        snap: u32,
        lost: Arc<AtomicU64>,
    ) -> Result<(usize, Receiver<Arc<Seen>>), ApiError> {
        let Some(number) = self.tracers.tracers.iter().position(Option::is_none) else {
            return Err(ApiError::new(
                format!("trace: {QUERIES} clients trace already"),
                "end one of them: `natgw trace` and `natgw capture` run until they are interrupted",
            ));
        };
        let is_first = loaded.is_some();
        if is_first {
            self.tracers.programs = loaded;
        }
        let (packets, receiver) = sync_channel(WAITING);
        self.tracers.tracers[number] = Some(Tracer { query, spent: Spent::default(), packets, lost, snap });
        if let Some((traced, _)) = &mut self.tracers.programs {
            traced.forget(u32::try_from(number).unwrap_or(0));
        }
        self.tracers.ask()?;
        if is_first {
            self.attach_traced();
        }
        Ok((number, receiver))
    }

    /// Puts the tracing programs in place, also on an interface that has just appeared.
    pub(super) fn attach_traced(&mut self) {
        if let Some((traced, beside)) = &mut self.tracers.programs
            && let Err(error) = traced.attach(beside)
        {
            tracing::warn!(%error, "the tracing programs could not be attached");
        }
    }

    /// One less. After the last the plain programs are back.
    fn remove_tracer(&mut self, number: usize) {
        self.tracers.tracers[number] = None;
        if self.tracers.tracers.iter().any(Option::is_some) {
            let _ = self.tracers.ask();
            return;
        }
        self.kernel.datapath.replace_traced();
        self.tracers.programs = None;
    }

    /// Notes a frame that is about to be judged, if anybody asks.
    pub(super) fn note(&mut self, ingress: u32, frame: &[u8]) -> Option<Noted> {
        if !self.tracers.are_there() {
            return None;
        }
        // Its endpoints are looked at whatever is kept.
        let kept = frame.len().min((self.tracers.snap() as usize).clamp(128, ROOM));
        let mut before = frame[..kept].to_vec();
        let found = self.gateway.explain(&mut self.kernel, ingress, &mut before, frame.len());
        Some(Noted { before, length: frame.len(), found })
    }

    /// Tells of a frame that the daemon has judged.
    pub(super) fn tell(&mut self, noted: Noted, ingress: u32, outcome: Outcome, frame: &[u8]) {
        let (verdict, out) = match outcome {
            Outcome::Send { ifindex, .. } => (Verdict::Sent, Some(ifindex)),
            Outcome::Cut => (Verdict::Cut, None),
            Outcome::ToStack => (Verdict::Counted(Reason::Passed), None),
            Outcome::Held => (Verdict::Held, None),
            Outcome::Drop(reason) => (Verdict::Counted(reason), None),
        };
        let sent = out.map(|out| self.as_sent(out, frame)).unwrap_or_default();
        let after = &sent[..sent.len().min(self.tracers.snap() as usize)];
        let seen = Seen {
            time: monotonic(),
            interface: self.interface_name(ingress),
            out: out.map(|out| self.interface_name(out)),
            by: By::Daemon,
            lengths: [noted.length, sent.len()].map(short),
            after: after.to_vec(),
            before: noted.before,
            found: noted.found,
            verdict,
        };
        self.tracers.tell(seen);
    }

    /// Tells what became of a frame that waited.
    pub(super) fn tell_of_released(&mut self, released: &Released) {
        if let Some(noted) = self.note(released.ingress, &released.came) {
            self.tell(noted, released.ingress, released.outcome, &released.frame);
        }
    }

    /// Tells of a frame that was made here.
    pub(super) fn tell_of_emission(&mut self, emission: &Emission) {
        if !self.tracers.are_there() {
            return;
        }
        let frame = self.as_sent(emission.ifindex, &emission.frame);
        let kept = frame.len().min(self.tracers.snap() as usize);
        let seen = Seen {
            time: monotonic(),
            interface: "".into(),
            out: Some(self.interface_name(emission.ifindex)),
            by: By::Daemon,
            before: Vec::new(),
            after: frame[..kept].to_vec(),
            lengths: [0, short(frame.len())],
            found: Explained::of("natgw"),
            verdict: Verdict::Made,
        };
        self.tracers.tell(seen);
    }

    /// Hands on what the programs tell, a bounded number of packets.
    pub(super) fn read_traces(&mut self) {
        let Some((mut traced, beside)) = self.tracers.programs.take() else { return };
        for _ in 0..ROUND {
            let mut told = None;
            let more = traced.next(|header, before, after| {
                told = Some((*header, before.to_vec(), after.to_vec()));
            });
            if !more {
                break;
            }
            if let Some((header, before, after)) = told {
                self.hand_on(header, before, after);
            }
        }
        self.tracers.programs = Some((traced, beside));
    }

    fn hand_on(&mut self, header: Header, mut before: Vec<u8>, after: Vec<u8>) {
        let reason = Reason::ALL.iter().copied().find(|reason| reason.index() == header.reason);
        let Some(reason) = reason else { return };
        let ingress = header.ifindex;
        let length = header.length_before as usize;
        let found = self.gateway.explain(&mut self.kernel, ingress, &mut before, length);
        let seen = Seen {
            time: header.time,
            interface: self.interface_name(ingress),
            out: (header.out != 0).then(|| self.interface_name(header.out)),
            by: if header.hook == Header::TC { By::Tc } else { By::Xdp },
            before,
            after,
            lengths: [header.length_before, header.length_after],
            found,
            verdict: Verdict::Counted(reason),
        };
        self.tracers.hand_over(header.queries, seen);
    }

    /// A frame with the tags of its way out, as `send` will give it.
    fn as_sent(&self, out: u32, frame: &[u8]) -> Vec<u8> {
        let Some(came) = Tags::of_frame(frame) else { return frame.to_vec() };
        let (_, tags) = self.place_of(out);
        let bytes = tags.with_priority_of(came).0.to_ne_bytes();
        let macs = frame.len().min(MACS);
        let behind = (MACS + came.length()).min(frame.len());
        [&frame[..macs], &bytes[..tags.length()], &frame[behind..]].concat()
    }

    fn interface_name(&self, ifindex: u32) -> Arc<str> {
        match self.gateway.interface(ifindex) {
            Some(interface) => interface.name.as_str().into(),
            None => match self.kernel.host.link(ifindex) {
                Some(link) => link.name.as_str().into(),
                None => format!("#{ifindex}").into(),
            },
        }
    }
}

fn short(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// A client that asks; no longer when dropped.
struct Asking<'post> {
    post: &'post Post,
    number: usize,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let _turn = self.post.tracing_turn();
        let number = self.number;
        // A daemon that is ending has nobody left to tell.
        let _ = self.post.ask(move |worker| worker.remove_tracer(number));
    }
}

/// What a client asks for.
pub struct Wanted {
    /// Which packets.
    pub filter: Filter,
    /// Bytes of each frame that are sent along; none at 0.
    pub snap: u32,
    /// Packets a second; 0 for all.
    pub rate: u32,
}

impl Post {
    /// Tells a client of packets until it goes.
    pub(super) fn trace(&self, wanted: &Wanted, reply: &mut dyn Reply) -> Result<(), ApiError> {
        let query = wanted.filter.query(wanted.rate);
        // What is told of needs the headers, whatever is sent along.
        let snap = wanted.snap.clamp(128, u32::try_from(ROOM - 1).unwrap_or(u32::MAX));
        let lost = Arc::new(AtomicU64::new(0));
        let (asking, packets) = {
            let _turn = self.tracing_turn();
            let loaded = self.load_traced()?;
            let (number, packets) =
                self.ask(move |worker| worker.add_tracer(loaded, query, snap, lost))??;
            (Asking { post: self, number }, packets)
        };
        reply.row(Row::Trace(&TraceLine::Begun))?;
        let (mut missed, mut looked) = (Missed::default(), Instant::now());
        while reply.flush()? {
            let mut next = match packets.recv_timeout(LOOK_AFTER) {
                Ok(seen) => Some(seen),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => break,
            };
            for _ in 0..BATCH {
                let Some(seen) = next else { break };
                let mut row = TraceRow::new(&seen, wanted.snap > 0);
                row.frames = row.frames.map(|frames| cut(frames, wanted.snap));
                reply.row(Row::Trace(&TraceLine::Packet(Box::new(row))))?;
                next = packets.try_recv().ok();
            }
            if looked.elapsed() < LOOK_AFTER {
                continue;
            }
            looked = Instant::now();
            let number = asking.number;
            let now = self.ask(move |worker| worker.tracers.missed(number))?;
            if now != missed {
                missed = now;
                reply.row(Row::Trace(&TraceLine::Missed(missed)))?;
            }
        }
        Ok(())
    }

    /// Loads the tracing programs if nobody else has, on this thread: the worker goes on meanwhile.
    fn load_traced(&self) -> Result<Option<(Traced, Beside)>, ApiError> {
        let Some(beside) = self.ask(|worker| worker.beside())? else { return Ok(None) };
        let loaded = beside.load().map_err(|error| failed(&error))?;
        Ok(Some((loaded, beside)))
    }
}

/// Leaves of each frame what was asked for; another client may have asked for more.
fn cut(frames: Frames, snap: u32) -> Frames {
    let digits = 2 * snap as usize;
    let cut = |mut frame: String| {
        frame.truncate(digits);
        frame
    };
    Frames { before: cut(frames.before), after: cut(frames.after), lengths: frames.lengths }
}
