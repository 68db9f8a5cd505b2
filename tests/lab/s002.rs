//! Founding document 002: two users, one server, and the table of states between them.

use std::{
    io::{Read as _, Write as _},
    net::{Shutdown, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use nat_tests::Packet;
use rustix::net::sockopt;

use crate::stage::{Stage, public, source};

const WEB: &str = "198.51.100.1:80";

#[test]
fn s002_01_the_table_is_the_documents() {
    let stage = Stage::standard();
    let tcp = |client: &str| (client.to_owned(), WEB.to_owned(), "tcp", stage.connect(client, WEB));
    let mut entries = ["192.168.1.10:52909", "192.168.1.10:39163", "192.168.1.11:39163"].map(tcp).to_vec();
    let seen = source(&stage.crosses(&stage.udp("192.168.1.10:4984", "198.51.100.2:53")));
    entries.push(("192.168.1.10:4984".to_owned(), "198.51.100.2:53".to_owned(), "udp", seen));
    // The second computer has another port, all others keep theirs.
    let kept = [52_909, 39_163, 4984].map(public);
    assert_eq!([0, 1, 3].map(|entry: usize| entries[entry].3.clone()), kept);
    assert_ne!(entries[2].3, public(39_163));
    let mut listed: Vec<_> = stage.gateway.sessions();
    for (inside, remote, protocol, outside) in entries {
        let position = listed.iter().position(|session| {
            session["protocol"] == protocol
                && session["inside"] == inside.as_str()
                && session["remote"] == remote.as_str()
                && session["outside"] == outside.as_str()
        });
        let position =
            position.unwrap_or_else(|| panic!("{inside} > {remote} as {outside} is not in {listed:?}"));
        listed.remove(position);
    }
    assert!(listed.is_empty(), "and nothing else: {listed:?}");
}

/// Both users draw their ports from the same few, so most connections meet one of the other's.
#[test]
fn s002_04_a_thousand_pages_each_and_never_the_others() {
    const PAGES: usize = 1000;
    let stage = Stage::standard();
    let Stage { lab, .. } = &stage;
    for host in [&lab.a, &lab.b, &lab.s1] {
        host.nft("delete table ip mute");
    }
    for host in [&lab.a, &lab.b] {
        host.sysctl("ipv4.ip_local_port_range", "32768 34815");
    }
    let listener = lab.s1.within(|| TcpListener::bind(WEB)).unwrap();
    // Should a client fail, nobody waits for its connection for ever.
    sockopt::set_socket_timeout(&listener, sockopt::Timeout::Recv, Some(Duration::from_secs(10))).unwrap();
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..PAGES {
                    serve(listener.accept().unwrap().0);
                }
            });
        }
        for (host, user) in [(&lab.a, "alice"), (&lab.b, "bob")] {
            scope.spawn(move || {
                host.within(|| {
                    for number in 0..PAGES {
                        let cookie = format!("{user} {number}");
                        assert_eq!(fetch(&cookie), format!("HTTP/1.0 200 OK\r\n\r\nfor {cookie}"));
                    }
                });
            });
        }
    });
}

/// One URL for all; whose page it is stands in the cookie.
fn fetch(cookie: &str) -> String {
    let mut stream = TcpStream::connect_timeout(&WEB.parse().unwrap(), Duration::from_secs(5)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET /inbox HTTP/1.0\r\nCookie: {cookie}\r\n\r\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap_or_else(|error| panic!("{cookie}: {error}"));
    page
}

fn serve(mut stream: TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut request = String::new();
    stream.read_to_string(&mut request).unwrap();
    let cookie = request.lines().find_map(|line| line.strip_prefix("Cookie: ")).unwrap_or("nobody");
    write!(stream, "HTTP/1.0 200 OK\r\n\r\nfor {cookie}").unwrap();
}

/// What a hole punched through the gateway admits, and how the listing tells.
#[test]
fn s002_05_any_source_where_the_rule_says_so() {
    for (filtering, admitted) in [("endpoint-independent", true), ("address-and-port-dependent", false)] {
        let stage = Stage::snat(&format!("filtering = \"{filtering}\""));
        let mapped = source(&stage.crosses(&stage.udp("192.168.1.10:40000", "198.51.100.1:1000")));
        let stranger = Packet::udp("198.51.100.2:9", mapped.as_str()).payload("punch");
        if admitted {
            stage.reaches(&stranger, &stage.a);
        } else {
            stage.stopped(&stranger, &stage.a);
        }
        let sessions = stage.gateway.sessions();
        assert!(sessions.iter().all(|session| session["filtering"] == filtering), "{sessions:?}");
    }
}
