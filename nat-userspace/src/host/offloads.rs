//! What a device does to frames before any program sees them, as the kernel tells by ethtool's old flags.
#![expect(unsafe_code, reason = "no crate wraps SIOCETHTOOL")]

use std::{io, mem, os::fd::AsRawFd as _};

use rustix::net::{AddressFamily, SocketType, socket};

/// `SIOCETHTOOL`.
const ETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETHTOOL_GGRO`.
const GET_MERGING: u32 = 0x2b;
/// `ETHTOOL_SGRO`.
const SET_MERGING: u32 = 0x2c;
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

/// Has the kernel merge a device's received segments before they are routed (GRO), or not. Whether that was otherwise
/// before.
///
/// # Errors
///
/// The driver's, or that the name is no device's.
pub fn merge_before_routing(device: &str, on: bool) -> io::Result<bool> {
    let changes = (ask(device, GET_MERGING, 0)? != 0) != on;
    if changes {
        ask(device, SET_MERGING, on.into())?;
    }
    Ok(changes)
}

fn flags(device: &str) -> Option<u32> {
    ask(device, GET_FLAGS, 0).ok()
}

/// Gives a command with a value; the value that comes back.
fn ask(device: &str, command: u32, data: u32) -> io::Result<u32> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    let mut value = EthtoolValue { command, data };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = device.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an ethtool_value that lives through the call, which writes nothing else.
    if unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL, &raw mut request) } == 0 {
        Ok(value.data)
    } else {
        Err(io::Error::last_os_error())
    }
}
