//! What goes wrong around a gateway, one thing at a time; `cargo xtask torture` has them all at once.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Gateway, Lab, Packet, gateway};
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

/// SIGKILL at thirty moments, most of them of a start, under packets of every kind of flow; the thousand are
/// `cargo xtask torture`'s.
#[test]
fn killed_at_thirty_moments_nothing_established_is_lost() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let ping = source(&stage.crosses(&Packet::echo_request("192.168.1.12", "198.51.100.1", 7, 1)));
    let ping_port: u16 = ping.rsplit(':').next().unwrap().parse().unwrap();
    let mut outside: HashMap<String, String> = HashMap::new();
    for moment in 0..30_u16 {
        stage.gateway.launch(&[]);
        let moment_of_start = Duration::from_millis(u64::from(moment) * 37 % 500);
        // Every third lives until it serves, and dies soon after.
        let serves = moment.is_multiple_of(3);
        let (launched, mut first) = (Instant::now(), None);
        let mut number = 0_u16;
        loop {
            // New flows, which may be half written down when the end comes.
            let client = format!("192.168.1.10:{}", 20_000 + moment * 64 + number % 64);
            let opened = stage.send(&stage.udp(&client, "198.51.100.2:9"));
            let seen =
                stage.s2.recv_matching(Duration::from_millis(2), |seen| seen.payload() == opened.payload());
            if let Some(seen) = seen {
                outside.insert(client, source(&seen.decoded));
                first.get_or_insert_with(Instant::now);
            }
            number += 1;
            let lives_on = match first {
                _ if !serves => launched.elapsed() < moment_of_start,
                Some(first) => first.elapsed() < Duration::from_millis(u64::from(moment)),
                None => launched.elapsed() < Duration::from_secs(20),
            };
            if !lives_on {
                break;
            }
        }
        stage.gateway.kill();
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        let echo = Packet::echo_reply("198.51.100.1", nat_tests::lab::P1, ping_port, moment);
        stage.reaches(&echo.payload(moment.to_be_bytes()), &stage.c);
    }
    stage.gateway.restart();
    // Who had an endpoint has it still, and nobody else.
    assert!(!outside.is_empty(), "no new flow was ever opened");
    let mut owners = HashMap::new();
    for session in stage.gateway.sessions() {
        let text = |field: &str| session[field].as_str().unwrap().to_owned();
        let owner =
            owners.entry((text("protocol"), text("outside"))).or_insert_with(|| text("inside")).clone();
        assert_eq!(owner, text("inside"), "{session}");
    }
    for (client, endpoint) in outside.iter().take(100) {
        assert_eq!(&source(&stage.crosses(&stage.udp(client, "198.51.100.2:9"))), endpoint, "{client}");
    }
}

/// Started in the moment that the last one is gone, while the kernel still has its `AF_XDP` sockets: it waits for them.
/// Found by `cargo xtask torture`.
#[test]
fn a_start_right_after_the_end_finds_its_queues_free() {
    let mut stage = Stage::standard();
    stage.gateway.keep_fast_path();
    stage.gateway.restart();
    for round in 0..8 {
        // Some work for those who clean up.
        let address = format!("198.51.100.1:{}", 100 + round);
        stage.send(&stage.udp(CLIENT, &address));
        if round % 2 == 0 {
            stage.gateway.stop();
        } else {
            stage.gateway.kill();
        }
        stage.gateway.restart();
    }
    stage.carries_the_next();
}

/// Kept, it leaves its pins; ended without, nothing.
#[test]
fn what_was_kept_is_taken_along_by_the_next_that_is_not() {
    let lab = Lab::standard();
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    gateway.keep_fast_path();
    gateway.restart();
    gateway.stop();
    assert!(gateway.pins().iter().any(|pin| pin.starts_with("link-xdp")), "{:?}", gateway.pins());
    gateway.drop_fast_path();
    gateway.restart();
    gateway.stop();
    assert!(gateway.pins().is_empty(), "{:?}", gateway.pins());
    let links = lab.gateway.succeed("ip -details link show");
    assert!(!links.contains("prog/xdp"), "{links}");
}

