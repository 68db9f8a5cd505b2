//! Each message with its place and hint, and the examples that are shipped.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const INTERFACES: &str = r#"[[interface]]
name = "lan"
side = "inside"
[[interface]]
name = "wan"
side = "outside"
"#;

const EXAMPLES: [&str; 8] = [
    include_str!("../../../examples/cloud.toml"),
    include_str!("../../../examples/home.toml"),
    include_str!("../../../examples/office.toml"),
    include_str!("../../../examples/one-to-one.toml"),
    include_str!("../../../examples/port-forwards.toml"),
    include_str!("../../../examples/services.toml"),
    include_str!("../../../examples/two-uplinks.toml"),
    include_str!("../../../examples/web-farm.toml"),
];

/// The lines of `INTERFACES`: what a test adds begins at the next.
const BEFORE: usize = 6;

fn valid(rest: &str) -> Config {
    Config::parse(&format!("{INTERFACES}{rest}"), "test.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// Asserts that the only problem is in this line of `rest`, and has these words in its message
/// and hint.
#[track_caller]
fn refused(rest: &str, line: usize, message: &str, hint: &str) {
    let error = Config::parse(&format!("{INTERFACES}{rest}"), "test.toml").expect_err("must be refused");
    let [problem] = error.problems() else { panic!("one problem expected: {error}") };
    assert_eq!(problem.line, BEFORE + line, "{error}");
    assert!(problem.message.contains(message), "{message} not in: {error}");
    assert!(problem.hint.contains(hint), "{hint} not in: {error}");
}

fn snat(line: &str) -> String {
    format!("[[snat]]\nto = \"masquerade\"\n{line}\n")
}

fn forward(external: &str, internal: &str) -> String {
    format!("[[forward]]\nexternal = \"{external}\"\ninternal = \"{internal}\"\n")
}

fn pair(external: &str, internal: &str) -> String {
    format!("[[static]]\nexternal = \"{external}\"\ninternal = \"{internal}\"\n")
}

#[test]
fn minimal() {
    let config = valid("[[snat]]\nto = \"masquerade\"\n");
    assert_eq!(config.interfaces[0].side, Side::Inside);
    assert_eq!(config.interfaces[1].mode, AttachMode::Auto);
    let rule = &config.snat[0];
    assert_eq!((rule.name.as_str(), &rule.to), ("snat-1", &SnatTarget::Masquerade));
    assert_eq!(rule.ports, PortRange { first: 1024, last: 65535 });
    assert_eq!(rule.mapping, Mapping::EndpointIndependent);
    assert_eq!(rule.filtering, Filtering::AddressDependent);
    assert_eq!(rule.pooling, Pooling::Paired);
    assert!(rule.hairpin && rule.source.is_any() && rule.protocols.contains(47));
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.control, Control::default());
    assert_eq!(config.limits, Limits::default());
    assert!(config.warnings.is_empty());
    assert!(valid("").snat.is_empty());
}

#[test]
fn examples_are_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let load = |name: &str| Config::load(&folder.join(name)).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(load("home.toml").snat.len(), 1);
    assert_eq!(load("one-to-one.toml").statics[1].external.prefix_len(), 28);

    let office = load("office.toml");
    let SnatTarget::Pool(pool) = &office.snat[1].to else { panic!("a pool expected") };
    assert_eq!((pool.len(), pool.iter().count()), (11, 11));
    assert!(pool.contains(Ipv4Addr::new(198, 51, 100, 7)) && !pool.contains(Ipv4Addr::new(203, 0, 113, 13)));
    assert!(office.snat[1].source.matches(Ipv4Addr::new(10, 1, 8, 1)));
    assert!(!office.snat[1].source.matches(Ipv4Addr::new(10, 1, 9, 1)));
    assert_eq!((office.unmatched_outside, office.unmatched_forged), (Unmatched::Drop, Unmatched::Drop));

    let forwards = load("port-forwards.toml").forwards;
    assert_eq!(forwards[0].external, ForwardAddress::Interface("wan".to_owned()));
    assert_eq!(forwards[1].internal_ports, PortRange { first: 7000, last: 7009 });
    assert!(forwards[2].masquerade_source);
    let services = load("services.toml").services;
    assert_eq!(services.iter().map(|rule| rule.servers.len()).collect::<Vec<_>>(), [3, 2, 2, 2]);
    assert_eq!((services[0].check.kind, services[1].check.kind), (CheckKind::Http, CheckKind::Ping));
    assert_eq!((services[2].method, services[3].method), (Method::DirectRouting, Method::Tunnel));
    for entry in std::fs::read_dir(&folder).expect("examples") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
            assert!(config.warnings.is_empty(), "{}: {:?}", path.display(), config.warnings);
        }
    }
}

