//! Operation: what is listed, deleted, reloaded, killed, stopped; and a WAN that goes away or changes its address.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Decoded, Gateway, Host, Lab, Packet, gateway, packet::tcp};

use crate::stage::{Stage, public, scaled, seconds, source};

const CLIENT: &str = "192.168.1.10:40000";
const SERVER: &str = "198.51.100.1:5000";

#[test]
fn ops_01_the_listing_says_what_was_on_the_wire() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    for _ in 0..2 {
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // Counters are written at most once a tick.
    seconds(1.5);
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let session = &sessions[0];
    let texts = [
        ("protocol", "udp"),
        ("inside", CLIENT),
        ("outside", "203.0.113.1:40000"),
        ("remote", SERVER),
        ("remote_inside", SERVER),
        ("direction", "outbound"),
        ("rule", "office"),
    ];
    for (field, value) in texts {
        assert_eq!(session[field], value, "{field} of {session}");
    }
    assert_eq!(
        (session["packets_out"].as_u64(), session["packets_in"].as_u64()),
        (Some(1), Some(2)),
        "{session}"
    );
    assert!(session["bytes_in"].as_u64() > session["bytes_out"].as_u64(), "{session}");
    assert_eq!(
        stage.gateway.natgw(&["session", "list", "--protocol", "tcp", "--json"]).as_array().unwrap().len(),
        0
    );
    assert!(stage.gateway.text(&["session", "list"]).contains(CLIENT));
}

#[test]
fn ops_02_deleting_one_session_breaks_that_one() {
    let stage = Stage::standard();
    let of_a = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let of_b = source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER)));
    stage.gateway.text(&["session", "delete", "--inside", "192.168.1.10"]);
    stage.stopped(&stage.udp(SERVER, &of_a), &stage.a);
    stage.reaches(&stage.udp(SERVER, &of_b), &stage.b);
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.gateway.text(&["session", "flush"]);
    assert_eq!(stage.session_count(), 0);
    stage.stopped(&stage.udp(SERVER, &of_b), &stage.b);
}

#[test]
fn ops_03_a_reload_leaves_sessions_alone() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let forward = "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n";
    stage.gateway.configure(&format!("{}{forward}", gateway::STANDARD));
    stage.gateway.text(&["reload"]);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.reaches(&stage.udp(SERVER, &public(8080)), &stage.b);
    stage.gateway.configure(gateway::STANDARD);
    stage.gateway.text(&["reload"]);
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.stopped(&stage.udp("198.51.100.2:7", &public(8080)), &stage.b);
}

/// Scaled: what the lab's taps send, not a gigabit; and not one packet of it is lost.
#[test]
fn ops_03_reloads_under_traffic_lose_nothing() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    let forward = "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"203.0.113.1:8080\"\ninternal = \"192.168.1.11:80\"\n";
    let with_forward = format!("{}{forward}", gateway::STANDARD);
    let gateway = &stage.gateway;
    thread::scope(|scope| {
        let reloads = scope.spawn(|| {
            for round in 0..20 {
                gateway.configure(if round % 2 == 0 { &with_forward } else { gateway::STANDARD });
                gateway.text(&["reload"]);
            }
        });
        let mut rounds = 0;
        while !reloads.is_finished() || rounds < 50 {
            stage.crosses(&stage.udp(CLIENT, SERVER));
            stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
            stage.crosses(&stage.data("192.168.1.11:40001", SERVER));
            stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
            rounds += 1;
        }
    });
    assert_eq!(stage.session_count(), 2);
}

