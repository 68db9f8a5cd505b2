//! One `AF_XDP` socket, and the frames all of them share.
//!
//! The same memory is registered at every socket, so that a frame received on one is sent on
//! another without being copied by us; a frame is always in exactly one place: a fill ring, our
//! hands, a transmit ring, or free.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use xdp::nic::NicIndex;
use xdp::slab::{HeapSlab, Slab as _};
use xdp::socket::{PollTimeout, SocketError, XdpSocket, XdpSocketBuilder};
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{Packet, RingConfig, RingConfigBuilder, Umem, WakableRings};

use crate::memory;

/// Entries of the transmit and completion ring of a socket.
const RING: u32 = 2048;
/// Frames that an interface can have waiting for the daemon, over all its queues: a burst of ten
/// thousand first packets is served, however short.
const BURST: u32 = 10_240;

/// Frames that are lent to the kernel to receive into, to each of an interface's sockets.
pub fn lent_frames(queues: u32) -> u32 {
    (BURST / queues.max(1).next_power_of_two()).max(RING)
}

/// Room in front of a frame for the tags of the VLAN that it leaves by.
const HEAD_ROOM: u32 = 8;

/// Frames beyond those that are lent to receive into: two transmit rings full.
const IN_HAND: u32 = 2 * RING;

/// What one transmit kick sends in copy mode (`TX_BATCH_SIZE` in net/xdp/xsk.c).
const KICK: usize = 32;
/// Frames received at once.
pub const BATCH: usize = 64;
/// Frames that may wait for a transmit ring with room.
const BACKLOG: usize = 16_384;

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The memory of the frames.
    #[error("map {frames} frames of memory for AF_XDP: {source}")]
    Memory {
        /// How many.
        frames: u32,
        /// Why.
        source: io::Error,
    },
    /// A socket.
    #[error("open an AF_XDP socket on queue {queue} of interface {ifindex}: {message}")]
    Socket {
        /// Its interface.
        ifindex: u32,
        /// Its queue.
        queue: u32,
        /// Why.
        message: String,
    },
}

/// The memory of all frames.
pub struct Frames {
    umem: Umem,
}

impl Frames {
    /// Memory for sockets that are lent so many frames in all to receive into.
    pub fn new(receive: u32, jumbo: bool) -> Result<Self, PortError> {
        // What is lent to receive into, and what is in hand or on its way out meanwhile.
        let frames = receive.max(RING) + IN_HAND;
        let build = || {
            let frame_size = if jumbo { FrameSize::FourK } else { FrameSize::TwoK };
            let config = UmemCfgBuilder {
                frame_size,
                frame_count: frames,
                head_room: HEAD_ROOM,
                ..UmemCfgBuilder::default()
            }
            .build();
            Umem::map(config.map_err(|error| io::Error::other(format!("{error:?}")))?)
        };
        Ok(Self { umem: build().map_err(|source| PortError::Memory { frames, source })? })
    }

    /// Has the kernel find the memory's pages: the first socket pins them all.
    pub fn fill(&mut self) {
        // SAFETY: as for `copy`.
        let Some(mut first) = (unsafe { self.umem.alloc() }) else { return };
        let bytes = self.umem.capacity() * first.capacity().next_power_of_two();
        memory::fill(first.as_mut_ptr(), bytes);
        self.free(first);
    }

    /// A frame with these bytes; `None` if they are too many, or no frame is free.
    pub fn copy(&mut self, bytes: &[u8]) -> Option<Packet> {
        // SAFETY: packets do not outlive the memory: the worker owns both, and drops it last.
        let mut packet = unsafe { self.umem.alloc() }?;
        if packet.append(bytes).is_err() {
            self.free(packet);
            return None;
        }
        Some(packet)
    }

    /// Gives a frame back.
    pub fn free(&mut self, packet: Packet) {
        self.umem.free_packet(packet);
    }
}

/// A socket on a queue of an interface.
pub struct Port {
    /// Its interface.
    pub ifindex: u32,
    /// Its queue.
    pub queue: u32,
    rings: WakableRings,
    socket: XdpSocket,
    received: HeapSlab,
    kick: HeapSlab,
    backlog: VecDeque<Packet>,
    /// Frames in the transmit ring or on their way back.
    sending: usize,
}

/// How long the socket of an earlier daemon may take to go: milliseconds, and seconds where all CPUs are busy.
const LET_GO: Duration = Duration::from_secs(15);
/// After so long it is told that it is waited for.
const TOLD: Duration = Duration::from_secs(2);

/// A new socket with its rings, bound to a queue.
fn bind(
    frames: &Frames,
    ifindex: u32,
    queue: u32,
    config: RingConfig,
) -> Result<(WakableRings, XdpSocket), SocketError> {
    let mut builder = XdpSocketBuilder::new()?;
    let (rings, mut flags) = builder.build_wakable_rings(&frames.umem, config)?;
    // First packets only: a copy costs less than what zero-copy would take from the driver.
    flags.force_copy();
    Ok((rings, builder.bind(NicIndex(ifindex), queue, flags)?))
}

