//! VLAN tags on the daemon's own way, as `nat-ebpf`'s `vlan` has them in the fast path.

use nat_common::vlan::Tags;
use xdp::Packet;

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
