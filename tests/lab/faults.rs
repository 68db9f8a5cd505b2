//! What goes wrong around a gateway, one thing at a time; `cargo xtask torture` has them all at once.

use std::{
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Lab, Packet, gateway};
use rustix::{
    mount::{UnmountFlags, unmount},
    process::Signal,
};

use crate::stage::{Stage, public, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

/// Without its link an inside host's address is one that only the default route leads to.
#[test]
fn an_inside_host_whose_link_is_down_is_not_sought_outside() {
    let more = "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n\
                [[static]]\nexternal = \"203.0.113.2\"\ninternal = \"192.168.1.12\"\n";
    let stage = Stage::with(&format!("{}filtering = \"endpoint-independent\"\n{more}", gateway::STANDARD));
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let of_tcp = stage.connect("192.168.1.11:40001", SERVER);
    let everything = |stage: &Stage| {
        stage.send(&stage.udp(SERVER, &mapped));
        stage.send(&stage.data(SERVER, &of_tcp));
        stage.send(&stage.udp("198.51.100.2:9", &mapped));
        stage.send(&stage.udp("198.51.100.2:9", &public(8080)));
        stage.send(&stage.udp("198.51.100.2:9", "203.0.113.2:9"));
        stage.send(&Packet::echo_request("198.51.100.2", "203.0.113.2", 7, 1));
    };
    stage.reaches(&stage.udp("198.51.100.2:8", &mapped), &stage.a);
    stage.reaches(&stage.udp("198.51.100.2:8", &public(8080)), &stage.b);
    stage.reaches(&stage.udp("198.51.100.2:8", "203.0.113.2:9"), &stage.c);
    let gateway = &stage.lab.gateway;
    gateway.ip("link set lan down");
    // The stage's own judgement is that no inside address was seen on the WAN.
    for _ in 0..5 {
        everything(&stage);
        seconds(0.2);
    }
    stage.lan_is_silent();
    gateway.ip("link set lan up");
    stage.gateway.wait_until("traffic passes again", Duration::from_secs(8), |_| {
        let sent = stage.send(&stage.udp(SERVER, &mapped));
        stage.a.recv_matching(Duration::from_millis(200), |seen| seen.payload() == sent.payload()).is_some()
    });
    stage.reaches(&stage.data(SERVER, &of_tcp), &stage.b);
    stage.reaches(&stage.udp("198.51.100.2:9", &public(8080)), &stage.b);
    stage.reaches(&stage.udp("198.51.100.2:9", "203.0.113.2:9"), &stage.c);
}

/// Maps and links live on with their daemon, wherever their pins have gone.
#[test]
fn an_unmounted_bpffs_stops_nothing() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for restarted in [false, true] {
        if restarted {
            // The links of one who has taken over are held as well as those of one who attached.
            stage.gateway.kill();
            stage.gateway.restart();
        }
        let bpffs = stage.gateway.configuration().with_file_name("bpf");
        unmount(&bpffs, UnmountFlags::DETACH).unwrap();
        seconds(0.5);
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.carries_the_next();
        stage.gateway.text(&["reload"]);
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        if !restarted {
            // Its end is the end of everything then: the next begins anew, with a bpffs that is there again.
            stage.gateway.kill();
            stage.gateway.wait_until("the kernel has let go of the links", Duration::from_secs(30), |_| {
                !stage.lab.gateway.succeed("ip -details link show").contains("prog/xdp")
            });
            rustix::mount::mount("bpf", &bpffs, "bpf", rustix::mount::MountFlags::empty(), None).unwrap();
            stage.gateway.restart();
            assert_eq!(stage.session_count(), 0);
            assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
        }
    }
}

