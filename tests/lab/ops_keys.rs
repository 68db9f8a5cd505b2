//! Keys of the configuration that no row of the specification speaks of.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{TcpListener, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use nat_tests::{Gateway, Host, Lab, gateway};

use crate::{
    lbs::{SERVERS, connect, service},
    stage::{Stage, public, seconds, source},
};

const SERVER: &str = "198.51.100.1:5000";
const CLIENT: &str = "192.168.1.10:40000";

#[test]
fn hairpins_are_as_the_rule_says() {
    for (line, passes) in [("", true), ("hairpin = true", true), ("hairpin = false", false)] {
        let stage = Stage::snat(&format!("filtering = \"endpoint-independent\"\n{line}"));
        stage.crosses(&stage.udp(CLIENT, SERVER));
        let knock = stage.udp("192.168.1.11:40001", &public(40000));
        if passes {
            stage.reaches(&knock, &stage.a);
        } else {
            stage.stopped(&knock, &stage.a);
        }
        // From outside the mapping is open either way.
        stage.reaches(&stage.udp("198.51.100.2:9", &public(40000)), &stage.a);
    }
}

#[test]
fn a_freed_port_rests_as_long_as_it_is_told_to() {
    let stage = Stage::snat("ports = \"20000-20001\"\n[timeouts]\nudp = \"1s\"\nquarantine = \"6s\"");
    for port in [40_000, 40_001] {
        stage.crosses(&stage.udp(&format!("192.168.1.10:{port}"), SERVER));
    }
    stage.forgets_within(Duration::from_secs(5));
    let rests = || {
        let pools = stage.gateway.natgw(&["pool", "list", "--json"]);
        let rows = pools.as_array().cloned().unwrap_or_default();
        rows.iter()
            .filter(|row| row["protocol"] == "udp")
            .filter_map(|row| row["quarantined"].as_u64())
            .sum::<u64>()
    };
    assert_eq!(rests(), 2);
    stage.stopped_quickly(&stage.udp("192.168.1.11:40000", SERVER));
    stage.gateway.wait_until("the ports have rested", Duration::from_secs(12), |_| rests() == 0);
    let seen = stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert!(source(&seen).starts_with("203.0.113.1:2000"), "{seen}");
}

/// The kernel answers a datagram to a closed port, if it gets it.
#[test]
fn what_nobody_asked_for_goes_to_the_stack_or_is_dropped() {
    let lab = Lab::standard();
    let own = lab.gateway.within(|| UdpSocket::bind("203.0.113.1:500")).expect("a service of the gateway");
    own.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
    for (line, refused) in [("", true), ("outside = \"pass\"", true), ("outside = \"drop\"", false)] {
        let gateway = Gateway::start(&lab, &format!("{}[unmatched]\n{line}\n", gateway::STANDARD));
        let knock = lab.s1.within(|| UdpSocket::bind("198.51.100.1:0")).expect("a socket");
        knock.connect("203.0.113.1:9").expect("connect");
        knock.set_read_timeout(Some(Duration::from_secs(2))).expect("set a timeout");
        knock.send(b"anybody there?").expect("send");
        let answer = knock.recv(&mut [0; 64]).expect_err("nobody is there");
        let told = answer.kind() == ErrorKind::ConnectionRefused;
        assert_eq!(told, refused, "{line}: {answer}, dropped {:?}", gateway.drops());
        // What has a socket gets its packets either way.
        knock.connect("203.0.113.1:500").expect("connect");
        knock.send(b"a proposal").expect("send");
        own.recv(&mut [0; 64]).expect("the service gets its packets");
    }
}

#[test]
fn clients_of_one_prefix_have_one_server() {
    for (lines, together) in [("", false), ("persistence_prefix = 24", true)] {
        let lines = format!("persistence = \"1h\"\n{lines}");
        let stage = Stage::with(&format!("{}{}", gateway::STANDARD, service(&lines, &SERVERS)));
        let of = |client: &str| connect(&stage, client);
        let first = of("198.51.100.1:1");
        assert_eq!(of("198.51.100.2:1") == first, together, "{lines}");
        assert_ne!(of("198.51.101.1:1"), first, "another prefix has the next server");
    }
}

