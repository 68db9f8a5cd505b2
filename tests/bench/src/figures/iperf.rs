//! Transfers as somebody who tries natgw between namespaces would make them.

use std::{
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{
    gateways::{Gateway as _, Natgw, Nftables, Setup},
    machine::Unpinned,
    namespace::{Namespace, run},
    report::FigureReport,
    stage::Settings,
    topology::Lane,
};

/// A client and a server with a gateway between, on veth as `ip link add` makes it.
///
/// The gateway goes first when it is dropped, and the server before its namespace.
struct Household {
    name: &'static str,
    _natgw: Option<Natgw>,
    _server: Server,
    client: Namespace,
    _namespaces: (Lane, Namespace),
}

/// `iperf3 -s`, killed when it is dropped.
struct Server(Child);

/// Streams, direction, and what their rate is called.
const TRANSFERS: [(&str, bool, &str); 4] = [
    ("1", false, "1_stream_mbit_per_second"),
    ("4", false, "4_streams_mbit_per_second"),
    ("1", true, "1_stream_back_mbit_per_second"),
    ("4", true, "4_streams_back_mbit_per_second"),
];

pub(crate) fn measure(settings: &Settings, report: &mut FigureReport) -> anyhow::Result<()> {
    if run(Command::new("iperf3").arg("--version")).is_err() {
        report.absent("natgw", "there is no iperf3 (Debian: apt install iperf3)".to_owned());
        return Ok(());
    }
    let _unpinned = Unpinned::new(settings.cpus)?;
    let mut households = Vec::new();
    for contender in ["native", "generic", "nft"] {
        let wanted = if contender == "nft" { "nft" } else { "natgw" };
        if settings.contenders.iter().any(|contender| contender.name() == wanted) {
            households.push(Household::new(contender)?);
        }
    }
    let transfers = if settings.quick { &TRANSFERS[..2] } else { &TRANSFERS[..] };
    let mut rates = vec![vec![Vec::new(); transfers.len()]; households.len()];
    for round in settings.rounds(report.name()) {
        round?;
        for (household, rates) in households.iter().zip(&mut rates) {
            for ((streams, back, _), rates) in transfers.iter().zip(rates) {
                settings.check_interrupt()?;
                rates.push(household.transfer(streams, *back)?);
            }
        }
    }
    for (household, rates) in households.iter().zip(&rates) {
        for ((.., quantity), rates) in transfers.iter().zip(rates) {
            report.measure(household.name, quantity, rates);
        }
    }
    for (name, above, quantity) in [
        ("native/nft, one stream", "native", TRANSFERS[0].2),
        ("native/nft, four streams", "native", TRANSFERS[1].2),
        ("generic/nft, one stream", "generic", TRANSFERS[0].2),
        ("generic/nft, four streams", "generic", TRANSFERS[1].2),
    ] {
        report.goal(name, report.ratio(quantity, above, "nft"), None, None);
    }
    report.note(
        "native and generic are natgw by its mode; a second each; on all CPUs, unlike the other figures",
    );
    Ok(())
}

impl Household {
    fn new(name: &'static str) -> anyhow::Result<Self> {
        let client = Namespace::create(&format!("{name}-client"))?;
        let server = Namespace::create(&format!("{name}-server"))?;
        let lane = Lane { name, client_index: 0, gateway: Namespace::create(name)? };
        run(Command::new("ip")
            .args(["-n", lane.gateway.name(), "link", "add", "lan", "type", "veth"])
            .args(["peer", "name", "eth0", "netns", client.name()]))?;
        run(Command::new("ip")
            .args(["-n", lane.gateway.name(), "link", "add", "wan", "type", "veth"])
            .args(["peer", "name", "eth0", "netns", server.name()]))?;
        lane.gateway.ip("addr add 10.1.0.1/16 dev lan\naddr add 203.0.113.1/24 dev wan\n\
             link set lo up\nlink set lan up\nlink set wan up\n")?;
        client.ip("addr add 10.1.0.2/16 dev eth0\nlink set eth0 up\nroute add default via 10.1.0.1\n")?;
        server.ip(&format!("addr add {SERVER}/24 dev eth0\nlink set eth0 up\n"))?;
        let natgw = if name == "nft" {
            // Its rule stays in the kernel.
            Nftables::start(&lane)?.prepare(&lane, &Setup::of(1))?;
            None
        } else {
            let mut natgw = Natgw::start()?;
            natgw.prepare(&lane, &Setup { mode: name, ..Setup::of(1) })?;
            Some(natgw)
        };
        let listening = Server::start(&server)?;
        let household = Self { name, _natgw: natgw, _server: listening, client, _namespaces: (lane, server) };
        household.wait_reachable()?;
        Ok(household)
    }

    /// A first connection: the neighbours are found, and the server listens.
    fn wait_reachable(&self) -> anyhow::Result<()> {
        for _ in 0..50 {
            if self.iperf3(&["--bytes", "1K"]).is_ok() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!("{}: the server cannot be reached by TCP", self.name)
    }

    /// Megabits a second that arrive.
    fn transfer(&self, streams: &str, back: bool) -> anyhow::Result<f64> {
        let mut arguments = vec!["--time", "1", "--parallel", streams];
        if back {
            arguments.push("--reverse");
        }
        let answer: Value =
            serde_json::from_str(&self.iperf3(&arguments)?).context("read iperf3's answer")?;
        let rate = answer.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64);
        Ok(rate.with_context(|| format!("{}: iperf3 tells no rate: {answer}", self.name))? / 1e6)
    }

    fn iperf3(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new("iperf3");
        command.args(["--client", SERVER, "--json", "--connect-timeout", "5000"]).args(arguments);
        self.client.run(&mut command)
    }
}

impl Server {
    fn start(namespace: &Namespace) -> anyhow::Result<Self> {
        let _entered = namespace.enter()?;
        let mut command = Command::new("iperf3");
        command.arg("--server").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(command.spawn().context("start iperf3 --server")?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself; either way it is waited for.
        let _gone = self.0.kill();
        if let Err(error) = self.0.wait() {
            eprintln!("iperf3 is left behind: {error}");
        }
    }
}

const SERVER: &str = "203.0.113.2";
