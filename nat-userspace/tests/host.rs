//! The host module against the real kernel, in network namespaces that vanish with their threads.
//!
//! They need root, `ip` and `ethtool`; without root each says so and passes.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use natgw::host::{
    Address, Host, HostEvent, NeighbourState, Route, RouteError, RouteKind, RouteQuery, XdpFeatures,
    bound_ports,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{UnshareFlags, gettid},
};

#[test]
fn links_and_addresses_are_read_at_the_start() {
    in_namespace(|| {
        run("ip link add wan mtu 1400 address 02:00:00:00:00:01 type veth peer name peer");
        run("ip addr add 192.0.2.1/24 brd + dev wan");
        run("ip addr add 192.0.2.2/24 dev wan");
        run("ip link set wan up");
        let mut host = Host::open().unwrap();
        let wan = host.link_by_name("wan").unwrap().clone();
        assert_eq!(wan.mac, [2, 0, 0, 0, 0, 1]);
        assert_eq!((wan.mtu, wan.kind.as_deref(), wan.ethernet), (1400, Some("veth"), true));
        assert!(wan.rx_queues >= 1);
        assert!(!wan.up, "the peer is down: no carrier");
        let lo = host.link_by_name("lo").unwrap();
        assert!(lo.up && !lo.ethernet && lo.kind.is_none());
        assert_eq!(
            host.addresses(wan.index),
            [
                address([192, 0, 2, 1], 24, Some([192, 0, 2, 255]), false),
                address([192, 0, 2, 2], 24, None, true),
            ]
        );
        let local: Vec<_> = host.local_addresses().collect();
        assert!(local.contains(&Ipv4Addr::LOCALHOST) && local.contains(&Ipv4Addr::new(192, 0, 2, 2)));

        run("ip link set peer up");
        wait_for(&mut host, |event| *event == HostEvent::LinkChanged(wan.index));
        assert!(host.link(wan.index).unwrap().up);
    });
}

#[test]
fn links_and_addresses_are_reported_as_they_change() {
    in_namespace(|| {
        let mut host = Host::open().unwrap();
        run("ip link add wan type veth peer name peer");
        wait_for(&mut host, |event| matches!(event, HostEvent::LinkChanged(_)));
        let index = host.link_by_name("wan").unwrap().index;
        let addr = Ipv4Addr::new(198, 51, 100, 7);

        run("ip addr add 198.51.100.7/24 dev wan");
        wait_for(&mut host, |event| *event == HostEvent::AddressAdded { ifindex: index, addr });
        assert_eq!(host.addresses(index).len(), 1);
        run("ip addr del 198.51.100.7/24 dev wan");
        wait_for(&mut host, |event| *event == HostEvent::AddressRemoved { ifindex: index, addr });
        assert!(host.addresses(index).is_empty());

        run("ip link set wan name uplink");
        wait_for(&mut host, |event| *event == HostEvent::LinkChanged(index));
        assert_eq!(host.link(index).unwrap().name, "uplink");

        // A port that joins and leaves a bridge is still an interface.
        run("ip link add name bridge0 type bridge");
        run("ip link set uplink master bridge0");
        run("ip link set uplink nomaster");
        run("ip link del bridge0");
        wait_for(
            &mut host,
            |event| matches!(event, HostEvent::LinkRemoved { name, .. } if name == "bridge0"),
        );
        assert!(host.link_by_name("uplink").is_some());

        run("ip link del uplink");
        let gone = HostEvent::LinkRemoved { index, name: "uplink".into() };
        wait_for(&mut host, |event| *event == gone);
        assert!(host.link(index).is_none() && host.link_by_name("peer").is_none());
    });
}