impl Port {
    /// Opens a socket. The program's socket map still has to name it.
    ///
    /// `receive` is how many frames it is lent, see [`lent_frames`].
    pub fn open(frames: &mut Frames, ifindex: u32, queue: u32, receive: u32) -> Result<Self, PortError> {
        let failed = |message: String| PortError::Socket { ifindex, queue, message };
        let config = RingConfigBuilder {
            rx_count: receive.next_power_of_two(),
            tx_count: RING,
            fill_count: receive.next_power_of_two(),
            completion_count: RING,
        }
        .build()
        .map_err(|error| failed(format!("{error:?}")))?;
        let (begun, mut told) = (Instant::now(), false);
        let (rings, socket) = loop {
            match bind(frames, ifindex, queue, config) {
                // The kernel lets go of a dead daemon's socket some time after its process is gone (xp_put_pool).
                Err(SocketError::Bind(error))
                    if error.raw_os_error() == Some(libc::EBUSY) && begun.elapsed() < LET_GO =>
                {
                    if !told && begun.elapsed() > TOLD {
                        told = true;
                        tracing::warn!(
                            ifindex,
                            queue,
                            "another AF_XDP socket has this queue: it is waited for, for {} s",
                            LET_GO.as_secs()
                        );
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(SocketError::Bind(error)) if error.raw_os_error() == Some(libc::EBUSY) => {
                    let message =
                        "another program has that queue: stop it; `bpftool net` and `ss --xdp` show it";
                    return Err(failed(message.to_owned()));
                }
                outcome => break outcome.map_err(|error| failed(error.to_string()))?,
            }
        };
        let mut port = Self {
            ifindex,
            queue,
            rings,
            socket,
            received: HeapSlab::with_capacity(BATCH),
            kick: HeapSlab::with_capacity(KICK),
            backlog: VecDeque::new(),
            sending: 0,
        };
        port.fill(frames, receive as usize);
        Ok(port)
    }

    /// The descriptor, for the socket map and for poll.
    pub fn fd(&self) -> RawFd {
        self.socket.raw_fd()
    }

    /// Lends frames to the kernel to receive into.
    fn fill(&mut self, frames: &mut Frames, count: usize) {
        // SAFETY: the memory outlives the socket: the worker drops its ports first.
        let _ = unsafe { self.rings.fill_ring.enqueue(&mut frames.umem, count, true) };
    }

    /// Receives up to `BATCH` frames, in the order they came.
    pub fn receive(&mut self, frames: &mut Frames, packets: &mut Vec<Packet>) -> usize {
        let Some(ring) = self.rings.rx_ring.as_mut() else { return 0 };
        // SAFETY: as for `fill`.
        let count = unsafe { ring.recv(&frames.umem, &mut self.received) };
        if count > 0 {
            while let Some(packet) = self.received.pop_back() {
                packets.push(packet);
            }
            self.fill(frames, count);
        }
        count
    }

    /// Frames meant for the daemon that found no room: neither here nor in the memory.
    pub fn lost(&self) -> u64 {
        self.socket
            .statistics()
            .map_or(0, |counts| counts.rx_dropped + counts.rx_ring_full + counts.rx_fill_ring_empty_descs)
    }

    /// Queues a frame to be sent. `Err` gives it back: more wait than may.
    pub fn send(&mut self, packet: Packet) -> Result<(), Packet> {
        if self.backlog.len() >= BACKLOG {
            return Err(packet);
        }
        self.backlog.push_back(packet);
        Ok(())
    }

    /// Whether frames wait for [`Port::flush`].
    pub fn has_backlog(&self) -> bool {
        !self.backlog.is_empty() || self.sending > 0
    }

    /// Hands queued frames to the kernel, as many as it takes, and takes back those it has sent.
    pub fn flush(&mut self, frames: &mut Frames) {
        self.collect(frames);
        while !self.backlog.is_empty() && self.sending + KICK <= RING as usize {
            while self.kick.len() < KICK {
                let Some(packet) = self.backlog.pop_front() else { break };
                if let Some(packet) = self.kick.push_front(packet) {
                    self.backlog.push_front(packet);
                    break;
                }
            }
            let before = self.kick.len();
            let Some(ring) = self.rings.tx_ring.as_mut() else { return };
            // EAGAIN, EBUSY and ENOBUFS tell that not all were sent yet; they are in the ring
            // all the same, and the next kick sends them.
            // SAFETY: as for `fill`.
            let _ = unsafe { ring.send(&mut self.kick, true) };
            self.sending += before - self.kick.len();
            if !self.kick.is_empty() {
                while let Some(packet) = self.kick.pop_back() {
                    self.backlog.push_front(packet);
                }
                break;
            }
            self.collect(frames);
        }
        if self.sending > 0 {
            // A poll drives what a kick left behind.
            let _ = self.socket.poll_read(PollTimeout::new(Some(Duration::ZERO)));
            self.collect(frames);
        }
    }

    /// Takes back frames that were sent.
    fn collect(&mut self, frames: &mut Frames) {
        let done = self.rings.completion_ring.dequeue(&mut frames.umem, RING as usize);
        self.sending = self.sending.saturating_sub(done);
    }

    /// Gives back every frame that waits to be sent.
    pub fn clear(&mut self, frames: &mut Frames) {
        while let Some(packet) = self.backlog.pop_front() {
            frames.free(packet);
        }
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the socket lives as long as the port, which the result borrows.
        unsafe { BorrowedFd::borrow_raw(self.fd()) }
    }
}
