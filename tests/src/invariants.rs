//! What holds for every packet of every case: right checksums, one hop less to live, no private address outside,
//! nothing changed that nobody asked for.

use std::net::Ipv4Addr;

use crate::{
    decode::{Decoded, Icmp, Ip, Transport},
    wire::{Captured, Direction},
};

/// INV-1 and INV-3 over everything that came in at `captured`'s tap, where that tap stands on the WAN: valid
/// checksums, no RFC 1918 address in a header or a quote, no source but `public`.
///
/// Frames whose checksum the sending kernel left to its hardware are not judged for it.
pub fn assert_wan(captured: &[Captured], public: &[Ipv4Addr]) {
    check_wan(captured, public).unwrap_or_else(|broken| panic!("{broken}"));
}

/// The judgement of [`assert_wan`], for a test that expects it to be bad.
pub fn check_wan(captured: &[Captured], public: &[Ipv4Addr]) -> Result<(), String> {
    for frame in captured.iter().filter(|frame| frame.direction == Direction::Incoming) {
        let Some(ip) = &frame.decoded.ip else { continue };
        check_checksums(frame)?;
        if let Some(private) = private_address(ip) {
            return Err(format!("INV-3: the private address {private} is on the WAN in {ip}"));
        }
        if !public.contains(&ip.source) {
            return Err(format!("INV-3: the source of {ip} is none of {public:?}"));
        }
    }
    Ok(())
}

/// INV-1 over everything that came in at `captured`'s tap.
pub fn assert_lan(captured: &[Captured]) {
    for frame in captured.iter().filter(|frame| frame.direction == Direction::Incoming) {
        check_checksums(frame).unwrap_or_else(|broken| panic!("{broken}"));
    }
}

/// INV-2 and INV-4: `after` is `before` with other addresses, ports or ids, and `hops` hops later.
pub fn assert_translated(before: &Decoded, after: &Decoded, hops: u8) {
    let (old, new) = (before.ip(), after.ip());
    assert_eq!(old.ttl - hops, new.ttl, "INV-2: {hops} hop(s) from {old} to {new}");
    let header = |ip: &Ip| (ip.tos, ip.df, ip.more_fragments, ip.offset, ip.total_length, ip.protocol);
    assert_eq!(header(old), header(new), "INV-4: the IP header of {old} became that of {new}");
    assert_eq!(old.options(), new.options(), "INV-4: IP options from {old} to {new}");
    match (&old.transport, &new.transport) {
        (Transport::Udp(old_udp), Transport::Udp(new_udp)) => {
            assert_eq!(old_udp.length, new_udp.length, "INV-4: {old} became {new}");
            assert_eq!(old_udp.checksum == 0, new_udp.checksum == 0, "INV-4: {old} became {new}");
            assert_eq!(old_udp.payload, new_udp.payload, "INV-4: {old} became {new}");
        }
        (Transport::Tcp(old_tcp), Transport::Tcp(new_tcp)) => {
            let (mut old_tcp, new_tcp) = (old_tcp.clone(), new_tcp.clone());
            (old_tcp.source, old_tcp.destination) = (new_tcp.source, new_tcp.destination);
            assert_eq!(old_tcp, new_tcp, "INV-4: {old} became {new}");
        }
        (Transport::Icmp(old_icmp), Transport::Icmp(new_icmp)) => {
            let fixed = |icmp: &Icmp| (icmp.kind, icmp.code, icmp.seq);
            assert_eq!(fixed(old_icmp), fixed(new_icmp), "INV-4: {old} became {new}");
            if old_icmp.quoted.is_none() {
                assert_eq!(old_icmp.payload, new_icmp.payload, "INV-4: {old} became {new}");
            }
        }
        _ => assert_eq!(old.body, new.body, "INV-4: {old} became {new}"),
    }
}

fn check_checksums(frame: &Captured) -> Result<(), String> {
    if frame.checksum_ready {
        frame.decoded.checksums_valid().map_err(|wrong| format!("INV-1: {wrong}"))?;
    }
    Ok(())
}

/// A private address in the header, in its options, or in what it quotes.
fn private_address(ip: &Ip) -> Option<Ipv4Addr> {
    let in_options = ip.options().windows(4).map(|bytes| {
        let octets: [u8; 4] = bytes.try_into().expect("windows of four");
        Ipv4Addr::from(octets)
    });
    let own = [ip.source, ip.destination].into_iter().chain(in_options).find(Ipv4Addr::is_private);
    own.or_else(|| private_address(ip.icmp()?.quoted.as_deref()?))
}
