//! `natgw doctor`

use std::io::{self, Write};
use std::net::Ipv4Addr;

use super::{Daemon, Failure, output};
use crate::api::ClientError;
use crate::doctor::{Facts, Finding, Severity, examine, examine_absence};

/// Arguments of `natgw doctor`.
#[derive(clap::Args, Debug)]
pub(super) struct Doctor {
    /// An inside host whose traffic does not come through
    #[arg(value_parser = address)]
    host: Option<Ipv4Addr>,
    #[command(flatten)]
    format: super::Format,
}

impl Doctor {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        let findings = match Facts::gather(&daemon.socket, self.host) {
            Ok(facts) => examine(&facts),
            // Nobody is there; that a socket may not be used is no finding.
            Err(ClientError::Connect { source, .. }) if source.kind() != io::ErrorKind::PermissionDenied => {
                examine_absence(&daemon.socket)
            }
            Err(error) => return Err(error.into()),
        };
        if self.format.json {
            return Ok(output::json(&findings)?);
        }
        Ok(write(output::stdout(), &findings, self.host.is_some())?.flush()?)
    }
}

fn address(text: &str) -> Result<Ipv4Addr, &'static str> {
    text.parse().map_err(|_| "an address is wanted, such as 10.1.1.12")
}

fn write<W: Write>(mut out: W, findings: &[Finding], is_about_a_host: bool) -> io::Result<W> {
    if findings.is_empty() {
        writeln!(out, "nothing found that is wrong")?;
        if !is_about_a_host {
            writeln!(
                out,
                "  hint: `natgw doctor HOST` follows an inside host whose traffic does not come through"
            )?;
        }
    }
    for (index, finding) in findings.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        let severity = match finding.severity {
            Severity::Fault => "fault",
            Severity::Risk => "risk",
            Severity::Note => "note",
        };
        writeln!(out, "{severity}: {}", finding.title)?;
        for line in &finding.evidence {
            writeln!(out, "  seen:    {line}")?;
        }
        writeln!(out, "  means:   {}", finding.consequence)?;
        writeln!(out, "  command: {}", finding.command)?;
    }
    Ok(out)
}
