//! Every option of the command line, tried on a daemon that has something to say.
//!
//! `tests/options.txt` says which test is whose; a unit test of the command compares it with what there is.

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    process::Output,
    time::{Duration, Instant},
};

use nat_tests::{Packet, gateway, host::finish};
use serde_json::{Value, json};

use crate::stage::{Stage, public, seconds, source};

const SERVER: &str = "198.51.100.1:5000";
const UDP: &str = "192.168.1.10:40000";
const TCP: &str = "192.168.1.11:40001";
const WEB: &str = "192.168.1.12:80";

/// The standard set-up with a forward.
fn with_forward() -> String {
    format!(
        "{}[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nexternal = \"wan:8080\"\ninternal = \"{WEB}\"\n",
        gateway::STANDARD
    )
}

/// A stage with three sessions: a datagram's, a connection, and a first segment from outside.
fn with_sessions() -> Stage {
    let stage = Stage::with(&with_forward());
    stage.crosses(&stage.udp(UDP, SERVER));
    stage.connect(TCP, "198.51.100.2:443");
    stage.reaches(&stage.syn("198.51.100.1:6000", &public(8080)), &stage.c);
    stage
}

/// Each filter, and the inside endpoints of the sessions that it means.
const FILTERS: &[(&[&str], &[&str])] = &[
    (&["--inside", "192.168.1.11"], &[TCP]),
    (&["--inside", "192.168.1.10:40000"], &[UDP]),
    (&["--inside", "192.168.1.10/31"], &[UDP, TCP]),
    (&["--inside", "192.168.1.10:1"], &[]),
    (&["--outside", "203.0.113.1:8080"], &[WEB]),
    (&["--outside", "203.0.113.1"], &[UDP, TCP, WEB]),
    (&["--remote", "198.51.100.2"], &[TCP]),
    (&["--remote", "198.51.100.1:6000"], &[WEB]),
    (&["--remote", "198.51.100.0/24"], &[UDP, TCP, WEB]),
    (&["--protocol", "tcp"], &[TCP, WEB]),
    (&["--protocol", "17"], &[UDP]),
    (&["--protocol", "icmp"], &[]),
    (&["--state", "established"], &[TCP]),
    (&["--state", "opening"], &[WEB]),
    (&["--state", "active"], &[UDP]),
    (&["--rule", "web"], &[WEB]),
    (&["--rule", "office"], &[UDP, TCP]),
    (&["--protocol", "tcp", "--rule", "office"], &[TCP]),
];

fn insides(rows: &Value) -> BTreeSet<String> {
    let rows = rows.as_array().unwrap_or_else(|| panic!("no array: {rows}"));
    rows.iter().map(|row| row["inside"].as_str().expect("an endpoint").to_owned()).collect()
}

fn set(words: &[&str]) -> BTreeSet<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn sessions_are_listed_and_counted_by_each_filter() {
    let stage = with_sessions();
    let ask = |verb: &str, filter: &[&str], more: &[&str]| {
        stage.gateway.text(&[&["session", verb], filter, more].concat())
    };
    for (filter, meant) in FILTERS {
        let rows = serde_json::from_str(&ask("list", filter, &["--json"])).expect("JSON");
        assert_eq!(insides(&rows), set(meant), "{filter:?}");
        let table = ask("list", filter, &[]);
        let shown = [UDP, TCP, WEB].into_iter().filter(|inside| table.contains(*inside)).count();
        assert_eq!((shown, table.lines().count()), (meant.len(), meant.len() + 1), "{filter:?}:\n{table}");
        assert_eq!(ask("count", filter, &[]), format!("{}\n", meant.len()), "{filter:?}");
        let counted: Value = serde_json::from_str(&ask("count", filter, &["--json"])).expect("JSON");
        assert_eq!(counted, json!({ "sessions": meant.len() }), "{filter:?}");
    }
    for (arguments, said) in [
        (&["session", "list", "--inside", "nowhere"][..], "is not an address"),
        (&["session", "list", "--protocol", "frog"], "frog"),
        (&["session", "list", "--state", "asleep"], "asleep"),
    ] {
        let output = stage.gateway.output(arguments);
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && words.contains(said), "{words}");
    }
}

