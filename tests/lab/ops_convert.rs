//! Rules that netfilter's own tools print, as a gateway of natgw's that does the same.

use std::{
    fs,
    net::UdpSocket,
    path::PathBuf,
    process::{self, Command, Output},
    time::Duration,
};

use nat_tests::{Lab, host::finish};

use crate::stage::{Stage, public, source};

const SERVER: &str = "198.51.100.1:5000";

/// As an administrator types it who has done so for twenty years.
const IPTABLES: &str = "\
iptables -t nat -A PREROUTING -i wan -p tcp --dport 8080 -j DNAT --to-destination 192.168.1.11:80
iptables -t nat -A PREROUTING -i wan -p udp -m multiport --dports 6000,6010:6012 -j DNAT --to-destination 192.168.1.11
iptables -t nat -A PREROUTING -d 203.0.113.12/30 -j NETMAP --to 192.168.1.12/30
iptables -t nat -A PREROUTING -i wan -p udp --dport 81 -j REDIRECT --to-ports 8081
iptables -t nat -A PREROUTING -i lan -p udp --dport 53 -j REDIRECT --to-ports 5353
iptables -t nat -A POSTROUTING -s 192.168.1.12/30 -o wan -j NETMAP --to 203.0.113.12/30
iptables -t nat -A POSTROUTING -s 192.168.1.11/32 ! -d 198.51.100.2/32 -o wan -j SNAT --to-source 203.0.113.7
iptables -t nat -A POSTROUTING -s 192.168.1.0/24 -o wan -p udp -j MASQUERADE --to-ports 20000-29999
iptables -t nat -A POSTROUTING -s 192.168.1.0/24 -o wan -j MASQUERADE
";

/// The same for nft.
const NFT: &str = "\
table ip nat {
    chain pre {
        type nat hook prerouting priority dstnat; policy accept;
        iifname wan tcp dport 8080 dnat to 192.168.1.11:80
        iifname wan udp dport { 6000, 6010-6012 } dnat to 192.168.1.11
        ip daddr 203.0.113.12/30 dnat ip prefix to ip daddr map { 203.0.113.12/30 : 192.168.1.12/30 }
        iifname wan udp dport 81 redirect to :8081
        iifname lan udp dport 53 redirect to :5353
    }
    chain post {
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr 192.168.1.12/30 oifname wan snat ip prefix to ip saddr map { 192.168.1.12/30 : 203.0.113.12/30 }
        ip saddr 192.168.1.11 ip daddr != 198.51.100.2 oifname wan snat to 203.0.113.7
        ip saddr 192.168.1.0/24 meta l4proto udp oifname wan masquerade to :20000-29999
        ip saddr 192.168.1.0/24 oifname wan masquerade
    }
}
";

/// What a REDIRECT from outside is in netfilter, once natgw does the rest.
const LEFT: &str = "table ip nat { chain pre { type nat hook prerouting priority dstnat; iifname wan udp dport 81 redirect to :8081; }; }";

/// A file of this test's.
fn file(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("natgw-test-{}-{name}", process::id()))
}