#[test]
fn routes_are_those_the_kernel_forwards_by() {
    in_namespace(|| {
        let (lan, wan) = two_sides();
        run("ip route add default via 192.0.2.254");
        run("ip route add 198.51.100.0/24 via 192.0.2.253 mtu 1300");
        run("ip route add unreachable 203.0.113.0/26");
        run("ip route add prohibit 203.0.113.64/26");
        run("ip route add blackhole 203.0.113.128/26");
        let mut host = Host::open().unwrap();
        // The answers have to be the same whether the kernel forwards or not: natgw does not need it to.
        for forward in ["1", "0"] {
            fs::write("/proc/sys/net/ipv4/ip_forward", forward).unwrap();
            drain(&mut host);
            let mut ask = |destination: [u8; 4]| {
                host.route(RouteQuery {
                    source: [10, 1, 1, 10].into(),
                    destination: destination.into(),
                    ingress: lan,
                })
            };
            let by_router = Route {
                ifindex: wan,
                gateway: Some([192, 0, 2, 254].into()),
                preferred_source: Some([192, 0, 2, 1].into()),
                mtu: None,
                kind: RouteKind::Unicast,
            };
            assert_eq!(ask([8, 8, 8, 8]), Ok(by_router), "ip_forward={forward}");
            let narrow = Route { gateway: Some([192, 0, 2, 253].into()), mtu: Some(1300), ..by_router };
            assert_eq!(ask([198, 51, 100, 9]), Ok(narrow));
            assert_eq!(ask([192, 0, 2, 77]), Ok(Route { gateway: None, ..by_router }));
            assert_eq!(ask([192, 0, 2, 1]).unwrap().kind, RouteKind::Local);
            assert_eq!(ask([192, 0, 2, 255]).unwrap().kind, RouteKind::Broadcast);
            assert_eq!(ask([224, 0, 0, 251]).unwrap().kind, RouteKind::Multicast);
            assert_eq!(ask([203, 0, 113, 1]), Err(RouteError::Unreachable));
            assert_eq!(ask([203, 0, 113, 65]), Err(RouteError::Prohibited));
            assert_eq!(ask([203, 0, 113, 129]), Err(RouteError::Blackhole));
        }
    });
}

#[test]
fn routes_that_set_an_mtu_are_known() {
    in_namespace(|| {
        two_sides();
        run("ip route add default via 192.0.2.254");
        run("ip route add 198.51.100.0/24 via 192.0.2.253 mtu 1300");
        run("ip route add 203.0.113.0/24 via 192.0.2.253 advmss 900");
        let mut host = Host::open().unwrap();
        let mut news = || {
            let mut events = Vec::new();
            host.poll(&mut events).unwrap();
            host.narrow_routes().map(|mut routes| {
                routes.sort();
                routes.iter().map(|(prefix, mtu)| format!("{prefix} {mtu}")).collect::<Vec<_>>()
            })
        };
        assert_eq!(news().unwrap(), ["198.51.100.0/24 1300"]);
        assert_eq!(news(), None);
        run("ip route add 192.0.3.0/24 via 192.0.2.253");
        assert_eq!(news(), None);
        run("ip route add 198.51.100.7 via 192.0.2.254 mtu lock 1400 table 9");
        assert_eq!(news().unwrap(), ["198.51.100.0/24 1300", "198.51.100.7/32 1300"]);
        run("ip route replace 198.51.100.0/24 via 192.0.2.253 mtu 1450");
        assert_eq!(news().unwrap(), ["198.51.100.0/24 1450", "198.51.100.7/32 1400"]);
        run("ip route append 198.51.100.0/24 via 192.0.2.254 mtu 1200");
        assert_eq!(news().unwrap(), ["198.51.100.0/24 1200", "198.51.100.7/32 1200"]);
        run("ip route del 198.51.100.0/24 mtu 1200");
        assert_eq!(news().unwrap(), ["198.51.100.0/24 1450", "198.51.100.7/32 1400"]);
        run("ip route del 198.51.100.7 table 9");
        run("ip route replace default via 192.0.2.254 mtu 1000");
        assert_eq!(news().unwrap(), ["0.0.0.0/0 1000", "198.51.100.0/24 1000"]);
        // Of what goes with an interface the kernel says nothing.
        run("ip link set wan down");
        assert_eq!(news().unwrap(), <[&str; 0]>::default());
    });
}