/// So many changes of the host that their socket overflows while natgw is held up: it looks for itself then.
#[test]
fn lost_netlink_messages_are_made_up_for() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let gateway = &stage.lab.gateway;
    stage.gateway.signal(Signal::STOP);
    // Each is answered by a message of some hundred bytes; the socket's buffer is 4 MiB, twice that in the kernel.
    let mut routes = String::new();
    for number in 0..40_000_u32 {
        let [_, _, high, low] = number.to_be_bytes();
        writeln!(routes, "route add 10.{}.{}.{low}/32 dev lan", high / 250, high % 250).unwrap();
    }
    let batch = stage.gateway.configuration().with_file_name("routes");
    fs::write(&batch, &routes).unwrap();
    gateway.ip(&format!("-batch {}", batch.display()));
    // And what it has to see, last: the way out has another next hop, and there is a new address.
    stage.lab.isp.ip("addr add 203.0.113.253/24 dev gw");
    gateway.ip("addr add 203.0.113.9/24 dev wan");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("addr add 203.0.113.9/24 dev wan");
    gateway.ip("route replace default via 203.0.113.253");
    stage.gateway.signal(Signal::CONT);
    stage.gateway.wait_until("it translates by the new address", Duration::from_secs(8), |_| {
        let sent = stage.send(&stage.udp("192.168.1.11:40001", SERVER));
        let seen =
            stage.s1.recv_matching(Duration::from_millis(200), |seen| seen.payload() == sent.payload());
        seen.is_some_and(|seen| source(&seen.decoded).starts_with("203.0.113.9:"))
    });
    assert!(stage.gateway.log().contains("lost"), "the overrun is told:\n{}", stage.gateway.log());
    stage.stopped(&stage.udp(SERVER, &mapped), &stage.a);
}

/// The rings between kernel and daemon are full while it is held up; what is established does not pass them.
#[test]
fn full_rings_cost_new_flows_only() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let lost = || stage.gateway.drops().get("no_daemon").copied().unwrap_or_default();
    let before = lost();
    stage.gateway.signal(Signal::STOP);
    // More than are lent to the kernel to receive into.
    for number in 0..24_000_u16 {
        stage.send(&stage.udp(&format!("192.168.1.12:{}", 20_000 + number), "198.51.100.2:9"));
        if number.is_multiple_of(1200) {
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        }
    }
    stage.gateway.signal(Signal::CONT);
    let resumed = Instant::now();
    stage.gateway.wait_until("new flows pass again", Duration::from_secs(8), |_| {
        let sent = stage.send(&stage.udp("192.168.1.11:9", "198.51.100.2:9"));
        let patience = Duration::from_millis(100);
        stage.s2.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    let (status, waited) = (lost(), resumed.elapsed());
    assert!(status > before, "{status} after {before}: the rings were not full");
    assert!(waited < Duration::from_secs(5), "new flows wait {waited:?}");
    stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
}

/// Clients that hang take seats, which they lose after a while; packets do not notice, and nothing is left of them.
#[test]
fn clients_that_hang_or_talk_nonsense_take_nothing_with_them() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", stage.gateway.id().unwrap())).unwrap().count();
    let before = descriptors();
    let half = b"{\"version\":1,\"request\":{\"ver".as_slice();
    let texts = [b"".as_slice(), half, b"\xff\xfe\0", &[b'['; 5000]];
    let hanging: Vec<UnixStream> = texts
        .iter()
        .cycle()
        .take(60)
        .filter_map(|text| {
            let mut client = UnixStream::connect(stage.gateway.socket()).ok()?;
            client.set_nonblocking(true).ok()?;
            let _ = client.write_all(text);
            Some(client)
        })
        .collect();
    assert!(hanging.len() >= 32, "{} clients could connect", hanging.len());
    // Those beyond the bound are told, and hung up on.
    let mut last = UnixStream::connect(stage.gateway.socket()).unwrap();
    last.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut told = String::new();
    last.read_to_string(&mut told).unwrap();
    assert!(told.contains("serves 32 clients"), "{told}");
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.carries_the_next();
    stage.gateway.wait_until("there are seats again", Duration::from_secs(12), |gateway| {
        gateway.output(&["status"]).status.success()
    });
    drop(hanging);
    stage.gateway.wait_until("they have left nothing", Duration::from_secs(8), |_| descriptors() <= before);
}