#[test]
fn file_and_toml() {
    let missing = Config::load(Path::new("/nonexistent/natgw.toml")).expect_err("no such file").to_string();
    assert!(missing.contains("/nonexistent/natgw.toml") && missing.contains("--config FILE"), "{missing}");
    refused("[[snat]]\nto = masquerade\n", 2, "", "double quotes");
    refused(&snat("prots = \"1-2\""), 3, "unknown key `prots`", "did you mean `ports`?");
    refused("[zebra]\n", 1, "unknown key `zebra`", "known here: interface, snat");
    refused(&snat("hairpin = \"yes\""), 3, "invalid type: string \"yes\"", "double quotes");
    refused(&snat("source = 4.5"), 3, "invalid type: floating point", "lists in [ ]");
}

#[test]
fn interfaces() {
    refused("[[interface]]\nside = \"inside\"\n", 1, "`name` is missing", "ip link");
    refused("[[interface]]\nname = \"x\"\n", 1, "`side` is missing", "inside");
    refused(
        "[[interface]]\nname = \"x\"\nside = \"in\"\n",
        3,
        "`in` is not known",
        "\"inside\", \"outside\"",
    );
    refused("[[interface]]\nname = \"a/b\"\nside = \"inside\"\n", 2, "cannot be an interface's", "15 bytes");
    refused("[[interface]]\nname = \"lan\"\nside = \"inside\"\n", 2, "a second interface", "unique");
    refused("[[interface]]\nname = \"x\"\nside = \"inside\"\nmode = \"fast\"\n", 4, "`fast`", "\"generic\"");
    let error = Config::parse("", "empty.toml").expect_err("no interfaces").to_string();
    assert!(error.contains("no inside interface") && error.contains("no outside interface"), "{error}");
    assert!(error.contains("empty.toml:1:1: "), "{error}");
}

#[test]
fn snat_rules() {
    refused("[[snat]]\n", 1, "`to` is missing", "masquerade");
    refused(
        "[[snat]]\nto = \"masqurade\"\n",
        2,
        "`masqurade` is neither a target nor an address",
        "\"masquerade\", \"none\"",
    );
    refused("[[snat]]\nto = []\n", 2, "a pool of 0 addresses", "masquerade");
    refused("[[snat]]\nto = [\"10.0.0.0/8\"]\n", 2, "16777216 addresses", "masquerade");
    refused("[[snat]]\nto = [\"203.0.113.9-203.0.113.1\"]\n", 2, "ends before", "203.0.113.1-203.0.113.9");
    refused("[[snat]]\nto = [\"203.0.113.1\",\n\"203.0.113.0/29\"]\n", 3, "once more", "once");
    refused("[[snat]]\nto = \"224.0.0.1\"\n", 2, "multicast", "routed");
    refused(&snat("source = [\"10.1.1.1/24\"]"), 3, "behind its prefix", "10.1.1.0/24");
    refused(&snat("destination = [\"!ten\"]"), 3, "`ten` is not an IPv4", "10.1.1.0/24");
    refused(&snat("protocol = [\"tcq\"]"), 3, "`tcq` is not a protocol", "number");
    refused(&snat("out = \"dmz\""), 3, "`dmz` is not an interface", "there are: lan, wan");
    refused(&snat("ports = \"9-8\""), 3, "ends before", "8-9");
    refused(&snat("ports = \"0-8\""), 3, "not a port", "1 to 65535");
    refused(&snat("mapping = \"cone\""), 3, "`cone`", "\"endpoint-dependent\"");
    refused(&snat("filtering = \"none\""), 3, "`none`", "\"address-and-port-dependent\"");
    refused(&snat("pooling = \"any\""), 3, "`any`", "\"arbitrary\"");
    refused(&snat("name = \"a b\""), 3, "cannot be a rule's name", "letters");
    refused(&(snat("name = \"x\"") + &snat("name = \"x\"")), 6, "a second rule", "unique");
    refused(&snat("").repeat(256), 255 * 3 + 1, "256 [[snat]]", "many prefixes");
}