#[test]
fn ops_03_a_session_stays_its_rules_when_another_comes_before_it() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let guests = "[[snat]]\nname = \"guests\"\nsource = [\"10.9.0.0/16\"]\nfiltering = \"endpoint-independent\"\nto = \"masquerade\"\n\n[[snat]]\n";
    stage.gateway.configure(&gateway::STANDARD.replace("[[snat]]\n", guests));
    let answer = stage.gateway.natgw(&["reload", "--json"]);
    assert_eq!((answer["kept"].as_u64(), answer["ended"].as_u64()), (Some(1), Some(0)), "{answer}");
    assert_eq!(stage.gateway.sessions()[0]["rule"], "office");
    stage.reaches(&stage.udp("198.51.100.1:9", &mapped), &stage.a);
    stage.stopped(&stage.udp("198.51.100.2:9", &mapped), &stage.a);
    stage.gateway.kill();
    stage.gateway.restart();
    assert!(stage.gateway.sessions().iter().all(|session| session["rule"] == "office"));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn ops_04_a_bad_file_changes_nothing_and_says_where_it_is_bad() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.gateway.configure(&gateway::STANDARD.replace("to = \"masquerade\"", "to = \"nowhere\""));
    let output = stage.gateway.output(&["reload"]);
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(message.contains("nowhere") && message.contains(":15"), "{message}");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.udp("192.168.1.11:40001", SERVER));
}

#[test]
fn ops_06_killed_it_still_translates_and_a_new_start_loses_nothing() {
    let mut stage = Stage::standard();
    let udp = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    stage.gateway.kill();
    for _ in 0..3 {
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
        seconds(0.2);
    }
    stage.gateway.restart();
    let sessions = stage.gateway.sessions();
    assert_eq!(sessions.len(), 2, "{sessions:?}");
    let of_udp = sessions.iter().find(|session| session["protocol"] == "udp").unwrap();
    let counted = ["packets_out", "packets_in"].map(|field| of_udp[field].as_u64());
    assert_eq!(counted, [Some(4), Some(3)], "counters go on: {of_udp}");
    stage.reaches(&stage.udp(SERVER, &udp), &stage.a);
    assert_eq!(source(&stage.crosses(&stage.data("192.168.1.11:40001", SERVER))), tcp);
    // Its port is still taken, and its mapping still endpoint-independent.
    let of_c = stage.crosses(&stage.udp("192.168.1.12:40000", SERVER));
    assert_ne!(source(&of_c), udp);
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, "198.51.100.2:1"))), udp);
}

#[test]
fn ops_07_stopped_it_leaves_no_trace() {
    let lab = Lab::standard();
    let before = traces(&lab.gateway);
    let mut gateway = Gateway::prepare(&lab, gateway::STANDARD);
    gateway.restart();
    let sent = lab.a.run("ping -c 1 -W 2 198.51.100.1");
    assert!(sent.status.success(), "{}", String::from_utf8_lossy(&sent.stdout));
    gateway.stop();
    for ((look, before), (_, after)) in before.into_iter().zip(traces(&lab.gateway)) {
        assert!(before == after, "{look}, before:\n{before}\nafter:\n{after}");
    }
    assert!(gateway.pins().is_empty(), "{:?}", gateway.pins());
    let folder = gateway.configuration().with_file_name("bpf").join("natgw");
    assert!(!folder.exists(), "{} is left", folder.display());
}

/// What another program could find changed: where it looks, and what it sees.
fn traces(host: &Host) -> Vec<(&'static str, String)> {
    let looks = [
        "ip -details link show",
        "ip address show",
        "ip rule show",
        "ip route show table all",
        "tc qdisc show",
        "tc filter show dev lan ingress",
        "tc filter show dev wan ingress",
        "nft list ruleset",
        "sysctl --all --pattern ^net.ipv4.(ip_forward|conf.*(rp_filter|proxy_arp|forwarding|arp_))",
    ];
    looks.map(|look| (look, host.succeed(look))).to_vec()
}

