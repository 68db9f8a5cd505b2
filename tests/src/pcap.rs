//! Captures as files, for programs that read them.

use std::{fs, path::Path};

use crate::wire::Captured;

/// Writes frames as a pcap file: version 2.4, microseconds, Ethernet.
pub fn write<'a>(file: &Path, captured: impl IntoIterator<Item = &'a Captured>) {
    let mut pcap: Vec<u8> = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 1 << 17, 1].map(u32::to_ne_bytes).concat();
    for captured in captured {
        let length = u32::try_from(captured.frame.len()).expect("a frame");
        pcap.extend([0, 0, length, length].map(u32::to_ne_bytes).concat());
        pcap.extend(&captured.frame);
    }
    fs::write(file, pcap).unwrap_or_else(|error| panic!("write {}: {error}", file.display()));
}