#[test]
fn snat_values() {
    let config = valid(&snat("protocol = [\"tcp\", 47]\nports = 2000"));
    assert_eq!(config.snat[0].protocols, ProtocolSet::of(&[6, 47]));
    assert_eq!(config.snat[0].protocols.to_string(), "tcp,47");
    assert_eq!(config.snat[0].ports.to_string(), "2000");

    let inward = valid(&snat("out = \"lan\""));
    assert_eq!(inward.snat[0].out.as_deref(), Some("lan"));

    let quiet = valid(&snat("mapping = \"endpoint-dependent\""));
    assert_eq!(quiet.snat[0].filtering, Filtering::AddressAndPortDependent);
    assert!(quiet.warnings.is_empty());
    let told = valid(&snat("mapping = \"endpoint-dependent\"\nfiltering = \"endpoint-independent\""));
    assert_eq!(told.snat[0].filtering, Filtering::AddressAndPortDependent);
    assert!(told.warnings[0].contains("filtering is address-and-port-dependent"));
}

#[test]
fn statics() {
    refused(&pair("203.0.113.0/28", "10.1.1.0/29"), 1, "not of the same size", "both a /28");
    refused("[[static]]\nexternal = \"203.0.113.1\"\n", 1, "`internal` is missing", "203.0.113.50");
    refused(&pair("203.0.113.256", "10.1.1.1"), 2, "`203.0.113.256`", "10.1.1.7");
    refused(
        &(pair("203.0.113.0/28", "10.1.1.0/28") + &pair("203.0.113.9", "10.1.2.1")),
        4,
        "external 203.0.113.9 of static `static-2` overlaps 203.0.113.0/28",
        "one [[static]]",
    );
    refused(
        &(pair("203.0.113.8", "10.1.1.1") + &pair("203.0.113.9", "10.1.1.1")),
        4,
        "internal 10.1.1.1",
        "one",
    );
    let shared = valid(&(pair("203.0.113.8", "10.1.1.1") + "[[snat]]\nto = \"203.0.113.0/28\"\n"));
    assert!(shared.warnings[0].contains("share addresses of 203.0.113.8"), "{:?}", shared.warnings);
}

#[test]
fn forwards() {
    refused("[[forward]]\ninternal = \"10.1.1.1:1\"\n", 1, "`external` is missing", "wan:8080");
    refused(&forward("203.0.113.1", "10.1.1.1:1"), 2, "has no port", "[[static]]");
    refused(&forward("203.0.113.1:http", "10.1.1.1:1"), 2, "`http` is not a port", "8080");
    refused(&forward("lan:80", "10.1.1.1:1"), 2, "`lan` is not an outside", "wan");
    refused(&forward("203.0.113.1:80", "web:80"), 3, "`web` is not an IPv4", "10.1.1.7");
    refused(
        &forward("wan:80-89", "10.1.1.1:80-85"),
        3,
        "10 external ports (80-89) and 6",
        "only the first: 80",
    );
    refused(&forward("wan:80-89", "10.1.1.1:65530"), 3, "beyond 65535", "65526 or lower");
    refused(&(forward("wan:80", "10.1.1.1:80") + "protocol = [\"icmp\"]\n"), 4, "protocol 1", "[[static]]");
    refused(
        &(forward("wan:80-90", "10.1.1.1:80") + &forward("wan:85", "10.1.1.2:80")),
        4,
        "overlaps forward `forward-1`",
        "separate",
    );
    refused(
        &(pair("203.0.113.0/28", "10.1.1.0/28") + &forward("203.0.113.1:80", "10.1.1.1:80")),
        4,
        "never matches: static `static-1`",
        "another external",
    );
}

