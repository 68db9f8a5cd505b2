//! TCP between real kernels: bulk data with every offload, many short connections, and what errors make of `connect`.

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use nat_tests::Packet;
use rustix::net::sockopt;

use crate::stage::{Stage, scaled};

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

/// What goes each way.
fn bulk() -> usize {
    scaled(16 << 20, 1 << 30)
}

/// A run of bytes whose order shows: a prime length meets no boundary twice.
fn pattern(seed: u8) -> Vec<u8> {
    (0..65_521_u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0] ^ seed).collect()
}

fn send_pattern(mut stream: &TcpStream, seed: u8) {
    let pattern = pattern(seed);
    for _ in 0..bulk() / pattern.len() {
        stream.write_all(&pattern).unwrap();
    }
    stream.shutdown(std::net::Shutdown::Write).unwrap();
}

fn check_pattern(mut stream: &TcpStream, seed: u8, setting: &str) {
    let pattern = pattern(seed);
    let mut buffer = vec![0; pattern.len()];
    for round in 0..bulk() / pattern.len() {
        stream.read_exact(&mut buffer).unwrap_or_else(|error| panic!("{setting}: round {round}: {error}"));
        assert!(buffer == pattern, "{setting}: other bytes in round {round}");
    }
    assert_eq!(stream.read(&mut buffer).unwrap(), 0, "{setting}: more than was sent");
}

/// The case asks for 200 000 connections from 28 000 ports; this is the same turn-over in a hundredth of the ports.
#[test]
fn tcp_30_ports_used_again_and_again_connect_every_time() {
    let connections = scaled(2_800, 200_000);
    let ports: u16 = scaled(280, 28_000);
    let stage = Stage::standard();
    let Stage { lab, .. } = &stage;
    for host in [&lab.a, &lab.s1] {
        host.nft("delete table ip mute");
    }
    lab.a.sysctl("ipv4.ip_local_port_range", &format!("32768 {}", 32_767 + ports));
    lab.a.sysctl("ipv4.tcp_tw_reuse", "1");
    let listener = lab.s1.within(|| TcpListener::bind("198.51.100.1:80")).unwrap();
    // Should a client fail, nobody waits for its connection for ever.
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
    let mut number = 0;
    while number < connections {
        let some = number..connections.min(number + 10_000);
        number = some.end;
        let (served, failed) = thread::scope(|scope| {
            let server = scope.spawn(|| some.clone().try_for_each(|_| serve(&listener)));
            let failed = lab.a.within(|| {
                let address = (lab.s1.address, 80).into();
                some.clone().find_map(|number| {
                    let stream = connect(&address);
                    let port = stream.local_addr().unwrap().port();
                    exchange(stream, number).err().map(|error| (number, port, error))
                })
            });
            (server.join().expect("the server"), failed)
        });
        if let Some((number, port, error)) = failed {
            for tap in [&stage.a, &stage.wan, &stage.s1] {
                println!("of the port, at {}:", tap.name());
                for seen in tap.captured() {
                    let of = |end: Option<SocketAddrV4>| end.is_some_and(|end| end.port() == port);
                    if of(seen.decoded.source()) || of(seen.decoded.destination()) {
                        println!("  {:?} {}", seen.at, seen.decoded);
                    }
                }
            }
            panic!("connection {number}, from port {port}: {error}; the server: {served:?}");
        }
        served.expect("the server");
        for tap in [&stage.a, &stage.wan, &stage.s1] {
            tap.clear();
        }
    }
    assert!(stage.session_count() <= usize::from(ports), "a port has one session: {}", stage.session_count());
}

/// Takes a connection, and says what it is told.
fn serve(listener: &TcpListener) -> io::Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut number = [0; 4];
    stream.read_exact(&mut number)?;
    stream.write_all(&number)
}

/// Says a number, hears it, and ends the connection.
fn exchange(mut stream: TcpStream, number: u32) -> io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&number.to_be_bytes())?;
    let mut echo = [0; 4];
    stream.read_exact(&mut echo)?;
    assert_eq!(u32::from_be_bytes(echo), number, "another connection's answer");
    // The client closes every other one first, so both ends have ports that rest.
    if !number.is_multiple_of(2) {
        assert_eq!(stream.read(&mut echo)?, 0, "nothing more");
    }
    Ok(())
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
