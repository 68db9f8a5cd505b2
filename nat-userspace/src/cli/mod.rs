//! The `natgw` command: verbs, their arguments, and what becomes of their errors.

#![deny(unsafe_code)]

mod capture;
mod check;
mod convert;
mod doctor;
mod generate;
mod journal;
mod metrics;
mod output;
mod pool;
mod reload;
mod rule;
mod run;
mod service;
mod session;
mod status;
mod table;
mod top;
mod trace;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde_json::value::RawValue;

use crate::api::{Client, ClientError, Request};
use crate::config::{ConfigError, DEFAULT_PATH, DEFAULT_SOCKET};

/// Translates addresses between inside and outside networks.
///
/// natgw is a NAT gateway. An XDP program rewrites the packets of known flows in the kernel; a
/// daemon decides about the first packet of each. `natgw run` is that daemon, the other verbs
/// look at it and change it.
#[derive(Debug, Parser)]
#[command(name = "natgw", version, arg_required_else_help = true, subcommand_required = true)]
struct Cli {
    /// The daemon's control socket [default: /run/natgw/natgw.sock]
    ///
    /// `natgw run` listens there instead of where its configuration says.
    #[arg(long, global = true, value_name = "PATH", env = "NATGW_SOCKET", hide_env_values = true)]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the gateway in the foreground
    ///
    /// Attaches to the interfaces of the configuration, translates, and serves the control socket
    /// until SIGTERM or SIGINT; then detaches, unless --keep is given.
    Run(run::Run),
    /// Say whether a configuration is valid
    ///
    /// Prints all that is wrong with its place in the file and what would be right, and exits
    /// with 1; or one line and, perhaps, warnings. Needs neither root nor a daemon.
    Check(check::Check),
    /// Apply the configuration file anew
    ///
    /// The daemon reads the file it was started with. Sessions that the new rules allow live on. A
    /// file with anything wrong in it changes nothing: what is wrong is printed, and the exit code
    /// is 1.
    Reload(Format),
    /// Show interfaces, counts, ports in use, packets and drops
    Status(Format),
    /// List, count and delete sessions
    #[command(subcommand)]
    Session(session::Session),
    /// External addresses and their ports
    #[command(subcommand)]
    Pool(pool::Pool),
    /// Rules and what they have matched
    #[command(subcommand)]
    Rule(rule::Rule),
    /// Virtual servers and their health
    #[command(subcommand)]
    Service(service::Service),
    /// Show rates as they are, and who has most of them
    ///
    /// Packets and bits a second, sessions, the busiest inside hosts, remotes and rules, drops by reason, and the CPU
    /// that the fast path and the daemon take. Keys: h, r, u, d and Tab choose what is shown; b, p, s, n and a sort it
    /// by bits, packets, sessions, new ones or name; / filters, Space pauses, q ends. While it runs, the kernel
    /// measures its eBPF programs, which costs each packet some 20 ns.
    Top(top::Top),
    /// Show what happens to each packet, and why
    ///
    /// One line a packet: where it came in and left, its endpoints before and after translation, what it found (its
    /// flow, a rule, a socket of the gateway), and what became of it; for a drop, why, and what to do. Costs nothing
    /// while nobody traces.
    Trace(trace::Trace),
    /// Write frames as they came and as they left into a file for Wireshark
    ///
    /// tcpdump does not see what XDP forwards; this does. The file has an interface for each direction of each
    /// interface, and a comment on each frame: `natgw capture -w - | wireshark -k -i -`.
    Capture(capture::Capture),
    /// Print counters in Prometheus' text format
    ///
    /// The same that is served at /metrics of the address in `[metrics] listen`, if one is given.
    Metrics,
    /// Find what is wrong with the host or the set-up
    ///
    /// Each finding says what it was seen by, what it does to packets, and the command that mends it. With HOST, an
    /// inside host, also what became of its packets.
    Doctor(doctor::Doctor),
    /// Turn netfilter's translation rules into a configuration
    ///
    /// Reads what `iptables-save` or `nft list ruleset` (also with -j) printed, and writes a configuration that `natgw
    /// check` accepts, each section with the rule it comes from. Rules that cannot be carried over stand at its end as
    /// comments, and on standard error, each with its reason; the exit code is then 1.
    Convert(convert::Convert),
    /// Print a completion script for a shell
    ///
    /// For bash: `natgw completions bash > /etc/bash_completion.d/natgw`.
    Completions(generate::Completions),
    /// Print the manual page
    ///
    /// To read it: `natgw man | man -l -`.
    Man,
}

