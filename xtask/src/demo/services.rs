//! `cargo xtask demo --services`: three web servers behind one address, by each of the three methods; one is killed
//! and started again while a client asks all the time.

use std::{
    cell::RefCell,
    fs,
    process::{Child, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    build::build_natgw,
    machine::want_root,
    setup::setup,
    shell::{quiet, step, Result},
};

use super::{
    gateway::{Gateway, CONFIGURATION},
    interrupt,
    lab::{eventually, Lab, Program},
};

const DRAWING: &str = "
  web-1 192.168.1.21 ─┐
  web-2 192.168.1.22 ─┼─ switch ── lan 192.168.1.1 [gateway] wan 203.0.113.1 ── 203.0.113.254 client 198.51.100.1
  web-3 192.168.1.23 ─┘    └───────── answers of direct routing and of tunnels ──────────┘
";

const SERVERS: [(&str, &str); 3] =
    [("web-1", "192.168.1.21"), ("web-2", "192.168.1.22"), ("web-3", "192.168.1.23")];
/// The one that dies.
const VICTIM: usize = 1;
const METHODS: [&str; 3] = ["nat", "direct-routing", "tunnel"];
/// How long the client asks: the server dies after a third of it and is back after two.
const SECONDS: u64 = 9;

/// See the module.
pub(crate) fn services() -> Result {
    want_root("demo --services")?;
    step("setup", setup)?;
    step("build natgw", build_natgw)?;
    interrupt::clean_up_on_signals();
    let lab = step("make namespaces: three servers, gateway, client", || Lab::new(&SERVERS))?;
    println!("{DRAWING}");
    let gateway = step("start natgw in the gateway", || Gateway::start(&lab, CONFIGURATION))?;
    let ends = step("give the servers what their method needs", || prepare(&lab))?;
    let webs = step("start three web servers", || Webs::start(&lab))?;
    let mut lines = Vec::new();
    for method in METHODS {
        lines.push(step(&format!("method = \"{method}\""), || show(&lab, &gateway, &webs, method))?);
        interrupt::check()?;
    }
    println!("==> in short");
    for line in lines {
        println!("    {line}");
    }
    drop((webs, ends));
    gateway.stop()
}

/// The service's address on each server's loopback, without answering ARP for it; a default route past the gateway, which
/// is there for the methods whose answers go past it; and the end of a tunnel.
fn prepare(lab: &Lab) -> Result<Vec<Program>> {
    let far = lab.name("server");
    lab.configure(
        "switch",
        &format!("link add bypass type veth peer name side netns {far}\nlink set bypass master bridge up\n"),
    )?;
    lab.configure("server", "link set side up\naddr add 192.168.1.254/32 dev side\n")?;
    quiet(lab.inside("server").args([
        "sysctl",
        "-qw",
        "net.ipv4.ip_forward=1",
        "net.ipv4.conf.all.rp_filter=0",
    ]))?;
    quiet(lab.inside("server").args(["sysctl", "-qw", "net.ipv4.conf.side.rp_filter=0"]))?;
    let mut ends = Vec::new();
    let script = lab.folder().join("tunnel.py");
    fs::write(&script, TUNNEL_END).map_err(|error| format!("write {}: {error}", script.display()))?;
    for (server, address) in SERVERS {
        lab.configure(server, "addr add 203.0.113.1/32 dev lo\n")?;
        quiet(lab.inside(server).args(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"]).args([
            "net.ipv4.conf.all.arp_announce=2",
            "net.ipv4.conf.all.rp_filter=0",
            "net.ipv4.conf.lo.rp_filter=0",
        ]))?;
        if quiet(lab.inside(server).args(["ip", "link", "add", "ipip0", "type", "ipip", "local", address]))
            .is_ok()
        {
            lab.configure(server, "link set ipip0 up\n")?;
            quiet(lab.inside(server).args(["sysctl", "-qw", "net.ipv4.conf.ipip0.rp_filter=0"]))?;
        } else {
            println!("    {server}: this kernel has no ipip device; a script is the tunnel's end");
            let script = script.display().to_string();
            ends.push(lab.start(server, &["python3", &script], &format!("{server}-tunnel.log"))?);
        }
    }
    // What a script reads from the wire has no note that its checksum is still to be made.
    quiet(lab.inside("server").args(["ethtool", "-K", "eth0", "tx", "off", "tso", "off", "gso", "off"]))?;
    Ok(ends)
}

/// Takes IPIP off what comes in, and hands it to the stack as if the loopback had brought it.
const TUNNEL_END: &str = r#"
import socket, subprocess
subprocess.run(["nft", "table ip tunnel { chain input { type filter hook input priority 0; ip protocol 4 drop; }; }"], check=True)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))
wire.bind(("eth0", 0x0800))
inside = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
inside.bind(("lo", 0x0800))
while True:
    packet, where = wire.recvfrom(65536)
    if packet[9] == 4 and where[2] == socket.PACKET_HOST:
        inside.send(bytes(12) + b"\x08\x00" + packet[4 * (packet[0] & 15):])
"#;

/// The web servers.
struct Webs<'a> {
    lab: &'a Lab,
    running: RefCell<Vec<Option<Program>>>,
}

impl<'a> Webs<'a> {
    fn start(lab: &'a Lab) -> Result<Self> {
        let webs = Self { lab, running: RefCell::new(vec![None, None, None]) };
        for (number, (name, _)) in SERVERS.iter().enumerate() {
            let page = lab.folder().join(name);
            fs::create_dir(&page).map_err(|error| format!("make {}: {error}", page.display()))?;
            fs::write(page.join("index.html"), format!("{name}\n"))
                .map_err(|error| format!("write: {error}"))?;
            webs.revive(number)?;
        }
        Ok(webs)
    }