/// A web server that has one page, and says 404 of all others.
struct Page {
    stop: Arc<AtomicBool>,
    /// What it says of its page.
    status: Arc<AtomicU16>,
    /// How often it was asked.
    asked: Arc<AtomicU32>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Page {
    fn serve(host: &Host, endpoint: &str, path: &'static str, delay: Duration) -> Self {
        let listener = host.within(|| TcpListener::bind(endpoint)).expect("listen");
        listener.set_nonblocking(true).expect("do not wait");
        let (stop, status, asked) = (Arc::<AtomicBool>::default(), Arc::new(204.into()), Arc::default());
        let (stopped, says, asks) =
            (Arc::clone(&stop), Arc::<AtomicU16>::clone(&status), Arc::<AtomicU32>::clone(&asked));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let Ok((mut stream, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                let _ = stream.set_nonblocking(false);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap_or(0);
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                thread::sleep(delay);
                let has = request.starts_with(&format!("GET {path} "));
                let status = if has { says.load(Ordering::Relaxed) } else { 404 };
                let _ = write!(
                    stream,
                    "HTTP/1.1 {status} Said\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                );
                asks.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { stop, status, asked, thread: Some(thread) }
    }

    fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(thread::JoinHandle::join);
    }
}

/// A gateway with a service of one server, which is checked like this.
fn checked(lab: &Lab, server: &str, check: &str) -> Gateway {
    Gateway::start(
        lab,
        &format!(
            "{}[[service]]\nname = \"web\"\nexternal = \"wan:80\"\ncheck = {{ {check} }}\n[[service.server]]\naddress = \"{server}\"\n",
            gateway::STANDARD
        ),
    )
}

fn state_of_server(gateway: &Gateway) -> String {
    let rows = gateway.natgw(&["service", "list", "--json"]);
    rows[0]["servers"][0]["state"].as_str().unwrap_or_default().to_owned()
}

fn becomes(gateway: &Gateway, state: &str, what: &str) {
    gateway.wait_until(&format!("{what}: {state}"), Duration::from_secs(15), |gateway| {
        state_of_server(gateway) == state
    });
}

#[test]
fn a_check_asks_for_its_page_and_wants_its_status() {
    let lab = Lab::standard();
    let _page = Page::serve(&lab.b, "192.168.1.11:8080", "/health", Duration::ZERO);
    let quick = "interval = \"100ms\", timeout = \"1s\", fall = 2, rise = 1, ";
    for (server, check, state) in [
        ("192.168.1.11:8080", "kind = \"http\", path = \"/health\", status = 204", "up"),
        ("192.168.1.11:8080", "kind = \"http\", path = \"/health\"", "down"),
        ("192.168.1.11:8080", "kind = \"http\", path = \"/other\", status = 204", "down"),
        ("192.168.1.11:8080", "kind = \"http\", path = \"/other\", status = 404", "up"),
        ("192.168.1.11:8080", "kind = \"http\", status = 404", "up"),
        ("192.168.1.11:8080", "kind = \"tcp\"", "up"),
        ("192.168.1.11:8081", "kind = \"tcp\"", "down"),
        ("192.168.1.11:8081", "kind = \"ping\"", "up"),
        ("192.168.1.77:8081", "kind = \"ping\"", "down"),
        ("192.168.1.77:8081", "kind = \"none\"", "up"),
    ] {
        let gateway = checked(&lab, server, &format!("{quick}{check}"));
        // As it is once two checks have had their answers; that it is down, it stays.
        seconds(1.5);
        becomes(&gateway, state, &format!("{server} {check}"));
        let found = gateway.natgw(&["doctor", "--json"]).to_string();
        assert_eq!(found.contains("server_down"), state == "down", "{server} {check}: {found}");
    }
}

#[test]
fn a_check_keeps_its_times_and_numbers() {
    let lab = Lab::standard();
    let server = "192.168.1.11:8080";
    let http = "kind = \"http\", path = \"/health\", status = 204, ";
    let slow = Page::serve(&lab.b, server, "/health", Duration::from_millis(500));
    for (timeout, state) in [("100ms", "down"), ("5s", "up")] {
        let times = format!("{http}interval = \"200ms\", timeout = \"{timeout}\", fall = 1, rise = 1");
        let gateway = checked(&lab, server, &times);
        seconds(2.0);
        becomes(&gateway, state, timeout);
    }
    drop(slow);
    let page = Page::serve(&lab.b, server, "/health", Duration::ZERO);
    for (interval, asked) in [("100ms", 8..=31), ("2s", 1..=3)] {
        let before = page.asked();
        let _gateway = checked(&lab, server, &format!("{http}interval = \"{interval}\""));
        seconds(3.0);
        let now = page.asked() - before;
        assert!(asked.contains(&now), "{now} times with {interval}");
    }
    for number in [1_u32, 6] {
        let numbers = format!("{http}interval = \"300ms\", fall = {number}, rise = {number}");
        page.status.store(204, Ordering::Relaxed);
        let gateway = checked(&lab, server, &numbers);
        for (status, state) in [(500, "down"), (204, "up")] {
            page.status.store(status, Ordering::Relaxed);
            let before = page.asked();
            becomes(&gateway, state, &numbers);
            // One more may have been under way.
            let asked = page.asked() - before;
            assert!(asked + 1 >= number && asked <= number + 4, "{state} after {asked} of {number}");
        }
    }
}

/// Which way it is attached, as the kernel says.
#[test]
fn an_interface_is_attached_as_its_mode_says() {
    for (mode, wanted) in [("native", "xdp"), ("generic", "xdpgeneric")] {
        let line = format!("side = \"outside\"\nmode = \"{mode}\"");
        let stage = Stage::with(&gateway::STANDARD.replace("side = \"outside\"", &line));
        let shown = stage.lab.gateway.ip("-details link show wan");
        assert!(shown.split_whitespace().any(|word| word == wanted), "{mode}: {shown}");
        let status = stage.gateway.natgw(&["status", "--json"]).to_string();
        assert!(status.contains(&format!("\"{mode}\"")), "{status}");
        stage.crosses(&stage.udp(CLIENT, SERVER));
    }
}