#[test]
fn an_answer_lasts_until_routing_changes() {
    in_namespace(|| {
        let (lan, wan) = two_sides();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut host = Host::open().unwrap();
        let query =
            RouteQuery { source: [10, 1, 1, 10].into(), destination: [8, 8, 8, 8].into(), ingress: lan };
        assert_eq!(host.route(query), Err(RouteError::Unreachable));
        run("ip route add default via 192.0.2.254");
        wait_for(&mut host, |event| *event == HostEvent::RoutesChanged);
        assert_eq!(host.route(query).unwrap().gateway, Some([192, 0, 2, 254].into()));
        run("ip route replace default via 192.0.2.253");
        wait_for(&mut host, |event| *event == HostEvent::RoutesChanged);
        assert_eq!(host.route(query).unwrap().gateway, Some([192, 0, 2, 253].into()));
        // The kernel drops the routes of an interface that goes down without a word about them.
        run("ip link set wan down");
        wait_for(&mut host, |event| *event == HostEvent::LinkChanged(wan));
        assert_eq!(host.route(query), Err(RouteError::Unreachable));
    });
}

#[test]
fn a_remembered_route_costs_next_to_nothing() {
    in_namespace(|| {
        let (lan, _) = two_sides();
        run("ip route add default via 192.0.2.254");
        let mut host = Host::open().unwrap();
        let query = |number: u32| RouteQuery {
            source: [10, 1, 1, 10].into(),
            destination: Ipv4Addr::from_bits(0x0808_0000 + number % 20_000),
            ingress: lan,
        };
        let start = Instant::now();
        for number in 0..20_000 {
            host.route(query(number)).unwrap();
        }
        eprintln!("{} ns a route asked for", start.elapsed().as_nanos() / 20_000);
        let start = Instant::now();
        for number in 0..1_000_000 {
            host.route(query(number)).unwrap();
        }
        let nanoseconds = start.elapsed().as_nanos() / 1_000_000;
        eprintln!("{nanoseconds} ns a remembered route");
        // A lookup by the kernel costs thousands; unoptimised builds on a busy machine stay below this.
        assert!(nanoseconds < 1_500, "{nanoseconds} ns");
    });
}

#[test]
fn policy_rules_count_by_source() {
    in_namespace(|| {
        let (lan, wan) = two_sides();
        fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        run("ip addr add 192.0.2.9/24 dev wan");
        run("ip route add default via 192.0.2.254");
        let mut host = Host::open().unwrap();
        let from = |last: u8| RouteQuery {
            source: [10, 1, 1, last].into(),
            destination: [8, 8, 8, 8].into(),
            ingress: lan,
        };
        assert_eq!(host.route(from(20)).unwrap().gateway, Some([192, 0, 2, 254].into()));

        run("ip route add default via 192.0.2.253 src 192.0.2.9 table 100");
        run("ip rule add from 10.1.1.20 lookup 100");
        wait_for(&mut host, |event| *event == HostEvent::RoutesChanged);
        drain(&mut host);
        let special = host.route(from(20)).unwrap();
        assert_eq!((special.ifindex, special.gateway), (wan, Some([192, 0, 2, 253].into())));
        assert_eq!(special.preferred_source, Some([192, 0, 2, 9].into()));
        let plain = host.route(from(10)).unwrap();
        assert_eq!(plain.gateway, Some([192, 0, 2, 254].into()));
        assert_eq!(plain.preferred_source, Some([192, 0, 2, 1].into()));
    });
}

#[test]
fn neighbours_are_resolved_and_their_failure_is_told() {
    in_namespace(|| {
        let _far = across_wan();
        let mut host = Host::open().unwrap();
        let wan = host.link_by_name("wan").unwrap().index;
        let (alive, dead) = (Ipv4Addr::new(192, 0, 2, 254), Ipv4Addr::new(192, 0, 2, 66));
        assert_eq!(host.neighbour(wan, alive), None);

        host.resolve(wan, alive).unwrap();
        wait_for(&mut host, |event| {
            matches!(event, HostEvent::NeighbourChanged { ifindex, addr, neighbour: Some(neighbour), failed: false }
                if *ifindex == wan && *addr == alive && neighbour.mac == [2, 0, 0, 0, 0, 0xfe])
        });
        let known = host.neighbour(wan, alive).unwrap();
        assert_eq!((known.mac, known.state), ([2, 0, 0, 0, 0, 0xfe], NeighbourState::Reachable));

        host.resolve(wan, dead).unwrap();
        let failed = HostEvent::NeighbourChanged { ifindex: wan, addr: dead, neighbour: None, failed: true };
        wait_for(&mut host, |event| *event == failed);
        assert_eq!(host.neighbour(wan, dead), None);
        // A second try is told of as well.
        host.resolve(wan, dead).unwrap();
        wait_for(&mut host, |event| *event == failed);

        // A neighbour that got another card: the kernel learns it, natgw hears it.
        run("ip neigh replace 192.0.2.254 dev wan lladdr 02:00:00:00:00:fd nud permanent");
        wait_for(
            &mut host,
            |event| matches!(event, HostEvent::NeighbourChanged { addr, .. } if *addr == alive),
        );
        let moved = host.neighbour(wan, alive).unwrap();
        assert_eq!((moved.mac, moved.state), ([2, 0, 0, 0, 0, 0xfd], NeighbourState::Permanent));

        let error = host.resolve(9999, alive).unwrap_err();
        assert_eq!(error.to_string(), "resolve 192.0.2.254 on interface 9999: No such device (os error 19)");
    });
}