#[test]
fn forwards_told_apart_by_source_share_ports() {
    let first = forward("wan:80", "10.1.1.1:80") + "source = [\"198.51.100.0/24\"]\n";
    let config = valid(&(first + &forward("wan:80", "10.1.1.2:80")));
    assert_eq!(config.forwards.len(), 2);
    assert_eq!(config.forwards[0].protocols.to_string(), "tcp,udp");
}

#[test]
fn timeouts() {
    let config = valid("[timeouts]\ntcp_established = \"2h4m\"\nudp = \"500ms\"\nquarantine = \"0s\"\n");
    assert_eq!(config.timeouts.tcp_established, Duration::from_mins(124));
    assert_eq!(config.timeouts.udp, Duration::from_millis(500));
    assert_eq!(
        config.warnings,
        [
            "[timeouts] udp = 500ms is below the 2m of RFC 4787 REQ-5",
            "[timeouts] quarantine = 0s is below the 2m of RFC 6888 REQ-8",
        ]
    );
    let config = valid(
        "[timeouts]\ntcp_transitory = \"5m\"\ntcp_closing = \"6m\"\nudp_ports = { 53 = \"15s\", 5353 = \"15s\" }\n",
    );
    assert_eq!(config.timeouts.tcp_opening, Duration::from_mins(5));
    assert_eq!(config.timeouts.tcp_closing, Duration::from_mins(6));
    assert_eq!(config.timeouts.udp_ports[&53], Duration::from_secs(15));
    assert_eq!(
        config.warnings,
        ["[timeouts] udp_ports.5353 = 15s is below the 2m of RFC 4787 REQ-5a for ports from 1024"]
    );
    refused("[timeouts]\nudp_ports = { 0 = \"15s\" }\n", 2, "`0` is not a port", "53 = ");
    refused("[timeouts]\nudp_ports = { 53 = \"15\" }\n", 2, "`15` is not a duration", "60s");
    refused("[timeouts]\nudp = 300\n", 2, "`300` is not a duration", "60s");
    refused("[timeouts]\nudp = \"0s\"\n", 2, "0 s", "60s");
    refused("[timeouts]\nudp = \"2years\"\n", 2, "more than a year", "365days");
    refused("[timeouts]\ntcp = \"1s\"\n", 2, "unknown key `tcp`", "");
}

fn service(line: &str, server: &str) -> String {
    format!(
        "[[service]]\nexternal = \"203.0.113.1:80\"\n{line}\n[[service.server]]\naddress = \"{server}\"\n"
    )
}

