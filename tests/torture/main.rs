//! `cargo xtask torture`: faults at random under traffic, for as long as one likes.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use anyhow::{Context as _, Result, bail};
use nat_tests::torture::{Options, torture};

const USAGE: &str = "\
cargo xtask torture [--minutes N] [--seed S] [--json]

  --minutes N   how long, 1 by default
  --seed S      repeats the order of the faults of an earlier run
  --json        the report for machines";

fn main() -> Result<ExitCode> {
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    let mut options = Options { time: Duration::from_secs(60), seed: u64::from(now.subsec_nanos()) };
    let mut json = false;
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value\n\n{USAGE}"));
        match word.as_str() {
            "--minutes" => {
                let minutes: f64 = value()?.parse().context("--minutes wants a number")?;
                options.time = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
            }
            "--seed" => options.seed = value()?.parse().context("--seed wants a number")?,
            "--json" => json = true,
            "--help" | "-h" => {
                println!("{USAGE}");
                return Ok(ExitCode::SUCCESS);
            }
            other => bail!("`{other}` is not known\n\n{USAGE}"),
        }
    }
    let report = torture(options, &mut |line| eprintln!("{line}"));
    if json {
        println!("{:#}", report.json());
    } else {
        print!("{report}");
    }
    Ok(if report.failures().is_empty() && report.slow().is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
