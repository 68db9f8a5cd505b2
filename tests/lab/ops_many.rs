//! A listing of very many sessions, while packets pass.

use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use nat_tests::{Packet, Tap, gateway};

use crate::stage::{Stage, scaled, source};

/// Sessions that are opened at a time, so that no queue overflows.
const CHUNK: u32 = 4000;

/// How many sessions natgw counts.
fn open(stage: &Stage) -> u64 {
    stage.gateway.natgw(&["status", "--json"])["sessions"].as_u64().unwrap()
}

/// Memory that a process has, in KiB.
fn resident(id: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// A gateway with room for a million sessions.
fn roomy() -> Stage {
    Stage::with(&format!(
        "{}filtering = \"endpoint-independent\"\n[limits]\nsessions = 1100000\n[timeouts]\nudp = \"1h\"\n",
        gateway::STANDARD
    ))
}

/// One of the sessions that are [filled in](fill): twenty to a remote port.
fn packet(stage: &Stage, number: u32) -> Packet {
    let port = |number| u16::try_from(number).expect("a port");
    let client = (stage.lab.a.address, port(10_000 + number % 20));
    Packet::udp(client, (stage.lab.s1.address, port(1 + number / 20)))
}

/// Opens so many.
fn fill(stage: &Stage, sessions: u32) {
    for first in (0..sessions).step_by(CHUNK as usize) {
        for number in first..first + CHUNK {
            stage.a.send(&packet(stage, number).payload("one"));
        }
        stage.gateway.wait_until("they are open", Duration::from_secs(30), |_| {
            open(stage) == u64::from(first + CHUNK)
        });
        clear(&[&stage.a, &stage.s1, &stage.wan]);
    }
}

/// `natgw session list` into a pipe.
fn listing(stage: &Stage) -> Child {
    let mut command = stage.lab.gateway.command(&gateway::binary().to_string_lossy());
    command.arg("--socket").arg(stage.gateway.socket()).args(["session", "list"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("start the listing")
}

fn clear(taps: &[&Tap]) {
    for tap in taps {
        tap.clear();
    }
}

/// The rows come as they are read, neither side holds them all, and packets pass and sessions open meanwhile. A million
/// of them with `--full`: under ten seconds of a release build.
#[test]
fn a_listing_of_very_many_streams_beside_traffic() {
    let sessions: u32 = scaled(100_000, 1_000_000);
    let stage = roomy();
    fill(&stage, sessions);
    let mapped = source(&stage.crosses(&stage.udp("192.168.1.11:50000", "198.51.100.2:7")));
    let daemon = stage.gateway.id().expect("it runs");
    let before = resident(daemon);
    let begun = Instant::now();
    let mut child = listing(&stage);
    let (id, pipe) = (child.id(), child.stdout.take().expect("a pipe"));
    let mut rows = BufReader::new(pipe);
    let mut line = String::new();
    rows.read_line(&mut line).expect("a heading");
    assert!(line.contains("OUTSIDE"), "{line}");
    line.clear();
    rows.read_line(&mut line).expect("a row");
    let first = begun.elapsed();
    assert!(first < Duration::from_secs(3), "the first row came after {first:?}");
    // Nobody reads on: what waits is in nobody's memory.
    thread::sleep(Duration::from_secs(1));
    let (client, more) = (resident(id), resident(daemon).saturating_sub(before));
    assert!(client < 32 << 10, "the command has {client} KiB");
    assert!(more < 32 << 10, "the daemon has {more} KiB more");
    let reader = thread::spawn(move || {
        let begun = Instant::now();
        let found = 1 + rows.split(b'\n').map_while(Result::ok).count();
        (found, begun.elapsed())
    });
    let (mut sent, mut opened) = (0_u16, 0_u16);
    while !reader.is_finished() || sent < 20 {
        // An answer by a session that is there, and another session.
        stage.reaches(&stage.udp("198.51.100.2:7", &mapped), &stage.b);
        stage.crosses(&stage.udp(&format!("192.168.1.11:{}", 51_000 + sent), "198.51.100.2:7"));
        sent += 1;
        if !reader.is_finished() {
            opened = sent;
        }
        thread::sleep(Duration::from_millis(5));
    }
    let (found, took) = reader.join().expect("a count");
    assert!(child.wait().expect("its end").success());
    println!(
        "{found} rows in {took:?}, the first after {first:?}; {opened} sessions opened meanwhile; {client} and {more} KiB"
    );
    let (least, most) = (sessions as usize + 1, sessions as usize + 1 + usize::from(sent));
    assert!((least..=most).contains(&found), "{found} rows of {least} to {most}");
    // The fewer are for a debug build on a busy machine.
    let patience = Duration::from_secs(scaled(40, 10));
    assert!(took < patience, "{found} rows took {took:?}");
    let more = resident(daemon).saturating_sub(before);
    assert!(more < 32 << 10, "the daemon has {more} KiB more");
}

/// Levels of the index that were left are let go. Whoever takes the table over twice misses nothing: by then a level is in
/// force of which these were a quarter.
#[test]
fn a_large_table_is_taken_over_with_all_that_is_in_it() {
    const SESSIONS: u32 = 120_000;
    let mut stage = roomy();
    fill(&stage, SESSIONS);
    let sample = || (0..SESSIONS).step_by(997);
    let cross =
        |stage: &Stage, number| source(&stage.crosses(&packet(stage, number).payload(number.to_string())));
    let before: Vec<String> = sample().map(|number| cross(&stage, number)).collect();
    for _ in 0..2 {
        stage.gateway.kill();
        assert_eq!(cross(&stage, 5), before[0].replace(":10000", ":10005"));
        stage.gateway.restart();
        assert_eq!(open(&stage), u64::from(SESSIONS));
        let after: Vec<String> = sample().map(|number| cross(&stage, number)).collect();
        assert_eq!(before, after);
        stage.reaches(&stage.udp("198.51.100.1:1", &before[0]), &stage.a);
    }
}
