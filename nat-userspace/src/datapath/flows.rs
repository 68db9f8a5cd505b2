//! The flow table: sessions' entries go in and out in batches, the reply entry first, so that a
//! port is taken before anything uses it; what half went in comes out again.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::MapData;
use nat_common::{FlowKey, FlowValue};

use super::batch;

/// Entries read at once when a table is taken over.
const READ: usize = 4096;

/// The kernel's flow table.
pub struct FlowTable {
    map: MapData,
    /// Sessions whose entries wait for the next [`FlowTable::flush`].
    sessions: Vec<u32>,
    original: (Vec<FlowKey>, Vec<FlowValue>),
    reply: (Vec<FlowKey>, Vec<FlowValue>),
    closing: Vec<FlowKey>,
}

impl FlowTable {
    /// The table behind a map.
    pub fn new(map: MapData) -> Self {
        Self {
            map,
            sessions: Vec::new(),
            original: Default::default(),
            reply: Default::default(),
            closing: Vec::new(),
        }
    }

    /// Queues a session's entries.
    pub fn open(&mut self, session: u32, entries: [(FlowKey, FlowValue); 2]) {
        let [(original, original_value), (reply, reply_value)] = entries;
        self.sessions.push(session);
        self.original.0.push(original);
        self.original.1.push(original_value);
        self.reply.0.push(reply);
        self.reply.1.push(reply_value);
    }

    /// Writes an entry over one that is there.
    pub fn replace(&mut self, key: FlowKey, value: FlowValue) {
        if let Some(position) = self.original.0.iter().position(|queued| *queued == key) {
            self.original.1[position] = value;
        } else if let Some(position) = self.reply.0.iter().position(|queued| *queued == key) {
            self.reply.1[position] = value;
        } else {
            let (_, outcome) = batch::update(self.fd(), &[key], &[value]);
            if let Err(error) = outcome {
                tracing::warn!(%error, "a flow entry could not be changed: its packets go by the daemon");
            }
        }
    }

    /// Queues entries to be taken out. They go before any that are to come in.
    pub fn close(&mut self, keys: [FlowKey; 2]) {
        // A session that was opened in this batch and ends in it: both in order.
        if self.original.0.contains(&keys[0]) {
            let _ = self.flush();
        }
        self.closing.extend(keys);
    }

    /// Brings the table in line. Returns sessions whose entries were not taken, and why the first
    /// of them was not: their ports may belong to someone, their packets must not be sent.
    pub fn flush(&mut self) -> (Vec<u32>, io::Result<()>) {
        let closing = std::mem::take(&mut self.closing);
        self.remove(&closing);
        self.closing = closing;
        self.closing.clear();
        let mut failed = Vec::new();
        let mut first_error = Ok(());
        let mut start = 0;
        while start < self.sessions.len() {
            let (done, outcome) = batch::update(self.fd(), &self.reply.0[start..], &self.reply.1[start..]);
            let end = start + done;
            let (forwarded, forward_outcome) =
                batch::update(self.fd(), &self.original.0[start..end], &self.original.1[start..end]);
            if let Err(error) = forward_outcome {
                // Roll back replies whose originals did not go in.
                self.remove(&self.reply.0[start + forwarded..end]);
                failed.extend_from_slice(&self.sessions[start + forwarded..end]);
                first_error = Err(error);
            }
            start = end;
            if let Err(error) = outcome {
                if let Some(&session) = self.sessions.get(start) {
                    failed.push(session);
                }
                first_error = Err(error);
                start += 1;
            }
        }
        self.sessions.clear();
        for (keys, values) in [&mut self.original, &mut self.reply] {
            keys.clear();
            values.clear();
        }
        (failed, first_error)
    }

    fn remove(&self, keys: &[FlowKey]) {
        let mut start = 0;
        while start < keys.len() {
            let (done, outcome) = batch::delete(self.fd(), &keys[start..]);
            // The entry at which it stopped is not there: whoever took it out was first.
            start += done + usize::from(outcome.is_err());
        }
    }

    /// Every entry, as a daemon that takes the table over finds it.
    pub fn entries(&self) -> io::Result<Vec<(FlowKey, FlowValue)>> {
        let mut entries = Vec::new();
        let mut cursor = None;
        let mut keys = vec![bytemuck::Zeroable::zeroed(); READ];
        let mut values = vec![FlowValue::default(); READ];
        loop {
            let count = batch::lookup(self.fd(), &mut cursor, &mut keys, &mut values)?;
            entries.extend(keys.iter().copied().zip(values.iter().copied()).take(count));
            if cursor.is_none() {
                return Ok(entries);
            }
        }
    }

    /// Takes entries out that belong to no session.
    pub fn discard(&self, keys: &[FlowKey]) {
        self.remove(keys);
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.map.fd().as_fd()
    }
}