/// What a start takes over is not loaded anew: having the verifier walk it again was four fifths of the time.
#[test]
fn new_flows_work_soon_after_a_start() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let loaded = programs(&stage);
    let mut times = Vec::new();
    for round in 0..8_u16 {
        stage.gateway.kill();
        seconds(0.1);
        let start = Instant::now();
        stage.gateway.launch(&[]);
        // Of a host that the daemon knows nothing of.
        let opened = (0_u16..).find_map(|number| {
            assert!(start.elapsed() < Duration::from_secs(20), "no new flow");
            let sent =
                stage.send(&stage.udp(&format!("192.168.1.12:{}", 2000 * (round + 1) + number), SERVER));
            let is_it = |seen: &nat_tests::Decoded| seen.payload() == sent.payload();
            stage.s1.recv_matching(Duration::from_millis(2), is_it)
        });
        times.push(opened.expect("one gets through").at.duration_since(start));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.gateway.wait_until("it answers", Duration::from_secs(8), |gateway| gateway.socket().exists());
        assert_eq!(programs(&stage), loaded);
    }
    println!("from a start to a new flow: {times:?}");
    // Others may be busy on this machine; they are not all the time.
    assert!(times.iter().min() < Some(&Duration::from_millis(300)), "{times:?}");
}

/// Another build has programs of its own, which take the others' places and pins; the tables stay.
#[test]
fn another_build_loads_its_own_programs() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let (loaded, pins) = (programs(&stage), stage.gateway.pins());
    let original = stage.gateway.program().to_owned();
    let other = stage.gateway.configuration().with_file_name("natgw-of-another-build");
    let mut binary = fs::read(&original).unwrap();
    // The object in it: 64 bits, little-endian, for BPF (247). The last byte of its identification is padding.
    let is_object = |at: &usize| {
        binary[*at..].starts_with(b"\x7fELF\x02\x01") && binary.get(at + 18..at + 20) == Some(&[247, 0])
    };
    let object = (1..binary.len() - 64).find(is_object).expect("natgw has an object for BPF");
    binary[object + 15] ^= 1;
    fs::write(&other, binary).unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o755)).unwrap();
    for program in [&other, &original] {
        stage.gateway.use_program(program);
        stage.gateway.kill();
        stage.gateway.restart();
        assert!(programs(&stage).is_disjoint(&loaded));
        assert_eq!(stage.gateway.pins().len(), pins.len(), "{:?}", stage.gateway.pins());
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
        stage.carries_the_next();
    }
    assert_eq!(stage.gateway.pins(), pins);
}

/// The programs on the gateway's interfaces, by their numbers.
fn programs(stage: &Stage) -> HashSet<u64> {
    let attached = stage.lab.gateway.succeed("bpftool -j net show");
    let attached: serde_json::Value = serde_json::from_str(&attached).unwrap();
    let mut found = HashSet::new();
    let mut values = vec![&attached];
    while let Some(value) = values.pop() {
        for name in ["id", "prog_id"] {
            found.extend(value[name].as_u64());
        }
        values.extend(value.as_array().into_iter().flatten());
        values.extend(value.as_object().into_iter().flat_map(|fields| fields.values()));
    }
    assert!(!found.is_empty(), "{attached}");
    found
}

/// What the next configuration does not name any more is let go of.
#[test]
fn an_interface_that_is_configured_no_more_has_no_program_after_the_start() {
    let lab = Lab::builder().second_uplink().build();
    let second = "[[interface]]\nname = \"wan2\"\nside = \"outside\"\n";
    let mut gateway = Gateway::start(&lab, &format!("{}{second}", gateway::STANDARD));
    let attached =
        |name: &str| lab.gateway.succeed(&format!("ip -details link show {name}")).contains("prog/xdp");
    assert!(attached("wan") && attached("wan2"));
    gateway.kill();
    gateway.configure(gateway::STANDARD);
    gateway.restart();
    assert!(attached("wan") && !attached("wan2"));
}

/// Once it serves, each of its threads has the five capabilities that attaching takes, and can get no other.
#[test]
fn capabilities_beyond_those_that_are_needed_are_given_up() {
    let mut stage = Stage::standard();
    // CAP_NET_ADMIN, CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF.
    let needed = format!("{:016x}", 1_u64 << 12 | 1 << 13 | 1 << 14 | 1 << 38 | 1 << 39);
    for _ in 0..2 {
        let tasks = fs::read_dir(format!("/proc/{}/task", stage.gateway.id().unwrap())).unwrap();
        let tasks: Vec<String> =
            tasks.map(|task| fs::read_to_string(task.unwrap().path().join("status")).unwrap()).collect();
        assert!(tasks.len() >= 2, "it has threads");
        for status in tasks {
            let field = |name: &str| {
                let line = status.lines().find_map(|line| line.strip_prefix(name));
                line.unwrap_or_else(|| panic!("no {name} in {status}")).trim().to_owned()
            };
            for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(field(set), needed, "{set} of {}", field("Name:"));
            }
            assert_eq!(field("CapInh:"), "0000000000000000");
            assert_eq!(field("CapAmb:"), "0000000000000000");
            assert_eq!(field("NoNewPrivs:"), "1");
        }
        // It is enough to serve, to attach anew, and to take over.
        stage.carries_the_next();
        stage.gateway.text(&["reload"]);
        stage.gateway.kill();
        stage.gateway.restart();
    }
}