#[test]
fn sessions_are_deleted_by_each_filter() {
    let stage = with_sessions();
    let again = |inside: &str| match inside {
        UDP => drop(stage.crosses(&stage.udp(UDP, SERVER))),
        TCP => drop(stage.connect(TCP, "198.51.100.2:443")),
        _ => drop(stage.reaches(&stage.syn("198.51.100.1:6000", &public(8080)), &stage.c)),
    };
    for (filter, meant) in FILTERS {
        // What its state is, is another case's.
        if filter.contains(&"--state") && !filter.contains(&"active") {
            continue;
        }
        let answer = stage.gateway.natgw(&[&["session", "delete"], *filter, &["--json"]].concat());
        assert_eq!(answer, json!({ "deleted": meant.len() }), "{filter:?}");
        let left: Vec<&str> = [UDP, TCP, WEB].into_iter().filter(|inside| !meant.contains(inside)).collect();
        assert_eq!(insides(&Value::Array(stage.gateway.sessions())), set(&left), "{filter:?}");
        meant.iter().for_each(|inside| again(inside));
    }
    assert_eq!(stage.gateway.text(&["session", "delete", "--state", "opening"]), "1 session deleted\n");
    // All of them only by another word.
    assert_eq!(stage.gateway.output(&["session", "delete"]).status.code(), Some(2));
    assert_eq!(stage.session_count(), 2);
    assert_eq!(stage.gateway.natgw(&["session", "flush", "--json"]), json!({ "deleted": 2 }));
    again(UDP);
    assert_eq!(stage.gateway.text(&["session", "flush"]), "1 session deleted\n");
    assert_eq!(stage.session_count(), 0);
}

