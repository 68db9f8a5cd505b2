//! One netlink socket: requests with their answers, and notifications.
//!
//! The kernel answers a request before `send` returns, so a blocking read never waits for long.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR,
    NetlinkBuffer, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use rustix::io::Errno;

/// A netlink message as it lies in the receive buffer.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) payload: &'a [u8],
}

/// What a read of pending notifications came to.
pub(super) enum Notifications {
    /// Nothing more waits.
    Drained,
    /// The kernel dropped some: what is known has to be read anew.
    Lost,
}

/// A netlink socket bound in the namespace of the thread that opened it.
pub(super) struct Channel {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Channel {
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Opens a non-blocking socket that hears the groups.
    pub(super) fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Self> {
        let mut channel = Self::open(protocol)?;
        channel.socket.set_non_blocking(true)?;
        // Bounded by net.core.rmem_max: a request for more is cut, not refused.
        channel.socket.set_rx_buf_sz(SOCKET_BUFFER)?;
        for group in groups {
            channel.socket.add_membership(*group)?;
        }
        channel.buffer.clear();
        Ok(channel)
    }

    /// Joins a group that older kernels do not have.
    pub(super) fn join_if_known(&self, group: u32) {
        // EINVAL from a kernel without the group: then there is nothing to hear either.
        let _unknown_group = self.socket.add_membership(group);
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Sends a request that changes something and waits for the kernel's verdict.
    pub(super) fn execute<M: NetlinkSerializable>(&mut self, message: M, flags: u16) -> io::Result<()> {
        self.transact(message, flags | NLM_F_ACK, |_| Ok(()))
    }

    /// Asks for one object.
    pub(super) fn query<M: NetlinkSerializable>(
        &mut self,
        message: M,
        answer: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> io::Result<()> {
        self.transact(message, 0, answer)
    }

    /// Asks for all objects of a kind.
    pub(super) fn dump<M: NetlinkSerializable>(
        &mut self,
        message: M,
        each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> io::Result<()> {
        self.transact(message, NLM_F_DUMP, each)
    }

    fn transact<M: NetlinkSerializable>(
        &mut self,
        message: M,
        flags: u16,
        mut each: impl FnMut(Message<'_>) -> Result<(), DecodeError>,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;

        let more_follows = flags & (NLM_F_ACK | NLM_F_DUMP) != 0;
        loop {
            self.receive()?;
            let mut rest = self.buffer.as_slice();
            while let Some(message) = next_message(&mut rest)? {
                // A late answer to a request that ended in an error: not ours.
                if message.sequence_number() != self.sequence {
                    continue;
                }
                match message.message_type() {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => return verdict(message.payload()),
                    kind => {
                        each(Message { kind, payload: message.payload() }).map_err(invalid)?;
                        if !more_follows && message.flags() & NLM_F_MULTIPART == 0 {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }

    /// Reads what notifications wait, at most a bounded number of reads: the socket stays readable if more do.
    pub(super) fn notifications(&mut self, mut each: impl FnMut(Message<'_>)) -> io::Result<Notifications> {
        for _ in 0..READS_PER_POLL {
            match self.receive() {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Notifications::Drained),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if is(&error, Errno::NOBUFS) => {
                    self.discard()?;
                    return Ok(Notifications::Lost);
                }
                Err(error) => return Err(error),
            }
            let mut rest = self.buffer.as_slice();
            while let Some(message) = next_message(&mut rest)? {
                each(Message { kind: message.message_type(), payload: message.payload() });
            }
        }
        Ok(Notifications::Drained)
    }

    /// Throws away all that waits. It is older than what will be read anew, and the kernel reports no further loss
    /// before the socket has been empty once.
    fn discard(&mut self) -> io::Result<()> {
        loop {
            match self.receive() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if !is(&error, Errno::NOBUFS) => return Err(error),
                _ => {}
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        self.buffer.clear();
        let length = self.socket.recv(&mut self.buffer, MSG_TRUNC)?;
        if length > self.buffer.len() {
            let message = format!("a message of {length} bytes is longer than the receive buffer");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        Ok(())
    }
}

/// Whether an error is this errno.
pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// A message that does not decode, as an I/O error.
#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` calls")]
fn invalid(error: DecodeError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}

/// Takes the first message off the rest of a datagram.
fn next_message<'a>(rest: &mut &'a [u8]) -> io::Result<Option<NetlinkBuffer<&'a [u8]>>> {
    if rest.is_empty() {
        return Ok(None);
    }
    let message = NetlinkBuffer::new_checked(*rest).map_err(invalid)?;
    let length = message.length() as usize;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Ok(Some(message))
}

/// The kernel's answer to a request: 0 or a negative errno.
fn verdict(payload: &[u8]) -> io::Result<()> {
    let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) }
}

/// `recv` answers the whole length of a datagram that it had to cut.
const MSG_TRUNC: i32 = 0x20;
/// Larger than any message of the kernel: dumps come in pieces of 32 KiB.
const RECEIVE_BUFFER: usize = 128 << 10;
const SOCKET_BUFFER: u32 = 4 << 20;
const READS_PER_POLL: usize = 1024;
