//! VLAN tags on the daemon's own way, as `nat-ebpf`'s `vlan` has them in the fast path.

use std::mem;

use nat_common::vlan::Tags;
use xdp::Packet;

/// `SIOCETHTOOL`.
const ETHTOOL: libc::Ioctl = 0x8946;
/// `ETHTOOL_GFLAGS`.
const GET_FLAGS: u32 = 0x25;
/// `ETH_FLAG_RXVLAN`.
const RECEIVE_VLAN: u32 = 1 << 8;

/// Length of the two MACs, which tags come after.
const MACS: usize = 12;

/// Puts a frame into a VLAN, or into none, whatever it was in; its priority goes along. `false` if there is no room.
pub fn retag(packet: &mut Packet, tags: Tags) -> bool {
    let Some(came) = Tags::of_frame(packet) else { return false };
    let tags = tags.with_priority_of(came);
    if tags == came {
        return true;
    }
    let (Some(macs), Ok(longer)) = (
        packet.first_chunk::<MACS>().copied(),
        i32::try_from(tags.length()).and_then(|new| i32::try_from(came.length()).map(|old| new - old)),
    ) else {
        return false;
    };
    if packet.adjust_head(-longer).is_err() || packet.len() < MACS + tags.length() {
        return false;
    }
    packet[..MACS].copy_from_slice(&macs);
    let bytes = tags.0.to_ne_bytes();
    packet[MACS..MACS + tags.length()].copy_from_slice(&bytes[..tags.length()]);
    true
}

/// `struct ethtool_value`
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether a device takes the tags off frames before any program sees them. `false` where it does not tell.
pub fn are_hidden(device: &str) -> bool {
    let Ok(socket) =
        rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)
    else {
        return false;
    };
    let mut value = EthtoolValue { command: GET_FLAGS, data: 0 };
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    let name = device.as_bytes();
    if name.len() >= request.ifr_name.len() {
        return false;
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    // SAFETY: the request names an ethtool_value that lives through the call, which writes nothing else.
    let answer = unsafe { libc::ioctl(std::os::fd::AsRawFd::as_raw_fd(&socket), ETHTOOL, &raw mut request) };
    answer == 0 && value.data & RECEIVE_VLAN != 0
}
