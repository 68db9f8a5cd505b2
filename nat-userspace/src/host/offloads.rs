//! What a device does to frames before any program sees them, as the kernel tells by ethtool's old flags.
#![expect(unsafe_code, reason = "no crate wraps SIOCETHTOOL")]

use std::{mem, os::fd::AsRawFd as _};

use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCETHTOOL`.
const ETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`.
const RECEIVE_VLAN: u32 = 1 << 8;
/// `ETH_FLAG_LRO`.
const LARGE_RECEIVE: u32 = 1 << 15;

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether a device takes VLAN tags off frames. `false` where it does not tell.
pub fn hides_tags(device: &str) -> bool {
    flags(device).is_some_and(|flags| flags & RECEIVE_VLAN != 0)
}

/// Whether a device merges the segments of a connection into frames larger than its MTU (LRO). `false` where it does not tell.
pub fn merges_segments(device: &str) -> bool {
    flags(device).is_some_and(|flags| flags & LARGE_RECEIVE != 0)
}

fn flags(device: &str) -> Option<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    let mut value = EthtoolValue { command: GET_FLAGS, data: 0 };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = device.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return None;
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an ethtool_value that lives through the call, which writes nothing else.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) };
    (answer == 0).then_some(value.data)
}