#[test]
fn services() {
    let config = valid(&service("", "10.1.1.21:8080"));
    let rule = &config.services[0];
    assert_eq!((rule.name.as_str(), rule.protocol, rule.port), ("service-1", 6, 80));
    assert_eq!((rule.method, rule.scheduler), (Method::Nat, Scheduler::RoundRobin));
    assert_eq!((rule.persistence, rule.persistence_prefix), (Duration::ZERO, 32));
    let Check { kind, interval, timeout, fall, rise, .. } = rule.check;
    assert_eq!((kind, fall, rise), (CheckKind::Tcp, 3, 2));
    assert_eq!((interval, timeout), (Duration::from_secs(2), Duration::from_secs(1)));
    assert_eq!(rule.servers, [ServerConfig { address: "10.1.1.21:8080".parse().unwrap(), weight: 1 }]);
    // What a UDP server answers to is not known; without a port, the service's.
    let config = valid(&service("protocol = \"udp\"", "10.1.1.21"));
    assert_eq!(config.services[0].check.kind, CheckKind::None);
    assert_eq!(config.services[0].servers[0].address.port(), 80);
    let empty = valid("[[service]]\nexternal = \"wan:80\"\n");
    assert!(empty.warnings[0].contains("clients are refused"), "{:?}", empty.warnings);

    let wrong = |line: &str, message: &str, hint: &str| {
        refused(&service(line, "10.1.1.21:8080"), 3, message, hint);
    };
    wrong("protocol = \"sctp\"", "`sctp`", "\"udp\"");
    wrong("method = \"magic\"", "`magic`", "\"direct-routing\"");
    wrong("scheduler = \"random\"", "`random`", "\"maglev\"");
    wrong("persistence = \"long\"", "`long` is not a duration", "2h4m");
    wrong("persistence_prefix = 33", "33 is not from 1 to 32", "24");
    wrong("check = { kind = \"https\" }", "no server by TLS", "\"tcp\"");
    wrong("check = { kind = \"smtp\" }", "`smtp`", "\"ping\"");
    wrong("check = { interval = \"1ms\" }", "shorter than 50ms", "2s");
    wrong("check = { fall = 0 }", "0 is not from 1 to 1000", "3");
    wrong("check = { path = \"/x\" }", "`path` means nothing to a check of kind `tcp`", "http");
    wrong("check = { kind = \"http\", path = \"x\" }", "not the path of a URL", "/health");
    wrong("check = { kind = \"http\", status = 42 }", "42 is not from 100 to 599", "200");
    wrong("checks = {}", "unknown key `checks`", "`check`");
    refused(&service("method = \"tunnel\"", "10.1.1.21:8080"), 5, "the port stays", "10.1.1.21:80");
    refused(&service("", "10.1.1.21:80-81"), 5, "2 ports", "one");
    refused(&service("", "web.example"), 5, "not an IPv4 address", "10.1.1.7");
    let twice = format!("{}[[service.server]]\naddress = \"10.1.1.21\"\n", service("", "10.1.1.21:80"));
    refused(&twice, 7, "a second server", "weight");
    refused(&format!("{}weight = -1\n", service("", "10.1.1.21")), 6, "-1 is not from 0", "nothing new");
    refused(
        "[[service]]\nexternal = \"lan:80\"\n[[service.server]]\naddress = \"10.1.1.21\"\n",
        2,
        "outside",
        "wan",
    );
    refused(
        "[[service]]\nexternal = \"wan:80-81\"\n[[service.server]]\naddress = \"10.1.1.21\"\n",
        2,
        "2 ports",
        "one",
    );
    let server = service("", "10.1.1.21");
    refused(&format!("{server}{server}"), 6, "endpoint of service `service-1`", "one [[service]]");
    refused(
        &format!("{}{server}", forward("203.0.113.1:80", "10.1.1.9:80")),
        4,
        "forward `forward-1`",
        "`source`",
    );
    refused(&format!("{}{server}", pair("203.0.113.0/24", "10.2.0.0/24")), 4, "static `static-1`", "another");
    let named = server.replace("[[service]]", "[[service]]\nname = \"snat-1\"");
    refused(&format!("{}{named}", snat("")), 5, "a second rule", "unique");
}

#[test]
fn other_sections() {
    refused("[limits]\nsessions = 0\n", 2, "0 is not from 1 to 67108864", "memory");
    refused("[limits]\nsessions_per_source = -1\n", 2, "-1 is not from 0", "no limit");
    refused("[unmatched]\noutside = \"reject\"\n", 2, "`reject`", "\"pass\", \"drop\"");
    refused("[control]\nsocket = \"natgw.sock\"\n", 2, "not an absolute path", "/run/natgw");
    refused(&format!("[control]\nsocket = \"/{}\"\n", "x".repeat(107)), 2, "more than 107", "shorter");
    let metrics = valid("[metrics]\nlisten = \"127.0.0.1:9477\"\n");
    assert_eq!(metrics.metrics.listen, Some("127.0.0.1:9477".parse().unwrap()));
    assert_eq!(valid("[metrics]\nlisten = \"\"\n").metrics.listen, None);
    for bad in ["127.0.0.1", "9477", "localhost:9477", "127.0.0.1:0"] {
        refused(
            &format!("[metrics]\nlisten = \"{bad}\"\n"),
            2,
            "not an address with a port",
            "127.0.0.1:9477",
        );
    }
    assert!(valid("[log]\nsessions = \"none\"\n[metrics]\nlisten = \"\"\n").warnings.is_empty());
}