    fn revive(&self, number: usize) -> Result {
        let (name, _) = SERVERS[number];
        let page = self.lab.folder().join(name).display().to_string();
        let words = ["python3", "-m", "http.server", "80", "--directory", &page];
        let program = self.lab.start(name, &words, &format!("{name}.log"))?;
        self.running.borrow_mut()[number] = Some(program);
        eventually("it listens", || {
            quiet(self.lab.inside(name).args(["ss", "-ltn"])).is_ok_and(|text| text.contains(":80 "))
        })
    }

    fn kill(&self, number: usize) {
        self.running.borrow_mut()[number] = None;
    }
}

/// One method: a client that asks all the time, a server that dies and comes back. What came of it, in a line.
fn show(lab: &Lab, gateway: &Gateway, webs: &Webs<'_>, method: &str) -> Result<String> {
    gateway.reload(&configuration(method))?;
    for (server, _) in SERVERS {
        // Answers of the last two do not come by the gateway.
        let by = if method == "nat" { "192.168.1.1" } else { "192.168.1.254" };
        lab.configure(server, &format!("route replace default via {by} dev eth0 onlink\n"))?;
    }
    eventually("all servers are up", || states(gateway) == ["up"; 3])?;
    let ask =
        quiet(lab.inside("server").args(["curl", "--silent", "--max-time", "3", "http://203.0.113.1/"]))?;
    println!("    the client asks http://203.0.113.1/ and {} answers", ask.trim());
    let first = connections(gateway);
    let client = start_client(lab)?;
    pause(SECONDS / 3)?;
    let before = connections(gateway);
    webs.kill(VICTIM);
    let died = Instant::now();
    eventually("the dead server is left out", || states(gateway)[VICTIM] == "down")?;
    let left_out = died.elapsed();
    let at_end = connections(gateway);
    println!(
        "    {} killed: left out after {:.2} s, {} connections meant for it until then",
        SERVERS[VICTIM].0,
        left_out.as_secs_f32(),
        at_end[VICTIM] - before[VICTIM]
    );
    pause((SECONDS / 3).saturating_sub(left_out.as_secs()))?;
    let without = connections(gateway);
    webs.revive(VICTIM)?;
    let started = Instant::now();
    eventually("it is back", || states(gateway)[VICTIM] == "up")?;
    println!("    started again: it has connections again after {:.2} s", started.elapsed().as_secs_f32());
    let output = client.wait_with_output().map_err(|error| format!("wait for wrk: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in said.lines().filter(|line| line.contains("requests in") || line.contains("errors")) {
        println!("    wrk: {}", line.trim());
    }
    for line in gateway.ask(&["service", "list"])?.lines() {
        println!("    {line}");
    }
    if without[VICTIM] > at_end[VICTIM] + 1 {
        return Err(format!("a server that was down had {} connections", without[VICTIM] - at_end[VICTIM]));
    }
    let spread: Vec<String> =
        connections(gateway).iter().zip(&first).map(|(now, before)| (now - before).to_string()).collect();
    let errors = said.lines().find(|line| line.contains("Socket errors")).map_or("none", str::trim);
    Ok(format!(
        "{method:<15} left out after {:.2} s; connections of each {}; {}",
        left_out.as_secs_f32(),
        spread.join(", "),
        errors.trim_start_matches("Socket ")
    ))
}

/// A new connection for each request: 12 at a time.
fn start_client(lab: &Lab) -> Result<Child> {
    let mut client = lab.inside("server");
    let duration = format!("-d{SECONDS}s");
    client.args(["wrk", "-t1", "-c12", &duration, "-H", "Connection: close", "http://203.0.113.1/"]);
    client.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    client.spawn().map_err(|error| format!("start wrk: {error}"))
}

fn pause(seconds: u64) -> Result {
    for _ in 0..seconds * 10 {
        thread::sleep(Duration::from_millis(100));
        interrupt::check()?;
    }
    Ok(())
}

fn configuration(method: &str) -> String {
    let servers =
        SERVERS.map(|(_, address)| format!("[[service.server]]\naddress = \"{address}:80\"\n")).concat();
    format!(
        "{CONFIGURATION}\n[[service]]\nname = \"web\"\nexternal = \"203.0.113.1:80\"\nmethod = \"{method}\"\n\
         check = {{ kind = \"http\", interval = \"300ms\", timeout = \"300ms\", fall = 2, rise = 2 }}\n{servers}"
    )
}

/// The values of a field of each server, from natgw's JSON: this program has no library for it.
fn field(gateway: &Gateway, name: &str) -> Vec<String> {
    let text = gateway.ask(&["service", "list", "--json"]).unwrap_or_default();
    let of_server = |(_, rest): (&str, &str)| {
        let (_, value) = rest.split_once(&format!("\"{name}\":"))?;
        let value = value.trim_start().split(|end| ",}\n".contains(end)).next()?;
        Some(value.trim().trim_matches('"').to_owned())
    };
    SERVERS
        .iter()
        .filter_map(|(_, address)| text.split_once(&format!("\"{address}:80\"")).and_then(of_server))
        .collect()
}

fn states(gateway: &Gateway) -> Vec<String> {
    field(gateway, "state")
}

/// How many connections each server has had.
fn connections(gateway: &Gateway) -> Vec<u64> {
    field(gateway, "connections").iter().map(|count| count.parse().unwrap_or(0)).collect()
}