#[test]
fn a_stale_neighbour_is_confirmed_when_asked_for() {
    in_namespace(|| {
        let _far = across_wan();
        run("ip neigh add 192.0.2.254 dev wan lladdr 02:00:00:00:00:fe nud stale");
        fs::write("/proc/sys/net/ipv4/neigh/wan/delay_first_probe_time", "0").unwrap();
        let mut host = Host::open().unwrap();
        let wan = host.link_by_name("wan").unwrap().index;
        let router = Ipv4Addr::new(192, 0, 2, 254);
        assert_eq!(host.neighbour(wan, router).unwrap().state, NeighbourState::Stale);
        host.resolve(wan, router).unwrap();
        wait_for(&mut host, |event| {
            matches!(event, HostEvent::NeighbourChanged { neighbour: Some(neighbour), .. }
                if neighbour.state == NeighbourState::Reachable)
        });
    });
}

#[test]
fn lost_notifications_lead_to_reading_everything_anew() {
    in_namespace(|| {
        let (_, wan) = two_sides();
        let mut host = Host::open().unwrap();
        let mut batch = String::new();
        for number in 0..30_000_u32 {
            let network = Ipv4Addr::from_bits(0x1400_0000 + (number << 8));
            writeln!(batch, "route add {network}/24 via 192.0.2.254").unwrap();
        }
        // Unheard among all those: an interface and an address.
        batch += "link add late type veth peer name later\naddr add 192.0.2.99/24 dev wan\n";
        ip_batch(&batch);
        wait_for(&mut host, |event| *event == HostEvent::Resynced);
        assert!(host.link_by_name("late").is_some());
        assert!(host.addresses(wan).iter().any(|address| address.addr == Ipv4Addr::new(192, 0, 2, 99)));
        drain(&mut host);
        run("ip link del late");
        wait_for(&mut host, |event| matches!(event, HostEvent::LinkRemoved { name, .. } if name == "late"));
    });
}

#[test]
fn ports_of_local_sockets_are_found() {
    const TCP: u8 = 6;
    const UDP: u8 = 17;
    in_namespace(|| {
        run("ip addr add 192.0.2.1/32 dev lo");
        let (here, elsewhere) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let listener = TcpListener::bind("192.0.2.1:2222").unwrap();
        let client = TcpStream::connect("192.0.2.1:2222").unwrap();
        let any = UdpSocket::bind("0.0.0.0:5353").unwrap();
        let dual = UdpSocket::bind("[::]:5354").unwrap();
        let v6 = UdpSocket::bind("[::1]:5355").unwrap();
        let [tcp, udp] = [TCP, UDP].map(|protocol| bound_ports(protocol).unwrap());
        assert!(tcp.contains(here, 2222) && !udp.contains(here, 2222));
        assert!(!tcp.contains(elsewhere, 2222));
        assert!(tcp.contains(here, client.local_addr().unwrap().port()));
        assert!(udp.contains(elsewhere, 5353) && udp.contains(elsewhere, 5354));
        assert!(!udp.contains(here, 5355));
        drop((listener, any, dual, v6));
    });
}