#[test]
fn the_log_of_translations() {
    let log = |lines: &str| format!("[log]\n{lines}\n");
    let ipfix = valid(&log(
        "sessions = \"ipfix\"\ncollector = \"192.0.2.9:4739\"\ntemplate_refresh = \"10s\"\nevents = \"blocks\"\nthreshold = 80",
    ))
    .log;
    let collector = "192.0.2.9:4739".parse().unwrap();
    let refresh = Duration::from_secs(10);
    assert_eq!(ipfix.target, Some(LogTarget::Ipfix { collector, refresh }));
    assert!(ipfix.events.contains(EventClass::Blocks) && !ipfix.events.contains(EventClass::Sessions));
    assert_eq!((ipfix.threshold, ipfix.destinations), (80, false));
    let json = valid(&log("sessions = \"json\"")).log;
    assert_eq!(json.target, Some(LogTarget::Json("/var/log/natgw/events.json".into())));
    assert!(json.events.contains(EventClass::Sessions) && !json.events.contains(EventClass::Mappings));
    assert_eq!(valid(&log("sessions = \"syslog\"")).log.target, Some(LogTarget::Syslog(None)));
    assert_eq!(valid("").log.target, None);
    refused(&log("sessions = \"csv\""), 2, "`csv` is not known here", "\"ipfix\"");
    refused(&log("sessions = \"ipfix\""), 2, "`collector` is missing", "192.0.2.9:4739");
    refused(&log("sessions = \"ipfix\"\ncollector = \"192.0.2.9\""), 3, "not an address", "192.0.2.9:4739");
    refused(&log("sessions = \"json\"\nfile = \"log\""), 3, "not an absolute path", "/var/log/natgw");
    refused(&log("sessions = \"json\"\ncollector = \"192.0.2.9:1\""), 3, "means nothing", "\"ipfix\"");
    refused(&log("file = \"/log\""), 2, "`file` means nothing with sessions = \"none\"", "\"json\"");
    refused(&log("sessions = \"json\"\nevents = [\"session\"]"), 3, "no kind of event", "\"sessions\"");
    refused(&log("sessions = \"json\"\nthreshold = 101"), 3, "not a percentage", "1 to 100");
}

proptest! {
    /// Whatever is done to a valid file, the answer is an answer, and its places are in the file.
    #[test]
    fn damaged_files(
        example in 0..EXAMPLES.len(),
        at in any::<prop::sample::Index>(),
        cut in 0..40_usize,
        put in "[a-z0-9!.:/\"\\[\\]=,\n -]{0,12}",
    ) {
        let text = EXAMPLES[example];
        let boundary = |from: usize| (from..=text.len()).find(|&index| text.is_char_boundary(index));
        let start = boundary(at.index(text.len())).unwrap_or(text.len());
        let end = boundary((start + cut).min(text.len())).unwrap_or(text.len());
        let damaged = format!("{}{put}{}", &text[..start], &text[end..]);
        let lines: Vec<&str> = damaged.split('\n').collect();
        if let Err(error) = Config::parse(&damaged, "damaged.toml") {
            prop_assert!(!error.problems().is_empty());
            for problem in error.problems() {
                prop_assert!((1..=lines.len()).contains(&problem.line), "{error}");
                prop_assert!(problem.column <= lines[problem.line - 1].chars().count() + 1, "{error}");
                prop_assert!(!problem.message.is_empty() && !problem.hint.is_empty(), "{error}");
            }
        }
    }
}

#[test]
fn everything_wrong_is_said_at_once() {
    let text = format!("{INTERFACES}[[snat]]\nports = \"x\"\n{}", pair("203.0.113.1", "no"));
    let error = Config::parse(&text, "natgw.toml").expect_err("must be refused");
    assert_eq!(
        error.to_string(),
        "configuration natgw.toml is not valid\n  \
         natgw.toml:7:1: `to` is missing\n    \
         hint: to = \"masquerade\", \"none\", \"track\" or a list of addresses\n  \
         natgw.toml:8:9: `x` is not a port or a range of ports\n    \
         hint: such as 8080 or 6000-6009, each from 1 to 65535\n  \
         natgw.toml:11:12: `no` is not an IPv4 address or prefix\n    \
         hint: such as 10.1.1.7 or 10.1.1.0/24"
    );
}