#[test]
fn ops_11_a_new_address_is_used_at_once_and_the_old_one_never_again() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let gateway = &stage.lab.gateway;
    gateway.ip("addr add 203.0.113.2/24 dev wan");
    // A secondary address goes with its primary one, unless it is promoted.
    gateway.sysctl("ipv4.conf.wan.promote_secondaries", "1");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("route replace default via 203.0.113.254");
    seconds(1.0);
    stage.wan.clear();
    let seen = stage.crosses(&stage.udp(CLIENT, SERVER));
    assert_eq!(seen.ip().source.to_string(), "203.0.113.2");
    stage.reaches(&stage.udp(SERVER, &source(&seen)), &stage.a);
    let old =
        stage.wan.incoming(|seen| seen.ip.as_ref().is_some_and(|ip| ip.source.to_string() == "203.0.113.1"));
    assert!(old.is_empty(), "{old:?}");
}

#[test]
fn rtr_20_a_new_next_hop_takes_over_live_sessions() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    // The provider's router is replaced: the same address at another Ethernet address.
    let isp = &stage.lab.isp;
    isp.ip("link set gw address 02:00:00:00:02:fd");
    let mut announce = Command::new("ip");
    announce.args(["netns", "exec", &isp.namespace, "ping", "-c", "1", "-W", "1", "203.0.113.1"]);
    // Its own question tells the gateway where it now is.
    announce.output().expect("run ping");
    stage.gateway.wait_until("traffic follows", Duration::from_secs(3), |_| {
        let sent = stage.send(&stage.udp(CLIENT, SERVER));
        let patience = Duration::from_millis(200);
        stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload()).is_some()
    });
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
}

/// Scaled: 3000 sessions, not 100 000, which are of 24 000 mappings.
#[test]
fn ops_05_a_restart_keeps_every_session() {
    let sessions = scaled(3000, 100_000);
    let mut stage = Stage::timeouts("udp = \"20m\"");
    stage.gateway.keep_fast_path();
    stage.gateway.restart();
    let packets: Vec<_> = (0..sessions)
        .map(|n| {
            let client = format!("192.168.1.{}:{}", 10 + n % 3, 20_000 + n / 3 % 8000);
            stage.udp(&client, &format!("198.51.100.1:{}", 5000 + n / 24_000))
        })
        .collect();
    let is_reset = |seen: &Decoded| seen.tcp().is_some_and(|tcp| tcp.flags & tcp::RST != 0);
    // In parts, each of which the taps forget: looking a packet up among very many takes its time.
    let cross_all = |stage: &Stage| {
        let part = |part: &[Packet]| {
            let seen: Vec<String> = stage.cross_many(part).iter().map(source).collect();
            for tap in [&stage.a, &stage.b, &stage.c, &stage.s1, &stage.wan] {
                assert!(tap.incoming(is_reset).is_empty());
                tap.clear();
            }
            seen
        };
        packets.chunks(1000).flat_map(part).collect::<Vec<_>>()
    };
    let before = cross_all(&stage);
    let tcp = stage.connect("192.168.1.10:40001", SERVER);
    stage.gateway.stop();
    // Between the two there is nobody, and nothing is lost: the pause is none.
    stage.crosses(&packets[7]);
    stage.reaches(&stage.udp(SERVER, &before[7]), stage.tap(Decoded::parse(&packets[7].build()).ip().source));
    stage.gateway.restart();
    assert_eq!(stage.session_count(), sessions + 1);
    let after = cross_all(&stage);
    assert!(before == after, "some have other ports than before");
    assert_eq!(source(&stage.crosses(&stage.data("192.168.1.10:40001", SERVER))), tcp);
    for tap in [&stage.a, &stage.s1] {
        assert!(tap.incoming(is_reset).is_empty());
    }
}

