//! Requests from the control socket: carried out on the worker's thread, between two rounds of
//! frames, in pieces small enough that no frame waits for a listing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::Write as _;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::edits::RuleChange;
use super::report;
use super::services::{self, Change};
use super::tracing_clients::Wanted;
use super::worker::Worker;
use crate::api::{
    ApiError, Counted, Deleted, Handler, Metrics, Reply, Request, Row, SessionFilter, SessionRow,
};
use crate::config::{EventClass, EventClasses, ServerConfig};
use crate::eventlog::{Queue, Record};
use crate::gateway::{Event, Happening, Origin};
use crate::trace::FilterError;

/// Session slots looked at in one piece.
pub(super) const PIECE: u32 = 4096;

/// How often it is looked whether a client that watches is still there.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A queue that is closed when nobody reads it any more.
struct Watched(Arc<Queue>);

impl Drop for Watched {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Something to do on the worker's thread.
type Task = Box<dyn FnOnce(&mut Worker) + Send>;

/// The worker's end: what is to be done, and whether to end.
pub struct Mailbox {
    tasks: Receiver<Task>,
    bell: UnixStream,
    stop: Arc<AtomicBool>,
    reload: Arc<AtomicBool>,
}

/// The other end, for the control socket's threads and for signals.
#[derive(Clone)]
pub struct Post {
    /// Held while the tracing programs come or go.
    tracing: Arc<Mutex<()>>,
    tasks: Arc<Mutex<Sender<Task>>>,
    bell: Arc<UnixStream>,
}

impl Mailbox {
    /// A mailbox that SIGTERM, SIGINT and SIGHUP reach, too.
    pub fn new() -> std::io::Result<(Self, Post)> {
        let (tasks, receiver) = channel();
        let (bell, ringer) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        let (stop, reload) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        for (signal, flag) in [
            (signal_hook::consts::SIGTERM, &stop),
            (signal_hook::consts::SIGINT, &stop),
            (signal_hook::consts::SIGHUP, &reload),
        ] {
            signal_hook::flag::register(signal, Arc::clone(flag))?;
            signal_hook::low_level::pipe::register(signal, ringer.try_clone()?)?;
        }
        let mailbox = Self { tasks: receiver, bell, stop, reload };
        Ok((
            mailbox,
            Post { tracing: Arc::default(), tasks: Arc::new(Mutex::new(tasks)), bell: Arc::new(ringer) },
        ))
    }

    /// Readable when something is to be done.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }

    /// Does what is to be done. `true` means to end.
    pub fn serve(&self, worker: &mut Worker) -> bool {
        let mut rung = [0; 64];
        while std::io::Read::read(&mut &self.bell, &mut rung).is_ok_and(|count| count > 0) {}
        if self.reload.swap(false, Ordering::Relaxed) {
            // Its outcome is in the log.
            let _ = super::reload(worker);
        }
        for (number, task) in self.tasks.try_iter().enumerate() {
            // Whoever asks is told of all that was done before.
            worker.read_session_events(Instant::now());
            if number == 0 {
                worker.gateway.before_a_look(Instant::now());
            }
            task(worker);
        }
        self.stop.load(Ordering::Relaxed)
    }
}

impl Post {
    /// Has something done on the worker's thread and waits for it.
    pub(super) fn ask<T: Send + 'static>(
        &self,
        task: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let ended = || ApiError::new("the daemon is ending", "start it again with `natgw run`");
        let (answer, receiver) = channel();
        let boxed: Task = Box::new(move |worker| {
            let _ = answer.send(task(worker));
        });
        self.tasks.lock().map_err(|_| ended())?.send(boxed).map_err(|_| ended())?;
        // A full pipe has rung already.
        let _ = (&*self.bell).write(&[1]);
        receiver.recv().map_err(|_| ended())
    }

    /// Waits until no other client has the tracing programs loaded or put away.
    pub(super) fn tracing_turn(&self) -> MutexGuard<'_, ()> {
        self.tracing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes through the sessions that a filter means, piece by piece.
    fn each_session(
        &self,
        filter: &SessionFilter,
        mut each: impl FnMut(Vec<(u32, SessionRow)>) -> Result<(), ApiError>,
    ) -> Result<(), ApiError> {
        let mut start = 0;
        loop {
            let filter = filter.clone();
            let (rows, slots) = self.ask(move |worker| {
                let now = Instant::now();
                let slots = worker.gateway.session_slots();
                let rows = (start..slots.min(start + PIECE))
                    .filter_map(|slot| worker.gateway.session(&worker.kernel, now, slot))
                    .map(|view| (view.slot, report::session_row(view)))
                    .filter(|(_, row)| filter.matches(row))
                    .collect();
                (rows, slots)
            })?;
            each(rows)?;
            start += PIECE;
            if start >= slots {
                return Ok(());
            }
        }
    }

    fn change(&self, service: String, change: Change) -> Result<Value, ApiError> {
        Ok(value(&self.ask(move |worker| services::change(worker, &service, &change))??))
    }

    /// Gathers the metrics on the worker's thread, and writes them on this.
    pub fn metrics(&self) -> Result<String, ApiError> {
        Ok(self.ask(|worker| report::metrics(worker))?.text())
    }

