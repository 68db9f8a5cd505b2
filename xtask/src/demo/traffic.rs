//! Real programs through natgw, each judged by what arrives.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::PathBuf,
    process::Stdio,
    thread,
    time::Duration,
};

use crate::shell::{command, quiet, Result};

use super::{
    gateway::Gateway,
    lab::{eventually, Lab, Program},
};

/// One experiment: its name, and what it does.
type Experiment = (&'static str, fn(&Lab, &Gateway, &Server) -> Result);

/// In the order in which they are shown.
pub(crate) const EXPERIMENTS: &[Experiment] = &[
    ("ping from a and b", ping),
    ("a and b open a connection from the same port", same_port),
    ("DNS over UDP, 25 questions from each client", dns),
    ("traceroute sees the gateway, then the server", traceroute),
    ("a downloads 64 MiB over HTTP", download),
    ("iperf3 both ways at once, four connections each", iperf3),
    ("no private address reached the server", no_leak),
];

const SERVER: &str = "198.51.100.1";
const DOWNLOAD_BYTES: u64 = 64 << 20;

/// The servers, and a tcpdump beside them.
pub(crate) struct Server {
    programs: Vec<Program>,
    seen: PathBuf,
}

impl Server {
    /// Starts them and waits until they listen.
    pub(crate) fn start(lab: &Lab) -> Result<Self> {
        let web = lab.folder().join("web");
        let make_file = || -> io::Result<()> {
            fs::create_dir(&web)?;
            let mut noise = File::open("/dev/urandom")?.take(DOWNLOAD_BYTES);
            io::copy(&mut noise, &mut File::create(web.join("download"))?).map(drop)
        };
        make_file().map_err(|error| format!("make a file to download: {error}"))?;
        let web = web.display().to_string();
        let commands: [(&[&str], &str); 5] = [
            (&["python3", "-m", "http.server", "80", "--bind", SERVER, "--directory", &web], "http.log"),
            (
                &[
                    "dnsmasq",
                    "--no-daemon",
                    "--conf-file=/dev/null",
                    "--no-resolv",
                    "--no-hosts",
                    "--pid-file",
                    "--user=root",
                    "--bind-interfaces",
                    "--listen-address=198.51.100.1",
                    "--address=/natgw.example/198.51.100.1",
                ],
                "dns.log",
            ),
            (&["iperf3", "--server", "--bind", SERVER, "--port", "5201"], "iperf3-up.log"),
            (&["iperf3", "--server", "--bind", SERVER, "--port", "5202"], "iperf3-down.log"),
            (&["tcpdump", "-nltq", "-i", "eth0", FIRST_PACKETS], "seen.log"),
        ];
        let mut programs = Vec::new();
        for (words, log) in commands {
            programs.push(lab.start("server", words, log)?);
        }
        eventually("the servers listen", || {
            let listening = quiet(lab.inside("server").args(["ss", "-ltn"])).unwrap_or_default();
            [":80 ", ":53 ", ":5201 ", ":5202 "].iter().all(|port| listening.contains(port))
        })?;
        let seen = lab.folder().join("seen.log");
        eventually("tcpdump listens", || {
            fs::read_to_string(&seen).is_ok_and(|text| text.contains("listening"))
        })?;
        Ok(Self { programs, seen })
    }

    /// The first packet of each flow from the gateway, as tcpdump shows them at the server; at most `count` lines.
    pub(crate) fn first_packets(&self, count: usize) -> String {
        // tcpdump writes a line when it sees the packet; the last one may be on its way.
        thread::sleep(Duration::from_millis(200));
        let text = fs::read_to_string(&self.seen).unwrap_or_default();
        let lines = text.lines().filter(|line| line.starts_with("IP "));
        lines.take(count).map(|line| format!("    {line}\n")).collect::<Vec<_>>().concat()
    }

    /// The process ids.
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.programs.iter().map(Program::id).collect()
    }
}

/// Packets that begin something, for tcpdump.
const FIRST_PACKETS: &str = "not src host 203.0.113.254 and not src host 198.51.100.1 and \
     (tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn or udp dst port 53 or \
     (icmp[icmptype] == icmp-echo and icmp[6:2] == 1))";

fn ping(lab: &Lab, _: &Gateway, _: &Server) -> Result {
    for client in ["a", "b"] {
        let text = quiet(lab.inside(client).args(["ping", "-c", "5", "-i", "0.2", "-W", "2", SERVER]))?;
        show(&text, "packets transmitted");
        if !text.contains(" 0% packet loss") {
            return Err(format!("{client} lost replies:\n{text}"));
        }
    }
    Ok(())
}

