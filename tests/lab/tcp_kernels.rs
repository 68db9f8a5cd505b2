//! TCP between real kernels: bulk data with every offload, many short connections, and what errors make of `connect`.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nat_tests::Packet;
use rustix::net::sockopt;

use crate::stage::Stage;

/// The errno that a client's `connect` ends with, as its own kernel sees the error.
#[test]
fn tcp_25_errors_about_a_syn_end_connect_as_they_should() {
    let stage = Stage::standard();
    stage.lab.a.nft("delete table ip mute");
    for (code, errno) in [(0, libc::ENETUNREACH), (1, libc::EHOSTUNREACH), (3, libc::ECONNREFUSED)] {
        let port = 9000 + u16::from(code);
        let address = SocketAddr::from((stage.lab.s1.address, port));
        let error = thread::scope(|scope| {
            let client = scope.spawn(|| {
                stage.lab.a.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)))
            });
            let syn = stage
                .s1
                .recv_matching(Duration::from_secs(5), |seen| {
                    seen.tcp().is_some_and(|tcp| tcp.destination == port)
                })
                .expect("a SYN");
            stage.s1.send(&Packet::icmp_error("198.51.100.1", "203.0.113.1", 3, code, &syn.frame[14..]));
            client.join().unwrap().expect_err("nobody listens")
        });
        assert_eq!(error.raw_os_error(), Some(errno), "3/{code}: {error}");
    }
}

#[test]
fn tcp_27_bulk_data_is_whole_with_every_offload_setting() {
    let stage = Stage::standard();
    // Here the kernels talk themselves.
    for host in [&stage.lab.a, &stage.lab.s1] {
        host.nft("delete table ip mute");
    }
    for setting in ["as made", "offloads off", "GRO on"] {
        for host in [&stage.lab.a, &stage.lab.s1] {
            match setting {
                "offloads off" => host.offloads_off(),
                "GRO on" => host.gro_on(),
                _ => {}
            }
        }
        let listener = stage.lab.s1.within(|| TcpListener::bind("198.51.100.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let client = stage.lab.a.within(|| TcpStream::connect_timeout(&address, Duration::from_secs(5)));
        let client = client.unwrap_or_else(|error| panic!("{setting}: connect: {error}"));
        let (server, from) = listener.accept().unwrap();
        assert_eq!(from.ip().to_string(), "203.0.113.1", "{setting}");
        thread::scope(|scope| {
            for (stream, seed) in [(&client, 1), (&server, 2)] {
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
                scope.spawn(move || send_pattern(stream, seed));
            }
            scope.spawn(|| check_pattern(&server, 1, setting));
            scope.spawn(|| check_pattern(&client, 2, setting));
        });
        stage.a.clear();
        stage.s1.clear();
        stage.wan.clear();
    }
    for host in [&stage.lab.a, &stage.lab.s1] {
        assert_eq!(checksum_errors(&host.succeed("cat /proc/net/snmp")), 0, "{}", host.namespace);
    }
}

/// `InCsumErrors` of TCP, as `nstat` reads it: a line of names, then a line of numbers.
fn checksum_errors(table: &str) -> u64 {
    let mut lines = table.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let position = names.split(' ').position(|name| name == "InCsumErrors").unwrap();
    numbers.split(' ').nth(position).unwrap().parse().unwrap()
}

const BULK: usize = 16 << 20;

/// A run of bytes whose order shows: a prime length meets no boundary twice.
fn pattern(seed: u8) -> Vec<u8> {
    (0..65_521_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

fn send_pattern(mut stream: &TcpStream, seed: u8) {
    let pattern = pattern(seed);
    for _ in 0..BULK / pattern.len() {
        stream.write_all(&pattern).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
}

fn check_pattern(mut stream: &TcpStream, seed: u8, setting: &str) {
    let pattern = pattern(seed);
    let mut buffer = vec![0; pattern.len()];
    for round in 0..BULK / pattern.len() {
        stream.read_exact(&mut buffer).unwrap_or_else(|error| panic!("{setting}: round {round}: {error}"));
        assert!(buffer == pattern, "{setting}: other bytes in round {round}");
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0, "{setting}: more than was sent");
}

/// The case asks for 200 000 connections from 28 000 ports; this is the same turn-over in a hundredth of the ports.
#[test]
fn tcp_30_ports_used_again_and_again_connect_every_time() {
    const CONNECTIONS: u32 = 2_800;
    let stage = Stage::standard();
    let Stage { lab, .. } = &stage;
    for host in [&lab.a, &lab.s1] {
        host.nft("delete table ip mute");
    }
    lab.a.sysctl("ipv4.ip_local_port_range", "32768 33047");
    lab.a.sysctl("ipv4.tcp_tw_reuse", "1");
    let listener = lab.s1.within(|| TcpListener::bind("198.51.100.1:80")).unwrap();
    // Should a client fail, nobody waits for its connection for ever.
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                let mut number = [0; 4];
                stream.read_exact(&mut number).unwrap();
                stream.write_all(&number).unwrap();
            }
        });
        lab.a.within(|| {
            let address = (lab.s1.address, 80).into();
            for number in 0..CONNECTIONS {
                let mut stream = connect(&address);
                stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                stream.write_all(&number.to_be_bytes()).unwrap();
                let mut echo = [0; 4];
                stream.read_exact(&mut echo).unwrap_or_else(|error| panic!("connection {number}: {error}"));
                assert_eq!(u32::from_be_bytes(echo), number);
                // The client closes every other one first, so both ends have ports that rest.
                if number % 2 == 0 {
                    drop(stream);
                } else {
                    assert_eq!(stream.read(&mut echo).unwrap(), 0);
                }
            }
        });
    });
    assert!(stage.session_count() <= 280, "a port has one session: {}", stage.session_count());
}

/// A connection, as soon as the client's own kernel has a port for it.
fn connect(address: &SocketAddr) -> TcpStream {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let since = Instant::now();
        match TcpStream::connect_timeout(address, Duration::from_secs(5)) {
            // A SYN that had to be sent again would take a second.
            Ok(stream) if since.elapsed() < Duration::from_millis(900) => return stream,
            Ok(_) => panic!("the first SYN was lost"),
            Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && Instant::now() < deadline => {
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => panic!("connect: {error}"),
        }
    }
}
