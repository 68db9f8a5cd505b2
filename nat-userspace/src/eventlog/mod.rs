//! Records of what was translated (RFC 6888 section 4): events of the core go into bounded queues; who
//! reads a queue has a thread of its own. A reader that is slow or gone loses records, which are
//! counted, and holds nobody up.

#![deny(unsafe_code)]

mod ipfix;
mod queue;
mod record;
mod sink;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

pub use self::queue::{Hub, Queue};
pub use self::record::{Place, Record};
use crate::config::{Log, LogTarget};
use crate::gateway::Event;

/// How long the end waits for what is still to be written.
const FAREWELL: Duration = Duration::from_secs(2);
/// How often a writer has a chance to do what is due though nothing happens.
const IDLE: Duration = Duration::from_millis(500);

/// What became of records.
#[derive(Debug, Default)]
pub struct Written {
    /// Records that were handed over.
    pub records: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Records that could not be.
    pub lost: AtomicU64,
}

/// Writes events where the configuration says.
pub struct Writer {
    queue: Arc<Queue>,
    written: Arc<Written>,
    ended: Receiver<()>,
}

/// Where one form of records goes.
trait Sink {
    /// Writes events. What cannot be written is counted as lost.
    fn write(&mut self, events: &mut dyn Iterator<Item = Event>, written: &Written);

    /// Nothing has happened for a while.
    fn idle(&mut self, written: &Written);
}

impl Writer {
    /// Starts to write, on a thread of its own; `None` if the configuration wants none.
    pub fn start(log: &Log) -> io::Result<Option<Self>> {
        let Some(target) = log.target.clone() else { return Ok(None) };
        let destinations = log.destinations;
        let make = move || -> Box<dyn Sink> {
            match target {
                LogTarget::Json(path) => Box::new(sink::File::new(path, destinations)),
                LogTarget::Syslog(collector) => Box::new(sink::Syslog::new(collector, destinations)),
                LogTarget::Ipfix { collector, refresh } => {
                    Box::new(sink::Collector::new(collector, refresh, destinations))
                }
            }
        };
        let queue = Arc::new(Queue::new(log.events));
        let written = Arc::new(Written::default());
        let (end, ended) = channel();
        std::thread::Builder::new().name("event log".to_owned()).spawn({
            let (queue, written) = (Arc::clone(&queue), Arc::clone(&written));
            move || {
                let mut sink = make();
                let mut events = std::collections::VecDeque::new();
                while queue.wait(&mut events, IDLE) {
                    if events.is_empty() {
                        sink.idle(&written);
                    } else {
                        sink.write(&mut events.drain(..), &written);
                    }
                }
                drop(end);
            }
        })?;
        Ok(Some(Self { queue, written, ended }))
    }

    /// Where the events are to go.
    pub fn queue(&self) -> Arc<Queue> {
        Arc::clone(&self.queue)
    }

    /// Records written, their bytes, and records lost.
    pub fn counts(&self) -> [u64; 3] {
        let Written { records, bytes, lost } = &*self.written;
        let [records, bytes, lost] = [records, bytes, lost].map(|count| count.load(Ordering::Relaxed));
        [records, bytes, lost + self.queue.lost()]
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.close();
        // A writer that is stuck is left behind: the process is about to end.
        if self.ended.recv_timeout(FAREWELL) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("event log: records were not written in time");
        }
    }
}