/// Whatever the socket's mode has come to be: who is neither root nor of its group is refused.
#[test]
fn strangers_are_refused_by_their_credentials() {
    let stage = Stage::standard();
    let open: fs::Permissions = PermissionsExt::from_mode(0o777);
    let socket = stage.gateway.socket();
    fs::set_permissions(&socket, open.clone()).unwrap();
    fs::set_permissions(socket.parent().unwrap(), open).unwrap();
    let ask = |user: &str, group: &str, groups: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", user, "--regid", group, groups]).arg(stage.gateway.program());
        command.arg("--socket").arg(&socket).args(["session", "flush"]);
        command.output().expect("run setpriv")
    };
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let refused = ask("65534", "65534", "--clear-groups");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{said}");
    assert!(said.contains("not allowed") && said.contains("65534"), "{said}");
    assert_eq!(stage.session_count(), 1);
    // Who is of its group, by either kind of membership, may.
    assert!(ask("65534", "0", "--clear-groups").status.success());
    assert!(ask("65534", "65534", "--groups=0").status.success());
    assert_eq!(stage.session_count(), 0);
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
    // What ends makes room, although waiting for running programs goes by such an insertion, too.
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10"]);
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

/// Whatever a start does to the tables, packets of known flows go on the way that they went, past the daemon, which may
/// be killed just then; and slots of next hops are not used up.
#[test]
fn a_takeover_takes_no_packet_of_a_known_flow_out_of_its_way() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    let lan = "[[interface]]\nname = \"lan\"\nside = \"inside\"\n";
    let wan = "[[interface]]\nname = \"wan\"\nside = \"outside\"\n";
    let rules = "[[snat]]\nto = \"masquerade\"\n";
    let (mut highest, mut crossed) = (0, 0);
    for round in 0..12 {
        stage.gateway.kill();
        let before = punted(&stage);
        // The other order: what had been the place of one in the table of devices is the other's in the file.
        let order = if round % 2 == 0 { [wan, lan] } else { [lan, wan] };
        stage.gateway.configure(&format!("{}{rules}", order.concat()));
        stage.gateway.launch(&[]);
        let launched = Instant::now();
        while !stage.gateway.output(&["status"]).status.success() {
            assert!(launched.elapsed() < Duration::from_secs(20), "{}", stage.gateway.log());
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            crossed += 1;
        }
        assert_eq!(punted(&stage), before, "packets that went up in round {round}");
        stage.carries_the_next();
        highest = highest.max(highest_hop(&stage));
    }
    assert!(crossed > 12, "traffic passes while natgw starts");
    assert!(highest < 16, "slot {highest} of next hops, of which there are five");
}

/// Packets that went up to the daemon so far, whichever it was.
fn punted(stage: &Stage) -> u64 {
    let key = (nat_common::Reason::Punted as u32).to_ne_bytes().map(|byte| byte.to_string());
    let pin = stage.gateway.pin("COUNTERS");
    let mut words = vec!["map", "lookup", "pinned", &pin, "key"];
    words.extend(key.iter().map(String::as_str));
    let found = stage.gateway.bpftool(&words);
    let values = found["values"].as_array().unwrap_or_else(|| panic!("{found}"));
    let values = values.iter().map(|of_cpu| {
        let bytes = of_cpu["value"].as_array().unwrap().iter();
        let bytes = bytes
            .map(|byte| u8::from_str_radix(byte.as_str().unwrap().trim_start_matches("0x"), 16).unwrap());
        u64::from_ne_bytes(bytes.collect::<Vec<u8>>().try_into().unwrap())
    });
    values.sum()
}

/// The last slot of next hops that has ever been written.
fn highest_hop(stage: &Stage) -> u32 {
    let pin = stage.gateway.pin("HOPS");
    let is_written = |slot: &u32| {
        let key = slot.to_ne_bytes().map(|byte| byte.to_string());
        let mut words = vec!["map", "lookup", "pinned", &pin, "key"];
        words.extend(key.iter().map(String::as_str));
        stage.gateway.bpftool(&words)["value"].as_array().unwrap().iter().any(|byte| byte != "0x00")
    };
    (1..100).rev().find(is_written).unwrap_or(0)
}
