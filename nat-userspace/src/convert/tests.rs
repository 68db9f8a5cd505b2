//! What the tools printed in a namespace with one rule of each kind, converted.

use super::{Conversion, Sides, from_iptables, from_nft};
use crate::config::{Config, ForwardAddress, SnatTarget};

const NFT_BACKEND: &str = include_str!("testdata/iptables-nft.txt");
const LEGACY_BACKEND: &str = include_str!("testdata/iptables-legacy.txt");
const NFT_TEXT: &str = include_str!("testdata/nft.txt");
const NFT_JSON: &str = include_str!("testdata/nft.json");

fn judged(conversion: &Conversion) -> Config {
    Config::parse(&conversion.text, "converted")
        .unwrap_or_else(|error| panic!("{error}\n{}", conversion.text))
}

fn forwards(config: &Config) -> Vec<String> {
    let show = |forward: &crate::config::ForwardRule| {
        let external = match &forward.external {
            ForwardAddress::Address(address) => address.to_string(),
            ForwardAddress::Interface(name) => name.clone(),
        };
        format!(
            "{} {external}:{} {}:{} {}",
            forward.protocols,
            forward.external_ports,
            forward.internal,
            forward.internal_ports,
            forward.source
        )
    };
    config.forwards.iter().map(show).collect()
}

fn sources(config: &Config) -> Vec<String> {
    let show = |rule: &crate::config::SnatRule| {
        let to = match &rule.to {
            SnatTarget::Masquerade => "masquerade".to_owned(),
            SnatTarget::None => "none".to_owned(),
            SnatTarget::Track => "track".to_owned(),
            SnatTarget::Pool(pool) => pool.to_string(),
        };
        let out = rule.out.as_deref().unwrap_or("-");
        format!("{} {} {} {out} {to} {}", rule.source, rule.destination, rule.protocols, rule.ports)
    };
    config.snat.iter().map(show).collect()
}

fn statics(config: &Config) -> Vec<String> {
    config.statics.iter().map(|rule| format!("{} {}", rule.external, rule.internal)).collect()
}

fn left_have(conversion: &Conversion, expected: &[(&str, &str)]) {
    assert_eq!(conversion.left.len(), expected.len(), "{:#?}", conversion.left);
    for (rule, reason) in expected {
        let found =
            conversion.left.iter().find(|left| left.rule.contains(rule) && left.reason.contains(reason));
        assert!(found.is_some(), "{rule} because of {reason}: {:#?}", conversion.left);
    }
    for left in &conversion.left {
        assert!(
            conversion.text.contains(&format!("# {}\n#   {}\n", left.rule, left.reason)),
            "{}",
            conversion.text
        );
    }
}

#[test]
fn iptables_of_both_backends() {
    for text in [NFT_BACKEND, LEGACY_BACKEND] {
        let conversion = from_iptables(text, &Sides::default()).expect("rules");
        let config = judged(&conversion);
        let sides: Vec<_> =
            config.interfaces.iter().map(|i| format!("{} {}", i.name, i.side.name())).collect();
        assert_eq!(sides, ["lan inside", "docker0 inside", "wan outside"]);
        assert_eq!(statics(&config), ["203.0.113.50/32 10.1.1.50/32", "203.0.113.64/28 10.1.2.0/28"]);
        assert_eq!(
            forwards(&config),
            [
                "tcp wan:8080 172.17.0.2:80 any",
                "tcp wan:2222 10.1.1.14:22 198.51.100.0/24",
                "udp 203.0.113.1:6000-6009 10.1.1.15:6000-6009 any",
                "tcp 203.0.113.1:80 10.1.1.12:80 any",
                "tcp 203.0.113.1:443 10.1.1.12:443 any",
                "tcp 203.0.113.1:9000-9003 10.1.1.12:9000-9003 any",
                "tcp 203.0.113.1:7000-7009 10.1.1.16:5000-5009 any",
            ]
        );
        assert_eq!(
            sources(&config),
            [
                "10.1.0.0/16 10.2.0.0/16 any wan none 1024-65535",
                "10.1.9.0/24 !10.0.0.0/8 tcp wan masquerade 10000-60000",
                "10.1.7.4/30,10.1.7.8/31 any any wan 203.0.113.13 1024-65535",
                "172.17.0.0/16 any any - masquerade 1024-65535",
                "10.1.0.0/16 any any wan 203.0.113.10-203.0.113.12 1024-65535",
                "!10.1.0.0/16 any any wan masquerade 1024-65535",
            ]
        );
        left_have(
            &conversion,
            &[
                ("--dport 81", "[[service]]"),
                ("REDIRECT", "keep it in netfilter"),
                ("-A OUTPUT", "own traffic"),
                ("--pol ipsec", "-m policy; --dir out; --pol ipsec"),
                ("--dport 25", "all ports"),
                ("ppp+", "`ppp+`"),
            ],
        );
        assert!(conversion.notes.iter().any(|note| note.contains("forward chain")), "{:?}", conversion.notes);
    }
}

