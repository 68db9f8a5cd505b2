//! Bounded queues between the worker and those who read events.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::config::EventClasses;
use crate::gateway::{Event, Events};

/// Events that wait for one reader.
const CAPACITY: usize = 1 << 16;

/// One reader's events.
pub struct Queue {
    wanted: EventClasses,
    events: Mutex<VecDeque<Event>>,
    filled: Condvar,
    lost: AtomicU64,
    closed: AtomicBool,
}

impl Queue {
    /// An empty queue for some kinds of events.
    pub fn new(wanted: EventClasses) -> Self {
        Self {
            wanted,
            events: Mutex::new(VecDeque::new()),
            filled: Condvar::new(),
            lost: AtomicU64::new(0),
            closed: AtomicBool::new(false),
        }
    }

    /// Puts events in, as many as fit. Never waits for the reader: it holds the lock only to take all.
    fn put(&self, events: &[Event]) {
        let mut queue = self.lock();
        let mut lost = 0;
        for event in events.iter().filter(|event| self.wanted.contains(event.what.class())) {
            if queue.len() < CAPACITY {
                queue.push_back(*event);
            } else {
                lost += 1;
            }
        }
        drop(queue);
        if lost > 0 {
            self.lost.fetch_add(lost, Ordering::Relaxed);
        }
        self.filled.notify_one();
    }

    /// Takes all there are; waits for some, but not longer than `patience`. `false` once the queue is closed and
    /// empty.
    pub fn wait(&self, events: &mut VecDeque<Event>, patience: Duration) -> bool {
        events.clear();
        let is_closed = || self.closed.load(Ordering::Relaxed);
        let queue = self.lock();
        let waited =
            self.filled.wait_timeout_while(queue, patience, |queue| queue.is_empty() && !is_closed());
        let (mut queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut *queue, events);
        !(events.is_empty() && is_closed())
    }

    /// Ends it: the reader gets what is in it, and the worker forgets it.
    pub fn close(&self) {
        let guard = self.lock();
        self.closed.store(true, Ordering::Relaxed);
        drop(guard);
        self.filled.notify_all();
    }

    /// Events that found no room.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The worker's end of all queues.
#[derive(Default)]
pub struct Hub {
    queues: Vec<Arc<Queue>>,
    taken: Vec<Event>,
}

impl Hub {
    /// One more reader.
    pub fn add(&mut self, queue: Arc<Queue>, events: &mut Events) {
        self.queues.push(queue);
        self.settle(events);
    }

    /// Whether nobody reads.
    pub fn is_idle(&self) -> bool {
        self.queues.is_empty()
    }

    /// Hands over what has happened. Nearly nothing if that is nothing.
    pub fn deliver(&mut self, events: &mut Events) {
        self.taken.extend(events.take());
        if self.taken.is_empty() {
            return;
        }
        for queue in &self.queues {
            queue.put(&self.taken);
        }
        self.taken.clear();
        if self.queues.iter().any(|queue| queue.closed.load(Ordering::Relaxed)) {
            self.settle(events);
        }
    }

    /// Forgets readers that are gone, and tells the core what the others want.
    fn settle(&mut self, events: &mut Events) {
        self.queues.retain(|queue| !queue.closed.load(Ordering::Relaxed));
        let wanted = self.queues.iter().map(|queue| queue.wanted);
        events.want(wanted.fold(EventClasses::default(), EventClasses::union));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::config::EventClass;
    use crate::gateway::Happening;

    #[test]
    fn a_reader_that_does_not_read_loses_and_the_worker_does_not_wait() {
        let (mut hub, mut events) = (Hub::default(), Events::default());
        let happened = Happening::AddressesExhausted(1);
        events.add(Instant::now(), happened);
        assert_eq!(events.take().count(), 0, "nobody asks");
        let [slow, quick, other] = [EventClass::Limits, EventClass::Limits, EventClass::Sessions]
            .map(|class| Arc::new(Queue::new(EventClasses::of([class]))));
        for queue in [&slow, &quick, &other] {
            hub.add(Arc::clone(queue), &mut events);
        }
        let mut read = VecDeque::new();
        for _ in 0..70 {
            for _ in 0..1000 {
                events.add(Instant::now(), happened);
            }
            hub.deliver(&mut events);
            assert!(quick.wait(&mut read, Duration::ZERO));
            assert_eq!(read.len(), 1000);
        }
        assert_eq!((slow.lost(), quick.lost(), other.lost()), (70_000 - CAPACITY as u64, 0, 0));
        for queue in [&slow, &quick, &other] {
            queue.close();
        }
        assert!(slow.wait(&mut read, Duration::ZERO), "what is in it is still read");
        assert_eq!(read.len(), CAPACITY);
        assert!(!slow.wait(&mut read, Duration::from_secs(60)), "and then it is over");
        events.add(Instant::now(), happened);
        hub.deliver(&mut events);
        events.add(Instant::now(), happened);
        assert_eq!(events.take().count(), 0, "nobody asks any more");
    }
}