#[test]
fn ops_08_state_of_another_layout_is_not_damaged() {
    let mut stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    stage.gateway.kill();
    // As a daemon of another version would have left it that does not say how it is to be read.
    let pins = PathBuf::from(stage.gateway.pin("LINES")).parent().unwrap().to_owned();
    fs::remove_file(pins.join("LAYOUT")).unwrap();
    let other = pins.with_file_name("v999");
    fs::rename(&pins, &other).unwrap();
    let output = stage.gateway.output(&["run", "--config", &stage.gateway.configuration().to_string_lossy()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another version of natgw (layout 999"), "{said}");
    // Refused before damage: what the other version translates, it still does.
    for _ in 0..3 {
        stage.crosses(&stage.udp(CLIENT, SERVER));
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // The version that knows the layout goes on with it.
    let _ = fs::remove_dir(&pins);
    fs::rename(&other, &pins).unwrap();
    stage.gateway.restart();
    assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped);
    assert_eq!(stage.session_count(), 1);
}

/// Waits until datagrams of `client` come out again, and gives back under which address.
fn until_it_passes(stage: &Stage, client: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(8);
    loop {
        let sent = stage.send(&stage.udp(client, SERVER));
        let patience = Duration::from_millis(200);
        if let Some(seen) = stage.s1.recv_matching(patience, |seen| seen.payload() == sent.payload()) {
            return source(&seen.decoded);
        }
        assert!(Instant::now() < deadline, "nothing passes");
    }
}

#[test]
fn ops_09_links_that_go_and_come_back() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let gateway = &stage.lab.gateway;
    for interface in ["wan", "lan"] {
        gateway.ip(&format!("link set {interface} down"));
        seconds(0.5);
        gateway.ip(&format!("link set {interface} up"));
        gateway.ip("route replace default via 203.0.113.254");
        assert_eq!(until_it_passes(&stage, CLIENT), mapped, "{interface}");
        stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    }
    // Deleted, and created anew with its name: another interface to the kernel.
    gateway.ip("link del wan");
    seconds(0.3);
    gateway.ip(&format!(
        "link add wan address 02:00:00:00:02:01 type veth peer name gw address 02:00:00:00:02:fe netns {}",
        stage.lab.isp.namespace
    ));
    gateway.ip("addr add 203.0.113.1/24 dev wan");
    gateway.ip("link set wan up");
    stage.lab.isp.ip("addr add 203.0.113.254/24 dev gw");
    stage.lab.isp.ip("link set gw up");
    stage.lab.isp.ip("route add 192.168.0.0/16 via 203.0.113.1");
    gateway.ip("route replace default via 203.0.113.254");
    let again = until_it_passes(&stage, "192.168.1.11:40001");
    assert_eq!(again, public(40001));
    stage.reaches(&stage.udp(SERVER, &again), &stage.b);
    stage.expect_bad_packets();
}

#[test]
fn ops_10_started_before_its_interface_and_its_address() {
    let lab = Lab::standard();
    lab.gateway.ip("link set wan down");
    lab.gateway.ip("addr flush dev wan");
    lab.gateway.ip("link set wan name later");
    lab.mute_all();
    let gateway = Gateway::standard(&lab);
    let state = |gateway: &Gateway| gateway.natgw(&["status", "--json"])["interfaces"][1]["state"].clone();
    assert_eq!(state(&gateway), "missing");
    lab.gateway.ip("link set later name wan");
    lab.gateway.ip("link set wan up");
    gateway.wait_until("the interface is served", Duration::from_secs(5), |gateway| state(gateway) == "up");
    let (a, s1, wan) = (lab.a.tap(), lab.s1.tap(), lab.wan());
    // Without an address nothing can be translated, and nothing leaves as it is.
    lab.gateway.ip("route add 203.0.113.254 dev wan");
    lab.gateway.ip("route add default via 203.0.113.254 dev wan onlink");
    a.send(&Packet::udp(CLIENT, SERVER).payload("too early"));
    wan.expect_none("an untranslated packet", |seen| seen.payload() == b"too early");
    lab.gateway.ip("addr add 203.0.113.1/24 dev wan");
    gateway.wait_until("it works", Duration::from_secs(5), |_| {
        a.send(&Packet::udp(CLIENT, SERVER).payload("in time"));
        let seen = s1.recv_matching(Duration::from_millis(200), |seen| seen.payload() == b"in time");
        seen.is_some_and(|seen| source(&seen.decoded) == public(40000))
    });
}

#[test]
fn ops_11_forwards_follow_a_new_address() {
    let forward =
        "[[forward]]\nprotocol = [\"udp\"]\nexternal = \"wan:8080\"\ninternal = \"192.168.1.11:80\"\n";
    let stage = Stage::with(&format!("{}{forward}", gateway::STANDARD));
    stage.reaches(&stage.udp(SERVER, &public(8080)), &stage.b);
    let gateway = &stage.lab.gateway;
    gateway.sysctl("ipv4.conf.wan.promote_secondaries", "1");
    gateway.ip("addr add 203.0.113.2/24 dev wan");
    gateway.ip("addr del 203.0.113.1/24 dev wan");
    gateway.ip("route replace default via 203.0.113.254");
    seconds(1.0);
    stage.reaches(&stage.udp(SERVER, "203.0.113.2:8080"), &stage.b);
    stage.stopped(&stage.udp(SERVER, &public(8080)), &stage.b);
}

#[test]
fn ops_12_the_same_address_again() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let tcp = stage.connect("192.168.1.11:40001", SERVER);
    // As a DHCP client does at each renewal, and as one does that writes it anew.
    for line in [
        "addr replace 203.0.113.1/24 dev wan valid_lft 600 preferred_lft 600",
        "addr change 203.0.113.1/24 dev wan valid_lft forever preferred_lft forever",
    ] {
        stage.lab.gateway.ip(line);
        seconds(0.3);
        assert_eq!(source(&stage.crosses(&stage.udp(CLIENT, SERVER))), mapped, "{line}");
        stage.reaches(&stage.data(SERVER, &tcp), &stage.b);
    }
    assert_eq!(stage.session_count(), 2);
}

/// What the host does to natgw's interfaces is in its log, once and with names; what natgw does itself is not.
#[test]
fn what_changes_on_the_host_is_logged() {
    let mut stage = Stage::with(&gateway::STANDARD.replace("\"masquerade\"", "[\"203.0.113.7\"]"));
    let own = stage.lab.gateway.clone();
    let mut steps: Vec<(&str, &str)> = vec![
        ("addr add 203.0.113.9/24 dev wan", "has a new address interface=\"wan\" address=203.0.113.9"),
        (
            "addr del 203.0.113.9/24 dev wan",
            "has lost an address: sessions behind it end interface=\"wan\" address=203.0.113.9",
        ),
        ("route add 198.51.102.0/24 via 203.0.113.254", "routes have changed: live sessions follow them"),
        (
            "link set wan down",
            "has no link: what would leave by it waits, or finds another route interface=\"wan\"",
        ),
        ("link set wan up", "has its link again interface=\"wan\""),
    ];
    for (line, said) in steps.drain(..) {
        own.ip(line);
        stage.gateway.wait_until(said, Duration::from_secs(10), |gateway| gateway.log().contains(said));
    }
    let log = stage.gateway.log();
    assert!(
        !log.contains("address=203.0.113.7 has")
            && !log.contains("new address interface=\"wan\" address=203.0.113.7"),
        "{log}"
    );
    assert_eq!(log.matches("has its link again").count(), 1, "{log}");
    own.ip("route replace default via 203.0.113.254");
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.gateway.stop();
}

/// Whoever starts it twice by mistake is told, and the first goes on.
#[test]
fn a_second_daemon_is_refused_and_the_first_notices_nothing() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let configuration = stage.gateway.configuration();
    let second = stage.gateway.output(&["run", "--config", &configuration.to_string_lossy()]);
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("another daemon answers there") && said.contains("natgw status"), "{said}");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.crosses(&stage.udp("192.168.1.11:40000", SERVER));
    assert!(!stage.gateway.log().contains("WARN natgw::slowpath"), "{}", stage.gateway.log());
}

