//! pcapng files, as much of them as a capture needs: a section, an interface block for each name, packets with comments
//! (draft-ietf-opsawg-pcapng).

#![deny(unsafe_code)]

use std::io::{self, Write};
use std::time::Duration;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;

const END: u16 = 0;
const COMMENT: u16 = 1;
const USER_APPLICATION: u16 = 4;
const NAME: u16 = 2;
const RESOLUTION: u16 = 9;
/// Timestamps count nanoseconds.
const NANOSECONDS: u8 = 9;

/// A file that is being written.
pub struct Capture<W: Write> {
    out: W,
    snap: u32,
    interfaces: Vec<String>,
}

impl<W: Write> Capture<W> {
    /// A file without anything in it. Of each frame at most `snap` bytes will come.
    pub fn new(out: W, snap: u32) -> Self {
        Self { out, snap, interfaces: Vec::new() }
    }

    /// Writes the section's header.
    pub fn begin(&mut self) -> io::Result<()> {
        let mut body = Vec::new();
        body.extend(BYTE_ORDER.to_ne_bytes());
        body.extend([1_u16, 0].map(u16::to_ne_bytes).as_flattened());
        // How long the section is nobody knows.
        body.extend(u64::MAX.to_ne_bytes());
        option(&mut body, USER_APPLICATION, concat!("natgw ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(&mut body, END, &[]);
        self.block(SECTION, &body)?;
        self.flush()
    }

    /// Writes a frame of `length` bytes, of which some are there. The interface is made if it is new.
    pub fn packet(
        &mut self,
        interface: &str,
        time: Duration,
        frame: &[u8],
        length: u32,
        comment: &str,
    ) -> io::Result<()> {
        let number = match self.interfaces.iter().position(|known| known == interface) {
            Some(number) => number,
            None => self.interface(interface)?,
        };
        let short =
            |length: usize| u32::try_from(length).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        let time = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).to_be_bytes();
        let [high, low] = [&time[..4], &time[4..]].map(|half| half.try_into().map_or(0, u32::from_be_bytes));
        let mut body = Vec::new();
        for word in [short(number)?, high, low, short(frame.len())?, length] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(frame);
        pad(&mut body);
        option(&mut body, COMMENT, comment.as_bytes());
        option(&mut body, END, &[]);
        self.block(ENHANCED_PACKET, &body)
    }

    /// Has what was written reach its reader.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    fn interface(&mut self, name: &str) -> io::Result<usize> {
        let mut body = Vec::new();
        body.extend([ETHERNET, 0].map(u16::to_ne_bytes).as_flattened());
        body.extend(self.snap.to_ne_bytes());
        option(&mut body, NAME, name.as_bytes());
        option(&mut body, RESOLUTION, &[NANOSECONDS]);
        option(&mut body, END, &[]);
        self.block(INTERFACE, &body)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() - 1)
    }

    /// Writes a block in one piece, so that a capture which is interrupted ends with a whole one.
    fn block(&mut self, kind: u32, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 12).map_err(|_| io::ErrorKind::InvalidInput)?.to_ne_bytes();
        let block = [&kind.to_ne_bytes()[..], &length, body, &length].concat();
        self.out.write_all(&block)
    }
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_ne_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_ne_bytes());
    body.extend(value);
    pad(body);
}

/// Everything begins at a multiple of four bytes.
fn pad(body: &mut Vec<u8>) {
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kinds and bodies of a file's blocks.
    fn blocks(mut file: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes[..4].try_into().expect("four bytes"));
        let mut blocks = Vec::new();
        while !file.is_empty() {
            let length = word(&file[4..]) as usize;
            assert_eq!((length % 4, word(&file[length - 4..]) as usize), (0, length));
            blocks.push((word(file), file[8..length - 4].to_vec()));
            file = &file[length..];
        }
        blocks
    }

    #[test]
    fn a_file_has_a_section_interfaces_and_packets() {
        let mut file = Vec::new();
        let mut capture = Capture::new(&mut file, 96);
        capture.begin().expect("a Vec takes all");
        let time = Duration::new(1_700_000_000, 123_456_789);
        for interface in ["lan in", "wan out", "lan in"] {
            capture.packet(interface, time, b"frame", 60, "a rule").expect("a Vec takes all");
        }
        let blocks = blocks(&file);
        let kinds: Vec<u32> = blocks.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, ENHANCED_PACKET, INTERFACE, ENHANCED_PACKET, ENHANCED_PACKET]);
        let words: Vec<u32> = blocks[5].1[..20]
            .chunks(4)
            .map(|word| u32::from_ne_bytes(word.try_into().expect("four bytes")))
            .collect();
        let nanoseconds = u64::from(words[1]) << 32 | u64::from(words[2]);
        assert_eq!((words[0], nanoseconds, &words[3..]), (0, 1_700_000_000_123_456_789, &[5, 60][..]));
        assert_eq!(&blocks[5].1[20..28], b"frame\0\0\0");
    }
}
