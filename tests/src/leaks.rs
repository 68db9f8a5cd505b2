//! The leak watch: a capture on the outside, from before a gateway starts until after it has ended, that takes
//! nothing but IPv4 packets with an inside address. There has to be none.

use std::{
    io,
    net::Ipv4Addr,
    os::fd::{AsRawFd as _, OwnedFd},
    time::Duration,
};

use crate::{host::Host, wire};

/// What inside addresses have in common: a network, and how long its prefix is.
pub type Inside = (Ipv4Addr, u32);

/// The lab's.
pub const LAB: Inside = (Ipv4Addr::new(192, 168, 0, 0), 16);

/// A capture at the provider's end of an uplink.
#[derive(Debug)]
pub struct LeakWatch {
    socket: OwnedFd,
    name: String,
}

impl LeakWatch {
    /// Watches what comes in at an interface of this host.
    pub fn on(host: &Host, interface: &str, inside: Inside) -> Self {
        let name = format!("{} {interface}", host.namespace);
        let socket =
            host.within(|| open(interface, inside)).unwrap_or_else(|error| panic!("watch {name}: {error}"));
        Self { socket, name }
    }

    /// Every packet with an inside address that came in so far.
    pub fn leaks(&self) -> Vec<String> {
        let mut buffer = vec![0; 1 << 17];
        let mut leaks = Vec::new();
        loop {
            match wire::receive(&self.socket, &mut buffer, Duration::ZERO) {
                Ok(Some(frame)) => leaks.push(frame.decoded.to_string()),
                Ok(None) => break,
                // The link went down, or its interface is gone: told once, and no reason to stop reading.
                Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => {}
                Err(error) => panic!("read what leaked to {}: {error}", self.name),
            }
        }
        leaks
    }
}

/// A packet socket with a filter of the kernel's: what no test is about costs none anything.
fn open(interface: &str, (network, length): Inside) -> io::Result<OwnedFd> {
    let statement = |code: u32, operand: u32| libc::sock_filter {
        code: u16::try_from(code).expect("codes have 16 bits"),
        jt: 0,
        jf: 0,
        k: operand,
    };
    let jump = |operand: u32, yes: u8, no: u8| libc::sock_filter {
        jt: yes,
        jf: no,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, operand)
    };
    let load = |size: u32, at: u32| statement(libc::BPF_LD | size | libc::BPF_ABS, at);
    let mask = statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, u32::MAX << (32 - length));
    let network = network.to_bits();
    #[expect(clippy::cast_sign_loss, reason = "offsets of this kind are large numbers to the filter")]
    let packet_type = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let mut program = [
        load(libc::BPF_B, packet_type),
        jump(u32::from(libc::PACKET_OUTGOING), 9, 0),
        load(libc::BPF_H, 12),
        jump(0x0800, 0, 7),
        load(libc::BPF_W, 26),
        mask,
        jump(network, 3, 0),
        load(libc::BPF_W, 30),
        mask,
        jump(network, 0, 1),
        statement(libc::BPF_RET | libc::BPF_K, u32::MAX),
        statement(libc::BPF_RET | libc::BPF_K, 0),
    ];
    let filter = libc::sock_fprog {
        len: u16::try_from(program.len()).expect("a short program"),
        filter: program.as_mut_ptr(),
    };
    let socket = wire::open_socket(interface)?;
    let length = libc::socklen_t::try_from(size_of_val(&filter)).expect("a small structure");
    // SAFETY: the pointer and the length are those of `filter`, which points to as many instructions as it says.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const filter).cast(),
            length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // What came before the filter was there.
    while wire::receive(&socket, &mut vec![0; 1 << 17], Duration::ZERO)?.is_some() {}
    Ok(socket)
}