#[test]
fn sessions_are_watched_by_each_filter() {
    let stage = Stage::with(&with_forward());
    let file = |at: usize| -> PathBuf { stage.gateway.socket().with_extension(format!("watch{at}")) };
    // The connection is opening, too, when it begins.
    let meant_by = |at: usize| {
        let (filter, meant) = FILTERS[at];
        if filter.contains(&"opening") { set(&[TCP, WEB]) } else { set(meant) }
    };
    let read = |at: usize| fs::read_to_string(file(at)).unwrap_or_default();
    let watches: Vec<_> = FILTERS
        .iter()
        .enumerate()
        .map(|(at, (filter, _))| {
            stage.gateway.spawn(&[&["session", "watch", "--json"], *filter].concat(), &file(at))
        })
        .collect();
    let words = file(FILTERS.len());
    let _plain = stage.gateway.spawn(&["session", "watch", "--inside", "192.168.1.10"], &words);
    // Nothing says that a watch has begun: sessions come anew until each has been told what it asks for.
    let told = |at: usize| -> BTreeSet<String> {
        let text = read(at);
        let lines = text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        let lines = lines.map(|line| serde_json::from_str::<Value>(line).expect("a line of JSON"));
        lines.map(|line| line["inside"].as_str().expect("an endpoint").to_owned()).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(40);
    while (0..FILTERS.len()).any(|at| told(at) != meant_by(at))
        || !fs::read_to_string(&words).is_ok_and(|text| text.contains(UDP))
    {
        for (at, (filter, _)) in FILTERS.iter().enumerate() {
            assert!(told(at).is_subset(&meant_by(at)), "{filter:?}: {}", read(at));
            assert!(Instant::now() < deadline, "{filter:?}: {:?}", told(at));
        }
        stage.crosses(&stage.udp(UDP, SERVER));
        stage.connect(TCP, "198.51.100.2:443");
        stage.reaches(&stage.syn("198.51.100.1:6000", &public(8080)), &stage.c);
        seconds(0.3);
        stage.gateway.text(&["session", "flush"]);
    }
    assert!(!fs::read_to_string(&words).expect("a file").contains(TCP));
    drop(watches);
}

/// What `rule add` writes into the file, key by key, and what is in force then.
#[test]
fn rules_are_added_with_every_option() {
    let stage = Stage::standard();
    let file = || fs::read_to_string(stage.gateway.configuration()).expect("the configuration");
    let words = "rule add snat --name guests --to 203.0.113.7,203.0.113.8 --source 192.168.1.12,!192.168.1.13 \
                 --destination 198.51.100.0/24 --protocol udp,tcp --out wan --ports 2000-2999 \
                 --mapping address-dependent --filtering address-and-port-dependent --pooling arbitrary \
                 --hairpin false --before office --save --json";
    let answer = stage.gateway.natgw(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(answer["changes"], json!(["snat guests: added"]), "{answer}");
    let rule = &stage.gateway.natgw(&["rule", "list", "--json"])[0];
    for (key, wanted) in [
        ("name", json!("guests")),
        ("destination", json!("198.51.100.0/24")),
        ("out", json!("wan")),
        ("ports", json!("2000-2999")),
        ("mapping", json!("address-dependent")),
        ("filtering", json!("address-and-port-dependent")),
        ("pooling", json!("arbitrary")),
        ("hairpin", json!(false)),
    ] {
        assert_eq!(rule[key], wanted, "{key} of {rule}");
    }
    let text = file();
    for line in [
        "name = \"guests\"",
        "source = [\"192.168.1.12\", \"!192.168.1.13\"]",
        "destination = [\"198.51.100.0/24\"]",
        "protocol = [\"udp\", \"tcp\"]",
        "out = \"wan\"",
        "to = [\"203.0.113.7\", \"203.0.113.8\"]",
        "ports = \"2000-2999\"",
        "mapping = \"address-dependent\"",
        "filtering = \"address-and-port-dependent\"",
        "pooling = \"arbitrary\"",
        "hairpin = false",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line}:\n{text}");
    }
    assert!(text.find("guests") < text.find("office"), "--before:\n{text}");
    let seen = stage.crosses(&stage.udp("192.168.1.12:50000", SERVER)).source().expect("a source");
    assert!(["203.0.113.7", "203.0.113.8"].contains(&seen.ip().to_string().as_str()), "{seen}");
    assert!((2000..3000).contains(&seen.port()), "{seen}");
    assert_eq!(source(&stage.crosses(&stage.udp(UDP, SERVER))), public(40000));

    let words = "rule add static --name mail --external 203.0.113.9 --internal 192.168.1.11 --save";
    let said = stage.gateway.text(&words.split_whitespace().collect::<Vec<_>>());
    assert!(said.contains("static mail: added\nsaved in "), "{said}");
    let seen = stage.crosses(&stage.udp(TCP, SERVER));
    assert_eq!(source(&seen), "203.0.113.9:40001");
    let words = "rule add static --name early --external 203.0.113.10 --internal 192.168.1.13 --before mail --save --json";
    stage.gateway.natgw(&words.split_whitespace().collect::<Vec<_>>());
    assert!(file().find("early") < file().find("mail"), "{}", file());

    let words = "rule add forward --name web --external wan:8080 --internal 192.168.1.12:80 --protocol tcp \
                 --source 198.51.100.1,198.51.100.2 --masquerade-source";
    let said = stage.gateway.text(&words.split_whitespace().collect::<Vec<_>>());
    assert!(said.contains("forward web: added") && !said.contains("saved in"), "{said}");
    let seen = stage.reaches(&stage.syn("198.51.100.2:6000", &public(8080)), &stage.c);
    assert!(source(&seen).starts_with("192.168.1.1:"), "--masquerade-source: {seen}");
    stage.stopped(&stage.syn("198.51.101.1:6000", &public(8080)), &stage.c);
    let words = "rule add forward --name early-web --external wan:8081 --internal 192.168.1.12:81 --before web --save --json";
    // What is not in the file cannot be stood before in it.
    let refused = stage.gateway.output(&words.split_whitespace().collect::<Vec<_>>());
    assert_eq!(refused.status.code(), Some(1));
    let words = words.replace(" --save", "");
    stage.gateway.natgw(&words.split_whitespace().collect::<Vec<_>>());
    let table = stage.gateway.text(&["rule", "list"]);
    assert!(table.find("early-web") < table.find(" web "), "{table}");

    let answer = stage.gateway.natgw(&["rule", "delete", "web", "--json"]);
    assert_eq!(answer["changes"], json!(["forward web: removed"]));
    let said = stage.gateway.text(&["rule", "delete", "guests", "--save"]);
    assert!(said.contains("saved in "), "{said}");
    assert!(!file().contains("guests"));
}

#[test]
fn top_looks_as_it_is_told() {
    let stage = with_sessions();
    let top = |more: &[&str]| stage.gateway.text(&[&["top", "--once", "--interval", "0.3"], more].concat());
    let hosts = |text: &str| -> Vec<String> {
        let rows = text.lines().skip_while(|line| !line.starts_with("INSIDE-HOST")).skip(1);
        rows.take_while(|line| !line.is_empty())
            .map(|line| line.split(' ').next().unwrap_or_default().to_owned())
            .collect()
    };
    stage.crosses(&stage.udp("192.168.1.10:40002", SERVER));
    let asked = Instant::now();
    let text = top(&["--sort", "name"]);
    assert!(asked.elapsed() < Duration::from_secs(10), "--once ends");
    assert!(text.contains("over 0.3 s"), "--interval: {text}");
    assert_eq!(hosts(&text), ["192.168.1.10", "192.168.1.11", "192.168.1.12"], "{text}");
    assert_eq!(hosts(&top(&["--sort", "sessions"]))[0], "192.168.1.10");
    assert_eq!(hosts(&top(&["--filter", "1.11"])), ["192.168.1.11"]);
    assert_eq!(hosts(&top(&["--most", "1"])).len(), 1);
    let look: Value = serde_json::from_str(&top(&["--json", "--most", "2"])).expect("one line of JSON");
    assert_eq!(look["hosts"].as_array().map(Vec::len), Some(2), "{look}");
    assert_eq!(stage.gateway.output(&["top", "--interval", "0"]).status.code(), Some(2));
    // On a terminal, whose keys end it.
    let natgw =
        format!("{} --socket {}", stage.gateway.program().display(), stage.gateway.socket().display());
    for (view, wanted, other) in
        [("remotes", "198.51.100.2", "192.168.1.11"), ("hosts", "192.168.1.11", "198.51.100.2")]
    {
        let script = format!(
            "(sleep 3; printf q; sleep 5) | TERM=xterm script --quiet --return --command 'stty cols 80 rows 24; {natgw} top --interval 0.3 --view {view}' /dev/null"
        );
        let output = stage.lab.gateway.shell(&script);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && text.contains(wanted) && !text.contains(other), "{view}: {text}");
    }
}

