//! `cargo xtask fuzz`: inputs at random, those kept that reach something new, and every law checked on each.
//!
//! An input that breaks a law is written to `fuzz/crashes`; once its cause is mended it moves to `fuzz/seeds`, which
//! are run first, and a test of its name says what it was.

mod coverage;
mod mutate;
mod targets;

use std::{
    collections::BTreeMap,
    fs,
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};

use crate::{
    coverage::Coverage,
    mutate::{Chance, mutate},
    targets::{TARGETS, Target},
};

const USAGE: &str = "\
cargo xtask fuzz [--minutes N] [--seed S] [TARGET]...

  --minutes N   how long, for all targets together; 1 by default
  --seed S      where chance begins; 1 by default";

fn main() -> Result<ExitCode> {
    let mut time = Duration::from_secs(60);
    let mut seed = 1;
    let mut chosen = Vec::new();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().with_context(|| format!("{word} wants a value\n\n{USAGE}"));
        match word.as_str() {
            "--minutes" => {
                let minutes: f64 = value()?.parse().context("--minutes wants a number")?;
                time = Duration::try_from_secs_f64(minutes * 60.0).context("--minutes")?;
            }
            "--seed" => seed = value()?.parse().context("--seed wants a number")?,
            name => {
                let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                let target = TARGETS.iter().find(|target| target.name == name);
                chosen
                    .push(target.with_context(|| {
                        format!("`{name}` is no target: {}\n\n{USAGE}", names.join(", "))
                    })?);
            }
        }
    }
    if chosen.is_empty() {
        chosen.extend(&TARGETS);
    }
    let each = time / u32::try_from(chosen.len()).unwrap_or(1);
    println!("| target | inputs | a second | kept | branches reached | broken |\n|---|--:|--:|--:|--:|---|");
    let mut broken = 0;
    for target in chosen {
        broken += u32::from(!fuzz(target, each, seed)?);
    }
    Ok(if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one target; whether its laws held.
fn fuzz(target: &Target, time: Duration, seed: u64) -> Result<bool> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut corpus: Vec<Vec<u8>> = seeds(&folder.join("seeds").join(target.name))?.into_values().collect();
    corpus.push(vec![0; 64]);
    let mut coverage = Coverage::default();
    let mut chance = Chance(seed);
    let start = Instant::now();
    let (mut count, mut next_seed) = (0_u64, 0);
    let mut failure = None;
    // What fails tells so once, below.
    panic::set_hook(Box::new(|_| {}));
    while start.elapsed() < time || next_seed < corpus.len() {
        let input = match corpus.get(next_seed) {
            Some(known) => known.clone(),
            None => mutate(&mut chance, &corpus),
        };
        let is_seed = next_seed < corpus.len();
        next_seed += usize::from(is_seed);
        Coverage::begin();
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| (target.run)(&input)));
        count += 1;
        if let Err(payload) = outcome {
            let why = payload
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| payload.downcast_ref::<&str>().map(|&text| text.to_owned()));
            failure = Some((input, why.unwrap_or_default()));
            break;
        }
        if coverage.is_new() && !is_seed {
            corpus.push(input);
            next_seed += 1;
        }
    }
    let _ = panic::take_hook();
    let seconds = start.elapsed().as_secs_f64();
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rate"
    )]
    let rate = (count as f64 / seconds) as u64;
    let (reached, of) = coverage.reached();
    let verdict = if failure.is_some() { "yes" } else { "no" };
    println!("| {} | {count} | {rate} | {} | {reached} of {of} | {verdict} |", target.name, corpus.len());
    let Some((input, why)) = failure else { return Ok(true) };
    let crashes = folder.join("crashes");
    fs::create_dir_all(&crashes).context("make the folder for crashes")?;
    let file = crashes.join(format!("{}-{count}", target.name));
    fs::write(&file, &input).with_context(|| format!("write {}", file.display()))?;
    println!("{} breaks {}: {why}", file.display(), target.name);
    Ok(false)
}

/// The files of a folder, if it is there.
fn seeds(folder: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut seeds = BTreeMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        seeds.insert(path, bytes);
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The short form: every seed, and some seconds of what chance makes of them.
    #[test]
    fn fuzz_for_a_short_time() {
        for target in &TARGETS {
            assert!(
                fuzz(target, Duration::from_millis(700), 1).expect("seeds can be read"),
                "{}",
                target.name
            );
        }
    }
}