/// The configuration a verb reads.
#[derive(Args, Debug)]
struct ConfigFile {
    /// The configuration
    #[arg(long, short, value_name = "FILE", default_value = DEFAULT_PATH)]
    config: PathBuf,
}

/// How a listing is written.
#[derive(Args, Clone, Copy, Debug)]
struct Format {
    /// Write JSON for programs instead of a table for people
    #[arg(long)]
    json: bool,
}

/// Carries out the command line. Exit codes: 0 fine, 1 failed, 2 usage.
pub fn main() -> ExitCode {
    let Cli { socket, verb } = Cli::parse();
    let daemon = Daemon { socket: socket.clone().unwrap_or_else(|| DEFAULT_SOCKET.into()) };
    let result = match verb {
        Verb::Run(run) => run.carry_out(socket),
        Verb::Check(check) => check.carry_out(),
        Verb::Reload(format) => reload::carry_out(format, &daemon),
        Verb::Status(format) => status::carry_out(format, &daemon),
        Verb::Session(session) => session.carry_out(&daemon),
        Verb::Pool(pool) => pool.carry_out(&daemon),
        Verb::Rule(rule) => rule.carry_out(&daemon),
        Verb::Service(service) => service.carry_out(&daemon),
        Verb::Top(top) => top.carry_out(&daemon),
        Verb::Trace(trace) => trace.carry_out(&daemon),
        Verb::Capture(capture) => capture.carry_out(&daemon),
        Verb::Metrics => metrics::carry_out(&daemon),
        Verb::Doctor(doctor) => doctor.carry_out(&daemon),
        Verb::Convert(convert) => convert.carry_out(),
        Verb::Completions(completions) => completions.carry_out(),
        Verb::Man => generate::man(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Where the daemon is.
struct Daemon {
    socket: PathBuf,
}

impl Daemon {
    /// Asks for a listing, row by row.
    fn list<R: DeserializeOwned, D: DeserializeOwned>(
        &self,
        request: &Request,
        row: impl FnMut(R) -> io::Result<()>,
    ) -> Result<D, ClientError> {
        Client::connect(&self.socket)?.request(request, row)
    }

    /// Asks for a listing and writes its rows as an array: they are JSON already and pass through
    /// as they are.
    fn list_json(&self, request: &Request) -> Result<(), Failure> {
        let mut array = output::JsonArray::new(output::stdout());
        let _: IgnoredAny = self.list(request, |row: Box<RawValue>| array.element(row.get()))?;
        Ok(array.finish()?)
    }

    /// Asks for something that has no rows.
    fn ask<D: DeserializeOwned>(&self, request: &Request) -> Result<D, ClientError> {
        self.list(request, |_: IgnoredAny| Ok(()))
    }
}

/// Why a verb failed.
#[derive(Debug)]
enum Failure {
    /// Whoever read standard output has seen enough: `natgw session list | head`.
    Quiet,
    /// The arguments do not make sense together.
    Usage { message: String, hint: String },
    /// The rest.
    Said { message: String, hint: Option<String> },
}

impl Failure {
    fn report(self) -> ExitCode {
        let (message, hint, code) = match self {
            Self::Quiet => return ExitCode::SUCCESS,
            Self::Usage { message, hint } => (message, Some(hint), 2),
            Self::Said { message, hint } => (message, hint, 1),
        };
        // Nothing is left to do if standard error is gone, too.
        let mut stderr = io::stderr().lock();
        let _ = io::Write::write_fmt(&mut stderr, format_args!("error: {message}\n"));
        if let Some(hint) = hint.filter(|hint| !hint.is_empty()) {
            let _ = io::Write::write_fmt(&mut stderr, format_args!("  hint: {hint}\n"));
        }
        ExitCode::from(code)
    }
}

/// Of standard output: all other files and sockets have errors of their own.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        ClientError::Output(error).into()
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Output(source) if source.kind() == io::ErrorKind::BrokenPipe => Self::Quiet,
            _ => Self::Said { message: error.to_string(), hint: Some(error.hint().to_owned()) },
        }
    }
}

/// Its message has the hints in it, each with its problem.
impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::Said { message: error.to_string(), hint: None }
    }
}

#[cfg(test)]
mod tests;