#[test]
fn xdp_features_follow_the_peer_of_a_veth() {
    in_namespace(|| {
        let far = across_wan();
        let mut host = Host::open().unwrap();
        let wan = host.link_by_name("wan").unwrap().index;
        let Some(features) = host.xdp_features(wan).unwrap() else {
            println!("skipped: this kernel has no netdev family");
            return;
        };
        let without = XdpFeatures { basic: true, redirect: true, ndo_xmit: false, ..features };
        assert_eq!(features, without);
        for (state, ndo_xmit) in [("on", true), ("off", false)] {
            far.run(&format!("ethtool -K far gro {state}"));
            wait_for(&mut host, |event| *event == HostEvent::XdpFeaturesChanged(wan));
            assert_eq!(host.xdp_features(wan).unwrap(), Some(XdpFeatures { ndo_xmit, ..without }));
        }
        assert!(host.xdp_features(9999).is_err());
    });
}

/// An inside and an outside interface with carriers; answers their numbers.
fn two_sides() -> (u32, u32) {
    run("ip link add lan type veth peer name lan-peer");
    run("ip link add wan type veth peer name wan-peer");
    run("ip addr add 10.1.1.1/24 brd + dev lan");
    run("ip addr add 192.0.2.1/24 brd + dev wan");
    for name in ["lan", "lan-peer", "wan", "wan-peer"] {
        run(&format!("ip link set {name} up"));
    }
    let host = Host::open().unwrap();
    (host.link_by_name("lan").unwrap().index, host.link_by_name("wan").unwrap().index)
}

/// `wan` here, and a router 192.0.2.254 at its other end in a namespace of its own.
fn across_wan() -> Namespace {
    let far = Namespace::new();
    run("ip link add wan type veth peer name far");
    run(&format!("ip link set far netns {}", far.id));
    run("ip addr add 192.0.2.1/24 dev wan");
    run("ip link set wan up");
    far.run("ip link set far address 02:00:00:00:00:fe");
    far.run("ip addr add 192.0.2.254/24 dev far");
    far.run("ip link set far up");
    fs::write("/proc/sys/net/ipv4/neigh/wan/retrans_time_ms", "50").unwrap();
    far
}

fn address(addr: [u8; 4], prefix: u8, broadcast: Option<[u8; 4]>, secondary: bool) -> Address {
    Address { addr: addr.into(), prefix, broadcast: broadcast.map(Into::into), secondary, claimed: false }
}

/// Polls until an event arrives that the caller waits for.
fn wait_for(host: &mut Host, wanted: impl Fn(&HostEvent) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
        let monitor = host.monitor();
        poll(&mut [PollFd::new(&monitor, PollFlags::IN)], Some(&timeout)).unwrap();
        let mut events = Vec::new();
        host.poll(&mut events).unwrap();
        if events.iter().any(&wanted) {
            return;
        }
        seen.extend(events);
        seen.truncate(50);
    }
    panic!("the event did not come; seen: {seen:?}");
}

/// Takes in all that waits.
fn drain(host: &mut Host) {
    thread::sleep(Duration::from_millis(50));
    host.poll(&mut Vec::new()).unwrap();
}

/// Runs a test in a network namespace of its own.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root");
        return;
    }
    let outcome = thread::spawn(|| {
        enter_new_namespace();
        test();
    })
    .join();
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn enter_new_namespace() {
    // SAFETY: a network namespace of its own takes nothing from a thread that other threads rely on.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    run("ip link set lo up");
}

/// A second namespace, held by a thread that runs commands in it.
struct Namespace {
    id: i32,
    commands: mpsc::Sender<(String, mpsc::Sender<()>)>,
}

impl Namespace {
    fn new() -> Self {
        let (commands, queue) = mpsc::channel::<(String, mpsc::Sender<()>)>();
        let (announce, id) = mpsc::channel();
        thread::spawn(move || {
            enter_new_namespace();
            announce.send(gettid().as_raw_nonzero().get()).unwrap();
            for (command, done) in queue {
                run(&command);
                done.send(()).unwrap();
            }
        });
        Self { id: id.recv().unwrap(), commands }
    }

    fn run(&self, command: &str) {
        let (done, wait) = mpsc::channel();
        self.commands.send((command.to_owned(), done)).unwrap();
        wait.recv().unwrap();
    }
}

/// Runs a command in the namespace of the calling thread.
fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn ip_batch(commands: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}