/// The findings of `natgw doctor`, by check.
fn diagnosis(stage: &Stage, host: &str) -> BTreeMap<String, String> {
    let arguments: Vec<&str> =
        ["doctor", host, "--json"].into_iter().filter(|word| !word.is_empty()).collect();
    let findings = stage.gateway.natgw(&arguments);
    let found = findings.as_array().unwrap().iter();
    found.map(|finding| (finding["check"].as_str().unwrap().to_owned(), finding.to_string())).collect()
}

#[test]
fn ops_13_netfilter_that_translates_as_well_is_found() {
    let stage = Stage::standard();
    assert!(!diagnosis(&stage, "").contains_key("double_nat"));
    stage.lab.gateway.nft(
        "table ip nat { chain post { type nat hook postrouting priority 100; oifname \"wan\" masquerade; }; }",
    );
    let found = diagnosis(&stage, "");
    assert!(found["double_nat"].contains("masquerade in ip nat post"), "{found:?}");
    // What natgw translates does not meet it.
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    assert_eq!(mapped, public(40000));
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
    stage.lab.gateway.nft("delete table ip nat");
    assert!(!diagnosis(&stage, "").contains_key("double_nat"));
}

#[test]
fn ops_14_what_natgw_itself_refuses_is_named() {
    let limits =
        "ports = \"5000-5001\"\n[limits]\nnew_per_second_per_source = 3\n[timeouts]\nudp = \"120s\"\n";
    let stage = Stage::with(&format!("{}{limits}", gateway::STANDARD));
    let named = |check: &str, words: &[&str]| {
        let found = diagnosis(&stage, "192.168.1.10");
        let text = found.get(check).unwrap_or_else(|| panic!("{check} is not among {found:?}"));
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    let quiet = diagnosis(&stage, "192.168.1.10");
    for check in ["no_route", "ports_exhausted", "source_limit", "no_replies", "no_rule"] {
        assert!(!quiet.contains_key(check), "{quiet:?}");
    }
    for n in 0..3 {
        stage.a.send(&stage.udp(CLIENT, SERVER));
        stage.a.send(&stage.udp(&format!("192.168.1.10:{}", 41000 + n), SERVER));
    }
    named("no_replies", &["198.51.100.1:5000", "0 back", "traceroute"]);
    named("ports_exhausted", &["natgw pool list"]);
    for n in 0..10 {
        stage.c.send(&stage.udp(&format!("192.168.1.12:{}", 42000 + n), SERVER));
    }
    named("source_limit", &["sessions_per_source"]);
    stage.lab.gateway.ip("route del default");
    stage.b.send(&stage.udp("192.168.1.11:43000", "198.51.101.1:9"));
    named("no_route", &["ip route get"]);
    let stranger = diagnosis(&stage, "10.5.5.5");
    assert!(stranger["no_rule"].contains("snat office: source 192.168.0.0/16"), "{stranger:?}");
    assert!(stranger["no_route_back"].contains("no route to 10.5.5.5"), "{stranger:?}");
}

/// Scaled: seconds, not a day. Memory and gauges after churn are what they were after the first of it.
#[test]
fn ops_17_churn_leaves_nothing_behind() {
    let stage = Stage::with(&format!(
        "{}\n[timeouts]\nudp = \"1s\"\ntcp_transitory = \"1s\"\nquarantine = \"0s\"\n",
        gateway::STANDARD
    ));
    let resident = || {
        let status = fs::read_to_string(format!("/proc/{}/status", stage.gateway.id().unwrap())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap().to_owned();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let mut after_first = 0;
    for round in 0..5_u16 {
        for n in 0..1500_u16 {
            let port = 20_000 + round * 1500 + n;
            stage.a.send(&Packet::udp(("192.168.1.10", port), SERVER).payload("churn"));
            stage.b.send(&Packet::tcp(("192.168.1.11", port), SERVER).syn(1));
            if n % 100 == 0 {
                stage.s1.drain();
                stage.wan.drain();
            }
        }
        // The listing and the gauges say the same while there are many.
        let status = stage.gateway.natgw(&["status", "--json"]);
        assert!(status["sessions"].as_u64().unwrap() > 0, "{status}");
        stage.forgets_within(Duration::from_secs(8));
        let status = stage.gateway.natgw(&["status", "--json"]);
        assert_eq!(
            (status["sessions"].as_u64(), status["mappings"].as_u64()),
            (Some(0), Some(0)),
            "{status}"
        );
        let used = status["pools"].as_array().unwrap().iter().map(|pool| pool["used"].as_u64().unwrap());
        assert_eq!(used.sum::<u64>(), 0, "{status}");
        let now = resident();
        if round == 1 {
            after_first = now;
        }
        assert!(round < 2 || now <= after_first + after_first / 50, "{now} KiB after {after_first} KiB");
        for tap in [&stage.a, &stage.b, &stage.s1, &stage.wan] {
            tap.clear();
        }
    }
    stage.crosses(&stage.udp(CLIENT, SERVER));
}

/// Sends on while offloads are switched; CPUs are the machine's, not the lab's.
#[test]
fn offloads_toggled_under_traffic_lose_little() {
    let stage = Stage::standard();
    let mapped = source(&stage.crosses(&stage.udp(CLIENT, SERVER)));
    let (mut sent, mut lost) = (0, 0);
    for setting in ["gro on", "gro off", "tx off", "tx on", "tso off gso off", "tso on gso on"] {
        for interface in ["lan", "wan"] {
            stage.lab.gateway.succeed(&format!("ethtool -K {interface} {setting}"));
            for _ in 0..20 {
                let packet = stage.send(&stage.udp(SERVER, &mapped));
                let seen = stage
                    .a
                    .recv_matching(Duration::from_millis(500), |seen| seen.payload() == packet.payload());
                sent += 1;
                lost += u32::from(seen.is_none());
                let packet = stage.send(&stage.udp(CLIENT, SERVER));
                let seen = stage
                    .s1
                    .recv_matching(Duration::from_millis(500), |seen| seen.payload() == packet.payload());
                sent += 1;
                lost += u32::from(seen.is_none());
            }
        }
    }
    assert!(lost <= 12, "{lost} of {sent}: more than one a toggle");
    stage.reaches(&stage.udp(SERVER, &mapped), &stage.a);
}

#[test]
fn ops_19_timers_change_at_run_time() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(CLIENT, SERVER));
    let echo = |seq| Packet::echo_request("192.168.1.10", "198.51.100.1", 7, seq).payload([7; 8]);
    stage.crosses(&echo(1));
    let left = |stage: &Stage, protocol: &str| {
        let sessions = stage.gateway.sessions();
        let session = sessions.iter().find(|session| session["protocol"] == protocol).unwrap();
        session["expires_in"].as_u64().unwrap()
    };
    assert!(left(&stage, "udp") > 250 && left(&stage, "icmp") > 40);
    let timeouts =
        "\n[timeouts]\nudp = \"3s\"\nicmp = \"2s\"\ntcp_established = \"1h\"\ntcp_transitory = \"10s\"\n";
    stage.gateway.configure(&format!("{}{timeouts}", gateway::STANDARD));
    let said = stage.gateway.natgw(&["reload", "--json"])["warnings"].to_string();
    for floor in ["RFC 4787", "RFC 5508", "RFC 5382"] {
        assert!(said.contains(floor), "{said}");
    }
    stage.crosses(&stage.udp(CLIENT, SERVER));
    stage.crosses(&echo(2));
    assert!(left(&stage, "udp") <= 3 && left(&stage, "icmp") <= 2, "{:?}", stage.gateway.sessions());
    stage.forgets_within(Duration::from_secs(8));
}
