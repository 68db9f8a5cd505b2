//! A tap: an `AF_PACKET` socket on one interface, which sends frames as they are and sees all that pass.

use std::{
    cell::{Cell, RefCell},
    ffi::CString,
    io, mem,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    ptr, thread,
    time::{Duration, Instant},
};

use crate::{
    decode::Decoded,
    packet::{Mac, Packet, protocol},
};

/// How long [`Tap::expect`] waits: long on a busy machine, and over at once when the frame is there.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long [`Tap::expect_none`] listens.
pub const SILENCE: Duration = Duration::from_millis(300);

/// Which way a frame passed the tap's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the wire to this host, or to all.
    Incoming,
    /// From the wire to somebody else: a switch that has not learnt yet sends a frame to all of its ports.
    Overheard,
    /// From this host to the wire.
    Outgoing,
}

/// A frame that passed.
#[derive(Clone, Debug)]
pub struct Captured {
    /// The bytes, VLAN tag put back.
    pub frame: Vec<u8>,
    /// What they mean.
    pub decoded: Decoded,
    /// Which way it passed.
    pub direction: Direction,
    /// False where the sending kernel left the checksum to hardware that a veth does not have: not to be judged.
    pub checksum_ready: bool,
    /// When it was read.
    pub at: Instant,
    taken: bool,
}

/// See the module. A tap belongs to the thread that uses it.
#[derive(Debug)]
pub struct Tap {
    socket: OwnedFd,
    name: String,
    mac: Mac,
    next_hop: Mac,
    captured: RefCell<Vec<Captured>>,
    /// Every frame before this one was taken or is not for this host: no need to look at it again.
    settled: Cell<usize>,
    buffer: RefCell<Vec<u8>>,
}

impl Tap {
    /// Opens a tap in the namespace of the calling thread; [`crate::Host::tap`] is the way to do that.
    pub fn open(interface: &str, mac: Mac, next_hop: Mac) -> io::Result<Self> {
        let socket = open_socket(interface)?;
        Ok(Self {
            socket,
            name: interface.to_owned(),
            mac,
            next_hop,
            captured: RefCell::default(),
            settled: Cell::default(),
            // A frame that segmentation offload left whole has up to 64 KiB.
            buffer: RefCell::new(vec![0; 1 << 17]),
        })
    }

    /// Sends a packet to the host's next hop, unless it says other Ethernet addresses. Returns it as sent.
    pub fn send(&self, packet: &Packet) -> Decoded {
        let frame = packet.clone().between(self.mac, self.next_hop).build();
        self.send_frame(&frame);
        Decoded::parse(&frame)
    }

    /// Sends a packet in fragments of `size` payload bytes, in the given order (indices of [`Packet::fragments`]).
    pub fn send_fragments(&self, packet: &Packet, size: usize, order: &[usize]) {
        let fragments = packet.clone().between(self.mac, self.next_hop).fragments(size);
        for index in order {
            self.send_frame(&fragments[*index]);
        }
    }

    /// Sends bytes. Where the device's queue is full, once there is room: a frame is sent or the test fails.
    pub fn send_frame(&self, frame: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        let sent = loop {
            // SAFETY: the pointer and the length are those of a live slice.
            let sent = unsafe { libc::send(self.socket.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
            match check(sent) {
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(1));
                }
                sent => break sent.unwrap_or_else(|error| panic!("send on {}: {error}", self.name)),
            }
        };
        assert_eq!(sent, frame.len(), "the whole frame goes out on {}", self.name);
    }

    /// Waits for the next incoming frame that `wanted` accepts and that was not returned before.
    pub fn recv_matching(&self, patience: Duration, wanted: impl Fn(&Decoded) -> bool) -> Option<Captured> {
        let deadline = Instant::now() + patience;
        let captured = self.captured.borrow();
        let settled = |frame: &Captured| frame.taken || frame.direction != Direction::Incoming;
        let rest = &captured[self.settled.get()..];
        let more = rest.iter().position(|frame| !settled(frame)).unwrap_or(rest.len());
        self.settled.set(self.settled.get() + more);
        drop(captured);
        let mut looked_at = self.settled.get();
        loop {
            let mut captured = self.captured.borrow_mut();
            for frame in &mut captured[looked_at..] {
                if !frame.taken && frame.direction == Direction::Incoming && wanted(&frame.decoded) {
                    frame.taken = true;
                    return Some(frame.clone());
                }
            }
            looked_at = captured.len();
            drop(captured);
            let left = deadline.saturating_duration_since(Instant::now());
            if !self.read(left) {
                return None;
            }
        }
    }

