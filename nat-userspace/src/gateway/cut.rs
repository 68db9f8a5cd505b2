//! Cutting packets that are too big for the way out and may be cut (RFC 791 section 3.2, RFC 1812
//! section 5.2.6), and numbering datagrams so that those of two inside hosts are told apart at the
//! far end (RFC 6864 section 5.3.1, RFC 7857 section 10).

use crate::hash::HashMap;

use nat_common::checksum::Sum;
use nat_common::wire::{DONT_FRAGMENT, FRAGMENT_OFFSET, MORE_FRAGMENTS};

use super::random::Random;

/// Whether the packet whose IPv4 header begins at `network` may be cut.
pub(super) fn may_be_cut(frame: &[u8], network: usize) -> bool {
    read(frame, network + 6).is_some_and(|fragment| fragment & DONT_FRAGMENT == 0)
}

/// Cuts a packet into fragments of at most `mtu` bytes, in order, each a whole frame. A fragment
/// is cut further. `None` if its header contradicts itself or `mtu` leaves no room for data.
pub(super) fn cut(frame: &[u8], network: usize, mtu: usize) -> Option<Vec<Vec<u8>>> {
    let header_length = usize::from(frame.get(network)? & 0x0f) * 4;
    let total = usize::from(read(frame, network + 2)?);
    let fragment = read(frame, network + 6)?;
    let payload = frame.get(network + header_length..network + total)?;
    let room = mtu.checked_sub(header_length)? & !7;
    if room == 0 {
        return None;
    }
    let first_offset = fragment & FRAGMENT_OFFSET;
    let pieces = payload.chunks(room).count();
    let mut frames = Vec::with_capacity(pieces);
    for (index, piece) in payload.chunks(room).enumerate() {
        let is_last = index + 1 == pieces;
        let mut out = frame[..network + header_length].to_vec();
        out.extend_from_slice(piece);
        if index > 0 {
            drop_options(&mut out[network..network + header_length]);
        }
        let offset = first_offset + u16::try_from(index * room / 8).ok()?;
        let more = if is_last { fragment & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let flags = fragment & !(FRAGMENT_OFFSET | MORE_FRAGMENTS) | more | offset;
        write(&mut out, network + 2, u16::try_from(header_length + piece.len()).ok()?);
        write(&mut out, network + 6, flags);
        seal(&mut out[network..network + header_length]);
        frames.push(out);
    }
    Some(frames)
}

/// Writes a datagram's identification and mends the header's checksum.
pub(super) fn set_id(frame: &mut [u8], network: usize, id: u16) -> Option<()> {
    let header_length = usize::from(*frame.get(network)? & 0x0f) * 4;
    let header = frame.get_mut(network..network + header_length)?;
    header[4..6].copy_from_slice(&id.to_ne_bytes());
    seal(header);
    Some(())
}

/// Options that are for the first fragment only become padding in the others (RFC 791: the copied
/// flag).
fn drop_options(header: &mut [u8]) {
    let mut at = 20;
    while let Some(&kind) = header.get(at) {
        let length = match kind {
            0 => return,
            1 => 1,
            _ => usize::from(header.get(at + 1).copied().unwrap_or(1)).max(1),
        };
        if kind & 0x80 == 0 {
            let end = (at + length).min(header.len());
            header[at..end].fill(1);
        }
        at += length;
    }
}

/// Computes the header's checksum.
fn seal(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = Sum::ZERO.add_bytes(header).checksum();
    header[10..12].copy_from_slice(&checksum.to_ne_bytes());
}

fn read(frame: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]))
}

fn write(frame: &mut [u8], at: usize, word: u16) {
    if let Some(field) = frame.get_mut(at..at + 2) {
        field.copy_from_slice(&word.to_be_bytes());
    }
}

/// Identifications of fragmented datagrams behind an external address: counted for each source,
/// destination and protocol, so that one comes again only after 65,535 others.
#[derive(Default)]
pub(super) struct Identifications {
    recent: Counters,
    /// Counters that were not used since `recent` was begun; once that is full they begin anew, at random.
    earlier: Counters,
}

type Counters = HashMap<(u32, u32, u8), u16>;

/// Counters kept at once are at most twice as many.
const COUNTERS: usize = 65_536;

impl Identifications {
    /// The next identification, network byte order.
    pub(super) fn next(&mut self, source: u32, destination: u32, protocol: u8, random: &mut Random) -> u16 {
        if self.recent.len() >= COUNTERS {
            self.earlier = std::mem::take(&mut self.recent);
        }
        let key = (source, destination, protocol);
        let earlier = &self.earlier;
        let counter = self.recent.entry(key).or_insert_with(|| {
            earlier.get(&key).copied().unwrap_or_else(|| u16::try_from(random.below(65_536)).unwrap_or(0))
        });
        *counter = counter.wrapping_add(1);
        counter.to_be()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: usize) -> Vec<u8> {
        let mut frame = vec![0u8; 14];
        frame.extend_from_slice(&[0x45, 0, 0, 0, 0x12, 0x34, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend((0..payload).map(|n| u8::try_from(n % 251).unwrap()));
        write(&mut frame, 16, u16::try_from(20 + payload).unwrap());
        seal(&mut frame[14..34]);
        frame
    }

    /// behaviour RTR-09: 1500 bytes over 1400 are 1396 and 124, in order, one identification.
    #[test]
    fn rtr_09_sizes_and_offsets() {
        let frame = packet(1480);
        let pieces = cut(&frame, 14, 1400).unwrap();
        let totals: Vec<_> = pieces.iter().map(|piece| read(piece, 16).unwrap()).collect();
        assert_eq!(totals, [1396, 124]);
        assert_eq!(read(&pieces[0], 20), Some(MORE_FRAGMENTS));
        assert_eq!(read(&pieces[1], 20), Some(1376 / 8));
        let joined: Vec<u8> = pieces.iter().flat_map(|piece| piece[34..].to_vec()).collect();
        assert_eq!(joined, frame[34..]);
        for piece in &pieces {
            assert_eq!(read(piece, 18), Some(0x1234));
            assert_eq!(Sum::ZERO.add_bytes(&piece[14..34]).fold(), 0xffff);
        }
    }

    /// behaviour FRG-26: a fragment is cut further, its offset and MF kept.
    #[test]
    fn frg_26_a_fragment_is_cut_further() {
        let mut frame = packet(1480);
        write(&mut frame, 20, MORE_FRAGMENTS | 0xb9);
        let pieces = cut(&frame, 14, 1280).unwrap();
        assert_eq!(read(&pieces[0], 20), Some(MORE_FRAGMENTS | 0xb9));
        assert_eq!(read(&pieces[1], 20), Some(MORE_FRAGMENTS | (185 + 1256 / 8)));
    }
}