#[test]
fn a_capture_is_rate_limited() {
    let stage = Stage::standard();
    stage.crosses(&stage.udp(UDP, SERVER));
    for (rate, enough) in [("3", false), ("0", true)] {
        let file = stage.gateway.socket().with_extension(format!("pcapng{rate}"));
        let path = file.display().to_string();
        let capture = stage
            .gateway
            .spawn(&["capture", "--write", &path, "--rate", rate, "udp"], &file.with_extension("printed"));
        stage.gateway.wait_until("its file has begun", Duration::from_secs(10), |_| {
            fs::metadata(&file).is_ok_and(|file| file.len() > 0)
        });
        for _ in 0..60 {
            stage.crosses(&stage.udp(UDP, SERVER));
        }
        seconds(0.5);
        drop(capture);
        let read = stage.lab.gateway.run(&format!("tshark -r {path}"));
        let frames = String::from_utf8_lossy(&read.stdout).lines().count();
        // Each of those that are taken has two.
        assert_eq!(frames >= 120, enough, "{frames} frames at {rate} a second");
        assert!(frames >= 2, "{read:?}");
    }
}

/// Everything else that only says something: as a table and as JSON, by option and by environment.
#[test]
fn every_listing_has_two_forms() {
    let service = "[[service]]\nname = \"www\"\nexternal = \"wan:80\"\ncheck = { kind = \"none\" }\n[[service.server]]\naddress = \"192.168.1.11:8080\"\n";
    let stage = Stage::with(&format!("{}{service}", with_forward()));
    stage.crosses(&stage.udp(UDP, SERVER));
    for (arguments, heading, field) in [
        (&["status"][..], "INTERFACE", "/interfaces/0/name"),
        (&["session", "list"], "PROTOCOL", "/0/inside"),
        (&["pool", "list"], "ADDRESS", "/0/address"),
        (&["rule", "list"], "KIND", "/0/kind"),
        (&["service", "list"], "SCHEDULER", "/0/servers/0/address"),
    ] {
        let table = stage.gateway.text(arguments);
        assert!(table.contains(heading), "{arguments:?}: {table}");
        let json = stage.gateway.natgw(&[arguments, &["--json"]].concat());
        assert!(json.pointer(field).is_some_and(Value::is_string), "{arguments:?}: {json}");
    }
    assert!(stage.gateway.text(&["reload"]).starts_with("reloaded: 1 session kept"));
    assert_eq!(stage.gateway.natgw(&["reload", "--json"])["kept"], 1);
    assert!(stage.gateway.text(&["metrics"]).contains("\nnatgw_sessions "));
    // The doctor of the set-up, and of a host that no rule is for.
    stage.gateway.output(&["doctor"]);
    let findings = stage.gateway.natgw(&["doctor", "--json"]);
    assert!(findings.as_array().is_some_and(|findings| findings.iter().all(|one| one["title"].is_string())));
    let of_host = stage.gateway.natgw(&["doctor", "10.9.9.9", "--json"]).to_string();
    assert!(of_host.contains("no_rule") && !findings.to_string().contains("no_rule"), "{of_host}");
}