    /// The next incoming frame that `wanted` accepts; the test fails if there is none, and says what came instead.
    pub fn expect(&self, what: &str, wanted: impl Fn(&Decoded) -> bool) -> Decoded {
        match self.recv_matching(PATIENCE, wanted) {
            Some(captured) => captured.decoded,
            None => panic!("{what}: not seen on {} within {PATIENCE:?}; seen:\n{}", self.name, self.seen()),
        }
    }

    /// The interface, and the namespace it is in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The Ethernet address that it sends to.
    pub fn next_hop(&self) -> Mac {
        self.next_hop
    }

    /// A frame of exactly these bytes, to whomever.
    pub fn expect_frame(&self, what: &str, frame: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while !self.captured().iter().any(|seen| seen.frame == frame) {
            assert!(
                Instant::now() < deadline,
                "{what}: not seen as it was on {}; seen:\n{}",
                self.name,
                self.seen()
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The bytes of the next incoming frame with this payload.
    pub fn expect_payload_frame(&self, payload: &[u8]) -> Vec<u8> {
        match self.recv_matching(PATIENCE, |decoded| decoded.payload() == payload) {
            Some(captured) => captured.frame,
            None => panic!(
                "{:?} not seen on {}; seen:\n{}",
                String::from_utf8_lossy(payload),
                self.name,
                self.seen()
            ),
        }
    }

    /// The next incoming frame with this payload, whoever sends it.
    pub fn expect_payload(&self, payload: impl AsRef<[u8]>) -> Decoded {
        let payload = payload.as_ref();
        let what = format!("a packet that carries {:?}", String::from_utf8_lossy(payload));
        self.expect(&what, |decoded| decoded.payload() == payload)
    }

    /// Fails if a frame comes in that `unwanted` accepts.
    pub fn expect_none(&self, what: &str, unwanted: impl Fn(&Decoded) -> bool) {
        if let Some(captured) = self.recv_matching(SILENCE, unwanted) {
            panic!("{what}: must not be seen on {}: {}", self.name, captured.decoded);
        }
    }

    /// Fails if any IPv4 packet comes in, but for the IGMP with which kernels greet their subnet.
    pub fn expect_silence(&self) {
        let speaks = |decoded: &Decoded| decoded.ip.as_ref().is_some_and(|ip| ip.protocol != protocol::IGMP);
        self.expect_none("an IPv4 packet", speaks);
    }

    /// Everything that passed so far, both ways.
    pub fn captured(&self) -> Vec<Captured> {
        self.drain();
        self.captured.borrow().clone()
    }

    /// The incoming frames so far that `wanted` accepts.
    pub fn incoming(&self, wanted: impl Fn(&Decoded) -> bool) -> Vec<Decoded> {
        let frames = self.captured().into_iter();
        let incoming = frames.filter(|frame| frame.direction == Direction::Incoming);
        incoming.map(|frame| frame.decoded).filter(wanted).collect()
    }

    /// Forgets everything that passed so far.
    pub fn clear(&self) {
        self.drain();
        self.captured.borrow_mut().clear();
        self.settled.set(0);
    }

    /// The next frame in either direction that was not read yet, which is kept nowhere: for traffic without end.
    pub fn take(&self, patience: Duration) -> Option<Captured> {
        receive(&self.socket, &mut self.buffer.borrow_mut(), patience)
            .unwrap_or_else(|error| panic!("receive on {}: {error}", self.name))
    }

    /// Takes what has passed out of the socket's buffer, which is large but not endless.
    pub fn drain(&self) {
        while self.read(Duration::ZERO) {}
    }

    fn seen(&self) -> String {
        let captured = self.captured.borrow();
        let lines = captured.iter().map(|Captured { decoded, direction, taken, .. }| {
            format!("  {direction:?}{} {decoded}\n", if *taken { " (taken)" } else { "" })
        });
        lines.collect()
    }

    /// Reads one frame; false if none comes in time.
    fn read(&self, patience: Duration) -> bool {
        match receive(&self.socket, &mut self.buffer.borrow_mut(), patience) {
            Ok(Some(captured)) => {
                self.captured.borrow_mut().push(captured);
                true
            }
            Ok(None) => false,
            Err(error) => panic!("receive on {}: {error}", self.name),
        }
    }
}

pub(crate) fn open_socket(interface: &str) -> io::Result<OwnedFd> {
    let protocol = i32::from(libc::ETH_P_ALL.to_be_bytes()[3]) << 8;
    // SAFETY: a plain call; the descriptor is checked before it gets an owner.
    let socket = unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol);
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        OwnedFd::from_raw_fd(fd)
    };
    // A test may let a hundred thousand frames pass before it looks.
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20)?;
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
    let name = CString::new(interface)?;
    // SAFETY: `name` is a C string that lives through the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: all zeros is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("address families are small");
    address.sll_protocol = u16::try_from(protocol).expect("an ethertype has 16 bits");
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    if address.sll_ifindex == 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the pointer and the length are those of `address`.
    check(unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size::<libc::sockaddr_ll>()) as isize
    })?;
    Ok(socket)
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: the pointer and the length are those of `value`.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), size::<i32>())
    };
    check(result as isize).map(drop)
}