    /// Sends sessions as they begin, change and end, until the client goes.
    fn watch(&self, filter: &SessionFilter, reply: &mut dyn Reply) -> Result<Value, ApiError> {
        let queue = Arc::new(Queue::new(EventClasses::of([EventClass::Steps])));
        let watched = Watched(Arc::clone(&queue));
        self.ask(move |worker| worker.hub.add(queue, &mut worker.gateway.events))?;
        let (mut events, mut lost) = (VecDeque::new(), 0);
        while watched.0.wait(&mut events, LOOK_AFTER) {
            // Rules may have other names after a reload: asked for with every batch, not with every event.
            let names = self.names_of(&events)?;
            for event in events.drain(..) {
                let mut record = Record::new(&event, true);
                record.rule = origin_of(&event).and_then(|origin| names.get(&origin).cloned());
                if filter.matches_record(&record) {
                    reply.row(Row::Event(&record)).map_err(gone)?;
                }
            }
            if watched.0.lost() > lost {
                lost = watched.0.lost();
                tracing::debug!(lost, "a client that watches sessions does not keep up");
            }
            if !reply.flush().map_err(gone)? {
                break;
            }
        }
        Ok(Value::Null)
    }

    /// The names of the rules that events are about.
    fn names_of(&self, events: &VecDeque<Event>) -> Result<HashMap<Origin, String>, ApiError> {
        let origins: HashSet<Origin> = events.iter().filter_map(origin_of).collect();
        if origins.is_empty() {
            return Ok(HashMap::default());
        }
        self.ask(move |worker| {
            let rules = worker.gateway.rules();
            origins.into_iter().map(|origin| (origin, rules.name(origin))).collect()
        })
    }

    fn delete(&self, filter: &SessionFilter) -> Result<Value, ApiError> {
        let mut deleted = 0;
        self.each_session(filter, |rows| {
            let slots: Vec<u32> = rows.into_iter().map(|(slot, _)| slot).collect();
            deleted += slots.len() as u64;
            self.ask(move |worker| {
                let now = Instant::now();
                for slot in slots {
                    worker.gateway.abandon(&mut worker.kernel, now, slot);
                }
            })
        })?;
        Ok(value(&Deleted { deleted }))
    }
}

/// What opened the session that an event is about.
fn origin_of(event: &Event) -> Option<Origin> {
    match event.what {
        Happening::SessionStep(stepped) => Some(stepped.origin),
        _ => None,
    }
}

fn value<T: serde::Serialize>(answer: &T) -> Value {
    serde_json::to_value(answer).unwrap_or(Value::Null)
}

/// Ends a listing whose client is gone.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` hands it over")]
fn gone(error: std::io::Error) -> ApiError {
    ApiError::new(format!("send the answer: {error}"), "the client has closed the connection")
}

impl Handler for Post {
    fn handle(&self, request: Request, reply: &mut dyn Reply) -> Result<Value, ApiError> {
        match request {
            Request::Metrics => Ok(value(&Metrics { text: self.metrics()? })),
            Request::Status => Ok(value(&self.ask(|worker| report::status(worker))?)),
            Request::SessionList { filter } => {
                let mut sessions = 0;
                self.each_session(&filter, |rows| {
                    for (_, row) in rows {
                        sessions += 1;
                        reply.row(Row::Session(&row)).map_err(gone)?;
                    }
                    Ok(())
                })?;
                Ok(value(&Counted { sessions }))
            }
            Request::SessionCount { filter } => {
                let mut sessions = 0;
                self.each_session(&filter, |rows| {
                    sessions += rows.len() as u64;
                    Ok(())
                })?;
                Ok(value(&Counted { sessions }))
            }
            Request::SessionDelete { filter } => self.delete(&filter),
            Request::SessionFlush => self.delete(&SessionFilter::default()),
            Request::Reload => Ok(value(&self.ask(super::reload)??)),
            Request::SessionWatch { filter } => self.watch(&filter, reply),
            Request::Top { interval, most } => {
                self.top(Duration::from_millis(interval.into()), most as usize, reply)?;
                Ok(Value::Null)
            }
            Request::Trace { filter, snap, rate } => {
                let filter = filter
                    .parse()
                    .map_err(|error: FilterError| ApiError::new(error.to_string(), FilterError::HINT))?;
                self.trace(&Wanted { filter, snap, rate }, reply)?;
                Ok(Value::Null)
            }
            Request::PoolList => {
                for row in self.ask(|worker| report::pools(worker))? {
                    reply.row(Row::Pool(&row)).map_err(gone)?;
                }
                Ok(Value::Null)
            }
            Request::ServiceList => {
                for row in self.ask(|worker| services::rows(worker))? {
                    reply.row(Row::Service(&row)).map_err(gone)?;
                }
                Ok(Value::Null)
            }
            Request::ServiceWeight { service, server, weight } => {
                self.change(service, Change::Weigh(server, weight))
            }
            Request::ServiceAdd { service, server, weight } => {
                self.change(service, Change::Add(ServerConfig { address: server, weight }))
            }
            Request::ServiceRemove { service, server } => self.change(service, Change::Remove(server)),
            Request::RuleAdd { kind, keys, before, save } => {
                Ok(value(&self.change_rules(&RuleChange::Add { kind, keys, before }, save)?))
            }
            Request::RuleDelete { rule, save } => {
                Ok(value(&self.change_rules(&RuleChange::Delete { rule }, save)?))
            }
            Request::RuleList => {
                for row in self.ask(|worker| report::rules(worker))? {
                    reply.row(Row::Rule(&row)).map_err(gone)?;
                }
                Ok(Value::Null)
            }
        }
    }
}
