//! `natgw convert`

use std::io::{self, Read as _, Write as _};
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Failure, output};
use crate::convert::{Sides, from_iptables, from_nft};

#[derive(Args, Debug)]
pub(super) struct Convert {
    /// What printed the rules
    format: From,
    /// Its output; `-` for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Interfaces of the inside [default: those that no rule translates by]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    inside: Vec<String>,
    /// Interfaces of the outside [default: those that rules translate by]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    outside: Vec<String>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum From {
    /// iptables-save
    IptablesSave,
    /// nft list ruleset, with -j or without
    Nft,
}

impl Convert {
    pub(super) fn carry_out(self) -> Result<(), Failure> {
        let Self { format, file, inside, outside } = self;
        let is_stdin = file.as_os_str() == "-";
        let read = if is_stdin {
            let mut text = String::new();
            io::stdin().lock().read_to_string(&mut text).map(|_| text)
        } else {
            std::fs::read_to_string(&file)
        };
        let origin = if is_stdin { "standard input".to_owned() } else { file.display().to_string() };
        let text = read.map_err(|error| Failure::Said {
            message: format!("reading {origin}: {error}"),
            hint: Some(
                "a file, or - for standard input: iptables-save | natgw convert iptables-save -".to_owned(),
            ),
        })?;
        let sides = Sides { inside, outside };
        let converted = match format {
            From::IptablesSave => from_iptables(&text, &sides),
            From::Nft => from_nft(&text, &sides),
        };
        let conversion = converted.map_err(|error| Failure::Said {
            message: format!("{origin}: {error}"),
            hint: Some(error.hint.to_owned()),
        })?;
        let mut out = output::stdout();
        out.write_all(conversion.text.as_bytes())?;
        out.flush()?;
        let mut stderr = io::stderr().lock();
        for note in &conversion.notes {
            let _ = writeln!(stderr, "note: {note}");
        }
        for left in &conversion.left {
            let _ = writeln!(stderr, "not carried over: {}\n  {}", left.rule, left.reason);
        }
        match conversion.left.len() {
            0 => Ok(()),
            count => Err(Failure::Said {
                message: format!(
                    "{} not carried over, {} written",
                    output::counted(count as u64, "rule"),
                    output::counted(conversion.carried as u64, "section")
                ),
                hint: Some(
                    "the configuration is valid and lacks those: they are at its end, as comments".to_owned(),
                ),
            }),
        }
    }
}