fn natgw(lab: &Lab, arguments: &[&str]) -> Output {
    let binary = nat_tests::gateway::binary();
    finish(lab.gateway.command(&binary.to_string_lossy()).args(arguments), &arguments.join(" "))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn what_the_tools_print_becomes_a_gateway() {
    for (form, load, print, rules) in [
        ("iptables-save", IPTABLES, "iptables-save", 2),
        ("nft", NFT, "nft list ruleset", 2),
        ("nft", NFT, "nft -j list ruleset", 2),
    ] {
        let lab = Lab::standard();
        if form == "nft" {
            lab.gateway.nft(load);
        } else {
            let loaded = lab.gateway.shell(&format!("set -e\n{load}"));
            assert!(loaded.status.success(), "{loaded:?}");
        }
        // netfilter's rules did translate, by their own account; now natgw is to do it.
        let printed = lab.gateway.succeed(print);
        lab.gateway.nft("flush ruleset");
        lab.gateway.nft(LEFT);
        let (given, made) = (file("rules"), file("made.toml"));
        fs::write(&given, &printed).expect("write what was printed");
        let converted = natgw(&lab, &["convert", form, given.to_str().expect("UTF-8")]);
        let said = text(&converted.stderr);
        assert_eq!(converted.status.code(), Some(1), "{print}: {said}");
        assert!(said.contains(&format!("{rules} rules not carried over")), "{print}: {said}");
        for (rule, reason) in [("8081", "no rule of natgw's is for"), ("5353", "before netfilter sees it")] {
            let named = said.lines().zip(said.lines().skip(1));
            let named =
                named.filter(|(line, _)| line.starts_with("not carried over: ") && line.contains(rule));
            assert!(named.clone().any(|(_, why)| why.contains(reason)), "{print}: {said}");
        }
        let configuration = text(&converted.stdout);
        fs::write(&made, &configuration).expect("write the configuration");
        let checked = natgw(&lab, &["check", "--config", made.to_str().expect("UTF-8")]);
        assert!(checked.status.success(), "{print}: {checked:?}\n{configuration}");
        let (_, _) = (fs::remove_file(&given), fs::remove_file(&made));
        translates(lab, &configuration, print);
    }
}

/// What the rules said, rule by rule, on the wire.
fn translates(lab: Lab, configuration: &str, print: &str) {
    let own = lab.gateway.within(|| UdpSocket::bind("203.0.113.1:8081")).expect("a service of the gateway");
    own.set_read_timeout(Some(Duration::from_secs(5))).expect("set a timeout");
    let stage = Stage::on(lab, configuration);
    // MASQUERADE, with ports and without; SNAT, but not to one destination; NETMAP, both ways.
    let udp = stage.crosses(&stage.udp("192.168.1.10:40000", SERVER)).source().expect("a source");
    assert_eq!(udp.ip().to_string(), "203.0.113.1", "{print}");
    assert!((20_000..30_000).contains(&udp.port()), "{print}: {udp}");
    assert_eq!(source(&stage.crosses(&stage.syn("192.168.1.10:40000", SERVER))), public(40000), "{print}");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.11:40001", SERVER))), "203.0.113.7:40001");
    let other = stage.crosses(&stage.udp("192.168.1.11:40001", "198.51.100.2:9")).source().expect("a source");
    assert_eq!(other.ip().to_string(), "203.0.113.1", "{print}");
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.12:40002", SERVER))), "203.0.113.12:40002");
    stage.reaches(&stage.udp("198.51.100.2:1", "203.0.113.12:2"), &stage.c);
    // DNAT of a port to another, of a list and a range.
    let seen = stage.reaches(&stage.syn("198.51.100.1:6000", &public(8080)), &stage.b);
    assert_eq!(seen.destination().expect("a destination").to_string(), "192.168.1.11:80");
    for port in [6000, 6010, 6012] {
        let seen = stage.reaches(&stage.udp("198.51.100.1:6000", &public(port)), &stage.b);
        assert_eq!(seen.destination().expect("a destination").port(), port);
    }
    stage.stopped(&stage.udp("198.51.100.1:6000", &public(6009)), &stage.b);
    // REDIRECT from outside is netfilter's still.
    stage.s1.send(&stage.udp("198.51.100.1:6000", &public(81)));
    own.recv(&mut [0; 64]).unwrap_or_else(|error| panic!("{print}: the redirected datagram: {error}"));
}

/// Interfaces that no rule names are said by options; rules come by standard input, too.
#[test]
fn sides_are_said_where_rules_do_not() {
    let lab = Lab::standard();
    let printed = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 192.168.0.0/16 -j MASQUERADE\nCOMMIT\n";
    let given = file("sides");
    fs::write(&given, printed).expect("write rules");
    let binary = nat_tests::gateway::binary();
    let script = format!(
        "{} convert iptables-save --inside lan,guests --outside wan - < {}",
        binary.display(),
        given.display()
    );
    let output = lab.gateway.shell(&script);
    let _ = fs::remove_file(&given);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let configuration = text(&output.stdout);
    for (name, side) in [("lan", "inside"), ("guests", "inside"), ("wan", "outside")] {
        let section = format!("[[interface]]\nname = \"{name}\"\nside = \"{side}\"\n");
        assert!(configuration.contains(&section), "{configuration}");
    }
    let nothing = Command::new(&binary).args(["convert", "nft", "/nowhere/at/all"]).output().expect("natgw");
    assert!(text(&nothing.stderr).contains("/nowhere/at/all"), "{nothing:?}");
    let stage = Stage::on(lab, &configuration);
    assert_eq!(source(&stage.crosses(&stage.udp("192.168.1.10:40000", SERVER))), public(40000));
}