/// The kernel takes no more entries into the table's maps: sessions find no room, are refused, and those there are go on.
#[test]
fn a_table_that_cannot_grow_refuses_and_takes_from_nobody() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    // Whoever inserts is told EPERM.
    stage.lab.gateway.succeed(&format!("bpftool map freeze pinned {}", stage.gateway.pin("LINES")));
    let dropped = || stage.gateway.drops().values().sum::<u64>();
    let before = dropped();
    // The first segment has room for 16,384.
    for number in 0..20_000_u16 {
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 20_000 + number), "198.51.100.2:9"));
        if number.is_multiple_of(1000) {
            seconds(0.05);
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        }
    }
    stage.gateway.wait_until("it says so", Duration::from_secs(8), |gateway| {
        gateway.log().contains("no memory for more sessions")
    });
    stage.gateway.wait_until("sessions are refused", Duration::from_secs(20), |_| dropped() > before);
    let sessions = stage.session_count();
    assert!((1000..16_384).contains(&sessions), "{sessions} sessions");
    stage.stopped(&stage.udp("192.168.1.12:9", "198.51.100.2:9"), &stage.s2);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
    let log = stage.gateway.log();
    assert_eq!(log.matches("for want of memory").count(), 1, "one line, however many are refused:\n{log}");
    // What ends makes room, although waiting for running programs goes by such an insertion, too. Slots without lines, which
    // those who ask meanwhile are given, come back later than those that end, and must not be all that is tried.
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10"]);
    for port in 100..140 {
        stage.send(&stage.udp(&format!("192.168.1.12:{port}"), "198.51.100.2:9"));
    }
    stage.gateway.wait_until("there is room", Duration::from_secs(8), |_| {
        let sent = stage.send(&stage.udp("192.168.1.12:9", "198.51.100.2:9"));
        let patience = Duration::from_millis(200);
        stage.s2.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
}

/// No grant can be written: first packets are the daemon's, as before there were grants.
#[test]
fn grants_that_find_no_room_cost_nothing_but_the_daemons_time() {
    let stage = Stage::build(Lab::builder().forwarding(), gateway::STANDARD);
    stage.lab.gateway.succeed(&format!("bpftool map freeze pinned {}", stage.gateway.pin("GRANTED")));
    for port in 30_000..30_020 {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{port}"), SERVER));
    }
    seconds(0.1);
    stage.gateway.signal(Signal::STOP);
    stage.stopped_quickly(&stage.udp("192.168.1.10:40000", SERVER));
    stage.gateway.signal(Signal::CONT);
    stage.carries_the_next();
}

/// While more new flows come than can be opened, `status` is answered, limits of a source protect the others, and a
/// second after it all is as before.
#[test]
fn status_is_answered_in_a_flood_and_others_are_served() {
    let stage = Stage::with(&format!("{}[limits]\nsessions_per_source = 2000\n", gateway::STANDARD));
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let flood: Vec<Vec<u8>> = (0..20_000_u16)
        .map(|number| {
            let host = &stage.lab.c;
            let packet = Packet::udp((host.address, 20_000 + number), SERVER);
            packet.between(host.mac, host.next_hop).build()
        })
        .collect();
    let tap = stage.lab.c.tap();
    let begun = Instant::now();
    let mut times = Vec::new();
    thread::scope(|scope| {
        let flooding = scope.spawn(move || {
            while begun.elapsed() < Duration::from_secs(3) {
                for frame in &flood {
                    tap.send_frame(frame);
                }
            }
        });
        let mut port = 50_000;
        while !flooding.is_finished() {
            let asked = Instant::now();
            stage.gateway.text(&["status"]);
            times.push(asked.elapsed());
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
            // Others' new flows get through between the flood's, if not each at once.
            stage.gateway.wait_until("another host's flow opens", Duration::from_secs(3), |_| {
                let sent = stage.send(&stage.udp(&format!("192.168.1.11:{port}"), "198.51.100.2:9"));
                let patience = Duration::from_millis(200);
                stage.s2.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
            });
            port += 1;
        }
    });
    let over = Instant::now();
    println!("status: {times:?}");
    assert!(times.len() >= 3 && times.iter().max() < Some(&Duration::from_secs(1)), "{times:?}");
    stage.gateway.wait_until("it is as before", Duration::from_secs(5), |_| {
        let sent = stage.send(&stage.udp("192.168.1.11:9", "198.51.100.2:9"));
        let patience = Duration::from_millis(100);
        stage.s2.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    assert!(over.elapsed() < Duration::from_secs(1), "new flows wait {:?} after it", over.elapsed());
    stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
}