#[test]
fn addresses_and_blocks_of_a_hosts_own_need_a_pool() {
    let pool = |line: &str| snat(line).replace("\"masquerade\"", "[\"203.0.113.2-203.0.113.4\"]");
    let config = valid(&pool("pooling = \"exclusive\""));
    assert_eq!(config.snat[0].pooling, Pooling::Exclusive);
    refused(&snat("pooling = \"exclusive\""), 3, "there is no pool", "to = [");
    let line = "deterministic = { subscribers = \"10.0.0.0/24\", dynamic = 2 }";
    assert!(valid(&pool(line)).snat[0].deterministic.is_some());
    let blocks =
        |more: &str| format!("deterministic = {{ subscribers = \"10.0.0.0/24\", dynamic = 2, {more} }}");
    let beyond = valid(&pool(&blocks("block = 100, most = 5000"))).snat[0].beyond().unwrap();
    assert_eq!((beyond.size, beyond.most, beyond.within.last), (100, 5000, 65_535));
    refused(&pool(&blocks("block = 60000")), 3, "no room for a block of 60000", "smaller `block`");
    refused(&pool(&blocks("block = 10, most = 3")), 3, "`most` is 3", "at least as many");
    refused(&snat(line), 3, "there is no pool", "to = [");
    refused(
        &pool("deterministic = { subscribers = \"10.0.0.0/8\" }"),
        3,
        "16777216 subscribers",
        "fewer subscribers",
    );
}

#[test]
fn port_sets() {
    let config = valid(&snat("port_set = { length = 8, id = 0x34 }"));
    assert_eq!(config.snat[0].port_set, Some(PortSet { offset: 6, length: 8, id: 0x34 }));
    assert_eq!(config.snat[0].allowed_ports().to_string(), "1024-65535, set 52 of 256 at bit 6");
    refused(&snat("port_set = { length = 8, id = 256 }"), 3, "no port set 256 in 8 bits", "0 to 255");
    refused(
        &snat("port_set = { offset = 9, length = 8, id = 0 }"),
        3,
        "`length` of a port set is not 8",
        "1 to 7",
    );
    let line = "ports = \"1024-1100\"\nport_set = { length = 6, id = 10 }";
    refused(&snat(line), 4, "none of the ports 1024-1100", "leave `ports` out");
}

#[test]
fn tracking_is_a_target() {
    assert_eq!(valid("[[snat]]\nto = \"track\"\n").snat[0].to, SnatTarget::Track);
}

#[test]
fn vlans() {
    let guests = |lines: &str| format!("[[interface]]\nname = \"guests\"\nside = \"inside\"\n{lines}\n");
    let vlan = |lines: &str| valid(&guests(lines)).interfaces[2].vlan.clone();
    assert_eq!(vlan(""), None);
    let of_lan = |outer| Some(VlanConfig { parent: "lan".to_owned(), number: 5, outer });
    assert_eq!(vlan("parent = \"lan\"\nvlan = 5"), of_lan(None));
    assert_eq!(vlan("parent = \"lan\"\nvlan = [5]"), of_lan(None));
    assert_eq!(vlan("parent = \"lan\"\nvlan = [100, 5]"), of_lan(Some(100)));
    refused(&guests("parent = \"lan\""), 1, "`parent` alone", "vlan = 5");
    refused(&guests("vlan = 5"), 1, "`vlan` alone", "parent = ");
    refused(&guests("parent = \"guests\"\nvlan = 5"), 4, "a VLAN of itself", "the device with the address");
    for numbers in ["0", "4095", "-1", "[1, 2, 3]", "[]", "[1, 4095]"] {
        refused(&guests(&format!("parent = \"lan\"\nvlan = {numbers}")), 5, "no VLAN", "1 to 4094");
    }
    let twins = guests("parent = \"lan\"\nvlan = 5")
        + &guests("parent = \"lan\"\nvlan = 5").replace("guests", "more");
    refused(&twins, 6, "more is the same VLAN as guests", "one [[interface]]");
}