pub(crate) fn receive(
    socket: &OwnedFd,
    buffer: &mut [u8],
    patience: Duration,
) -> io::Result<Option<Captured>> {
    let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let milliseconds = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one pollfd, as the length says.
    let ready = check(unsafe { libc::poll(&raw mut poll, 1, milliseconds) } as isize)?;
    if ready == 0 {
        return Ok(None);
    }
    let mut control = [0_u64; 16];
    // SAFETY: all zeros is a valid sockaddr_ll, iovec and msghdr.
    let (mut from, mut part, mut message) = unsafe {
        (mem::zeroed::<libc::sockaddr_ll>(), mem::zeroed::<libc::iovec>(), mem::zeroed::<libc::msghdr>())
    };
    part.iov_base = buffer.as_mut_ptr().cast();
    part.iov_len = buffer.len();
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = size::<libc::sockaddr_ll>();
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: every pointer in `message` is to a live local with the length that stands beside it.
    let received = check(unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) })?;
    let mut frame = buffer[..received].to_vec();
    let direction = match from.sll_pkttype {
        libc::PACKET_OUTGOING => Direction::Outgoing,
        libc::PACKET_OTHERHOST => Direction::Overheard,
        _ => Direction::Incoming,
    };
    let mut checksum_ready = true;
    if let Some(auxiliary) = auxiliary_data(&message) {
        checksum_ready = auxiliary.tp_status & libc::TP_STATUS_CSUMNOTREADY == 0;
        // The kernel takes the outer tag off before a tap sees the frame.
        if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID != 0 {
            let known = auxiliary.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let kind = if known { auxiliary.tp_vlan_tpid } else { 0x8100 };
            let tag = [kind.to_be_bytes(), auxiliary.tp_vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
    }
    let decoded = Decoded::parse(&frame);
    Ok(Some(Captured { frame, decoded, direction, checksum_ready, at: Instant::now(), taken: false }))
}

fn auxiliary_data(message: &libc::msghdr) -> Option<libc::tpacket_auxdata> {
    // SAFETY: the kernel filled the control buffer, the CMSG functions walk it within msg_controllen, and the
    // type of a message is checked before its data is read (unaligned, as the buffer promises no more).
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_PACKET && (*header).cmsg_type == libc::PACKET_AUXDATA {
                return Some(ptr::read_unaligned(libc::CMSG_DATA(header).cast()));
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).expect("small types")
}

fn check(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}