#[test]
fn servers_are_changed_by_every_verb() {
    let service = "[[service]]\nname = \"www\"\nexternal = \"wan:80\"\ncheck = { kind = \"none\" }\n[[service.server]]\naddress = \"192.168.1.11:8080\"\n";
    let stage = Stage::with(&format!("{}{service}", gateway::STANDARD));
    let servers = || -> Vec<(String, u64)> {
        let rows = stage.gateway.natgw(&["service", "list", "--json"]);
        let rows = rows[0]["servers"].as_array().cloned().unwrap_or_default();
        let row = |row: &Value| (row["address"].as_str().unwrap_or("").to_owned(), row["weight"].as_u64());
        rows.iter().map(row).map(|(address, weight)| (address, weight.expect("a weight"))).collect()
    };
    let (first, second) = ("192.168.1.11:8080", "192.168.1.12:8080");
    let told = |arguments: &[&str]| stage.gateway.text(&[&["service"], arguments].concat());
    told(&["add", "www", second]);
    assert_eq!(servers(), [(first.to_owned(), 1), (second.to_owned(), 1)]);
    told(&["remove", "www", second]);
    told(&["add", "www", second, "--weight", "7"]);
    told(&["weight", "www", first, "3"]);
    assert_eq!(servers(), [(first.to_owned(), 3), (second.to_owned(), 7)]);
    told(&["drain", "www", first]);
    assert_eq!(servers(), [(first.to_owned(), 0), (second.to_owned(), 7)]);
    for token in 0..4 {
        let syn =
            Packet::tcp(format!("198.51.100.1:{}", 6000 + token).as_str(), public(80).as_str()).syn(token);
        stage.reaches(&syn, &stage.c);
    }
    told(&["remove", "www", first]);
    assert_eq!(servers(), [(second.to_owned(), 7)]);
}