#[test]
fn nft_as_text_and_as_json() {
    for text in [NFT_TEXT, NFT_JSON] {
        let conversion = from_nft(text, &Sides::default()).expect("rules");
        let config = judged(&conversion);
        let sides: Vec<_> =
            config.interfaces.iter().map(|i| format!("{} {}", i.name, i.side.name())).collect();
        assert_eq!(sides, ["lan inside", "wan outside", "lte outside"]);
        assert_eq!(statics(&config), ["203.0.113.50/32 10.1.1.50/32", "203.0.113.64/28 10.1.2.0/28"]);
        assert_eq!(
            forwards(&config),
            [
                "tcp wan:2222 10.1.1.14:22 198.51.100.0/24",
                "tcp 203.0.113.1:80 10.1.1.12:80 any",
                "tcp 203.0.113.1:443 10.1.1.12:443 any",
                "tcp 203.0.113.1:9000-9003 10.1.1.12:9000-9003 any",
                "udp 203.0.113.1:6000-6009 10.1.1.15:6000-6009 any",
                "tcp,udp wan:53 10.1.1.53:53 any",
                "tcp wan:8080 10.1.1.12:80 any",
                "tcp lte:8080 10.1.1.12:80 any",
                "tcp wan:7001 10.1.1.31:7001 any",
                "tcp wan:7002 10.1.1.32:7002 any",
                "udp wan:27015 10.1.1.60:27015 any",
            ]
        );
        assert_eq!(
            sources(&config),
            [
                "10.1.0.0/16 10.2.0.0/16 any wan none 1024-65535",
                "10.1.9.0/24 !10.0.0.0/8 tcp,udp wan masquerade 10000-60000",
                "10.1.7.4/30,10.1.7.8/31 any any lte masquerade 1024-65535",
                "10.1.7.4/30,10.1.7.8/31 any any wan masquerade 1024-65535",
                "10.1.0.0/16,10.3.0.0/16 any any wan 203.0.113.10-203.0.113.12 1024-65535",
                "any any any wan masquerade 1024-65535",
            ]
        );
        left_have(
            &conversion,
            &[
                ("redirect", "keep it in netfilter"),
                ("dport 25", "all ports"),
                ("ppp*", "`ppp*`"),
                ("mark", "mark"),
                ("masquerade", "IPv6"),
            ],
        );
    }
}

#[test]
fn interfaces_that_no_rule_names_are_given_or_stood_for() {
    let rules = "*nat\n:POSTROUTING ACCEPT [0:0]\n-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\nCOMMIT\n";
    let conversion = from_iptables(rules, &Sides::default()).expect("rules");
    assert_eq!(judged(&conversion).interfaces.len(), 2);
    assert_eq!(conversion.notes.len(), 2, "{:?}", conversion.notes);
    let sides = Sides { inside: vec!["eth1".to_owned()], outside: vec!["eth0".to_owned()] };
    let conversion = from_iptables(rules, &sides).expect("rules");
    assert!(conversion.notes.is_empty(), "{:?}", conversion.notes);
    assert_eq!(judged(&conversion).interfaces[1].name, "eth0");
    let twice = Sides { inside: vec!["eth0".to_owned()], outside: vec!["eth0".to_owned()] };
    assert!(from_iptables(rules, &twice).is_err());
}

#[test]
fn what_the_configuration_refuses_is_left_out_with_its_reason() {
    let rule = "-A PREROUTING -i wan -p tcp -m tcp --dport 80 -j DNAT --to-destination";
    let rules = format!("*nat\n:PREROUTING ACCEPT [0:0]\n{rule} 10.1.1.1\n{rule} 10.1.1.2\nCOMMIT\n");
    let conversion = from_iptables(&rules, &Sides::default()).expect("rules");
    assert_eq!(judged(&conversion).forwards.len(), 1);
    left_have(&conversion, &[("10.1.1.2", "overlaps")]);
}

#[test]
fn what_is_no_rule_set_is_refused_and_odd_ones_do_no_harm() {
    assert!(from_iptables("hello", &Sides::default()).is_err());
    assert!(from_nft("hello\n}", &Sides::default()).is_err());
    assert!(from_nft("{\"nftables\": 3}", &Sides::default()).is_err());
    assert!(from_nft("{", &Sides::default()).is_err());
    for cut in (0..NFT_TEXT.len()).step_by(97) {
        if let Ok(conversion) = from_nft(&NFT_TEXT[..cut], &Sides::default()) {
            judged(&conversion);
        }
        let cut = cut.min(NFT_BACKEND.len());
        if let Ok(conversion) = from_iptables(&NFT_BACKEND[..cut], &Sides::default()) {
            judged(&conversion);
        }
    }
}