/// Both keep their connection while the other's is open, and each gets the answer to its own question.
fn same_port(lab: &Lab, gateway: &Gateway, server: &Server) -> Result {
    let url = format!("http://{SERVER}/");
    for client in ["a", "b"] {
        let mut curl = lab.inside(client);
        curl.args(["curl", "--silent", "--show-error", "--max-time", "10", "--local-port", "40000", &url]);
        if !quiet(&mut curl)?.contains("download") {
            return Err(format!("{client} did not get the page"));
        }
    }
    let shown = server.first_packets(usize::MAX);
    let mut sources: Vec<&str> = shown
        .lines()
        .filter(|line| line.contains("198.51.100.1.80"))
        .filter_map(|line| line.split(' ').nth(5))
        .collect();
    sources.sort_unstable();
    sources.dedup();
    println!("    the server saw {}", sources.join(" and "));
    if sources.len() != 2 || !sources.iter().all(|source| source.starts_with("203.0.113.1.")) {
        return Err(format!("expected two ports of 203.0.113.1:\n{shown}"));
    }
    print!("{}", indented(&gateway.ask(&["session", "list"])?));
    Ok(())
}

fn dns(lab: &Lab, _: &Gateway, _: &Server) -> Result {
    for client in ["a", "b"] {
        for number in 0..25 {
            let name = format!("host-{number}.natgw.example");
            let words = ["dig", "+short", "+tries=1", "+time=3", "@198.51.100.1", &name];
            let answer = quiet(lab.inside(client).args(words))?;
            if answer.trim() != SERVER {
                return Err(format!("{client} asked for {name} and got {answer:?}"));
            }
        }
    }
    println!("    50 questions, 50 answers");
    Ok(())
}

fn traceroute(lab: &Lab, _: &Gateway, _: &Server) -> Result {
    let text = quiet(lab.inside("a").args(["traceroute", "-n", "-q", "1", "-w", "2", "-m", "5", SERVER]))?;
    print!("{}", indented(&text));
    let hops: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1)).collect();
    if hops == ["192.168.1.1", SERVER] {
        Ok(())
    } else {
        Err(format!("expected the hops 192.168.1.1 and {SERVER}, not {}", hops.join(", ")))
    }
}

fn download(lab: &Lab, _: &Gateway, _: &Server) -> Result {
    let (original, copy) = (lab.folder().join("web/download"), lab.folder().join("copy"));
    let (file, url) = (copy.display().to_string(), format!("http://{SERVER}/download"));
    let report = "    %{size_download} bytes at %{speed_download} bytes/s\n";
    let mut curl = lab.inside("a");
    curl.args(["curl", "--silent", "--show-error", "--max-time", "60", "--write-out", report]);
    print!("{}", quiet(curl.args(["--output", &file, &url]))?);
    let sums = quiet(command(&["sha256sum"]).arg(original).arg(copy))?;
    let sums: Vec<&str> = sums.lines().filter_map(|line| line.split(' ').next()).collect();
    println!("    sha256 {}", sums[0]);
    if sums[0] == sums[1] {
        Ok(())
    } else {
        Err(format!("the copy has sha256 {}", sums[1]))
    }
}

fn iperf3(lab: &Lab, gateway: &Gateway, _: &Server) -> Result {
    let client = |member: &str, port: &str, more: &[&str]| {
        let mut command = lab.inside(member);
        command.args(["iperf3", "--client", SERVER, "--port", port, "--parallel", "4", "--time", "3"]);
        command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().map_err(|error| format!("start iperf3: {error}"))
    };
    let up = client("a", "5201", &[])?;
    let down = client("b", "5202", &["--reverse"])?;
    thread::sleep(Duration::from_millis(1500));
    let sessions = gateway.ask(&["session", "list", "--protocol", "tcp"]);
    let mut results = Vec::new();
    for (name, child) in [("a sends", up), ("b receives", down)] {
        let output = child.wait_with_output().map_err(|error| format!("wait for iperf3: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let sum = text.lines().find(|line| line.contains("SUM") && line.contains("receiver"));
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        println!("    {name}: {}", sum.unwrap_or("no result"));
        results.push((name, sum.is_some_and(|sum| !sum.contains(" 0.00 ")), text + &errors));
    }
    println!("    natgw session list, while they ran:\n{}", indented(&sessions?));
    match results.into_iter().find(|(_, worked, _)| !worked) {
        Some((name, _, text)) => Err(format!("{name}: nothing came through:\n{text}")),
        None => Ok(()),
    }
}

fn no_leak(_: &Lab, _: &Gateway, server: &Server) -> Result {
    let shown = server.first_packets(usize::MAX);
    match shown.lines().find(|line| !line.trim_start().starts_with("IP 203.0.113.1")) {
        Some(leak) => Err(format!("the server saw{leak}")),
        None if shown.is_empty() => Err("tcpdump at the server saw nothing at all".to_owned()),
        None => Ok(()),
    }
}

fn show(text: &str, wanted: &str) {
    for line in text.lines().filter(|line| line.contains(wanted)) {
        println!("    {line}");
    }
}

fn indented(text: &str) -> String {
    text.lines().map(|line| format!("    {line}\n")).collect::<Vec<_>>().concat()
}