/// A command of natgw's as its user types it, in the gateway's namespace but without the test's own `--socket`.
fn typed(stage: &Stage, environment: &[(&str, &str)], arguments: &[&str]) -> Output {
    let mut command = stage.lab.gateway.command(&stage.gateway.program().to_string_lossy());
    command.env_remove("NATGW_SOCKET").envs(environment.iter().copied());
    finish(command.args(arguments), &arguments.join(" "))
}

#[test]
fn the_daemon_is_found_and_files_are_read_by_every_way() {
    let mut stage = Stage::standard();
    let socket = stage.gateway.socket().display().to_string();
    let text = |output: &Output| String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!typed(&stage, &[], &["status"]).status.success(), "nobody is at the default socket");
    for output in [
        typed(&stage, &[("NATGW_SOCKET", &socket)], &["status"]),
        typed(&stage, &[], &["--socket", &socket, "status"]),
        typed(&stage, &[], &["status", "--socket", &socket]),
        typed(&stage, &[("NATGW_SOCKET", "/nowhere")], &["--socket", &socket, "status"]),
    ] {
        assert!(output.status.success() && text(&output).contains("lan"), "{output:?}");
    }
    let file = stage.gateway.configuration().display().to_string();
    for option in ["--config", "-c"] {
        let output = typed(&stage, &[], &["check", option, &file]);
        assert!(text(&output).contains("is valid: 2 interfaces, 1 snat"), "{output:?}");
    }
    for arguments in [&["--version"][..], &["--help"], &["session", "list", "--help"], &["help", "trace"]] {
        let output = typed(&stage, &[], arguments);
        assert!(output.status.success() && text(&output).contains("natgw"), "{output:?}");
    }
    // What it logs.
    assert!(!stage.gateway.log().contains(" DEBUG "));
    stage.gateway.stop();
    stage.gateway.restart_with(&[("NATGW_LOG", std::path::Path::new("debug"))]);
    stage
        .gateway
        .wait_until("it says more", Duration::from_secs(10), |gateway| gateway.log().contains("DEBUG"));
    // With `--keep` a stop leaves what is established.
    stage.gateway.stop();
    stage.gateway.keep_fast_path();
    stage.gateway.restart();
    stage.crosses(&stage.udp(UDP, SERVER));
    stage.gateway.stop();
    stage.crosses(&stage.udp(UDP, SERVER));
    stage.gateway.drop_fast_path();
    stage.gateway.restart();
    stage.gateway.stop();
    stage.stopped(&stage.udp(UDP, SERVER), &stage.s1);
}

#[test]
fn what_is_generated_is_read_by_its_readers() {
    let stage = Stage::standard();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = typed(&stage, &[], &["completions", shell]);
        let script = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success() && script.contains("remote") && script.contains("save"), "{shell}");
    }
    let natgw = stage.gateway.program().display().to_string();
    // bash itself completes a word, and groff has nothing to say against the page.
    let script = format!(
        "bash -c 'source <({natgw} completions bash); COMP_WORDS=(natgw session l); COMP_CWORD=2; _natgw natgw l session; echo \"${{COMPREPLY[@]}}\"'"
    );
    let completed = stage.lab.gateway.shell(&script);
    assert_eq!(String::from_utf8_lossy(&completed.stdout), "list\n", "{completed:?}");
    let page = stage.lab.gateway.shell(&format!("{natgw} man | groff -man -Tutf8 -ww -z"));
    assert!(page.status.success() && page.stderr.is_empty(), "{page:?}");
}
