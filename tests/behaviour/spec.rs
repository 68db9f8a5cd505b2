//! The specification, read from docs/behaviour.md, and the lists beside it.

use std::{collections::BTreeMap, fmt, fs, path::Path};

use anyhow::{Context as _, Result, bail};

/// One row of docs/behaviour.md.
#[derive(Debug)]
pub(crate) struct Row {
    /// `FRG-03`.
    pub(crate) id: String,
    /// How binding it is.
    pub(crate) level: Level,
    /// What it says, from its level on.
    pub(crate) text: String,
}

/// How binding a row is; the first word counts where a row has two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Must,
    Should,
    May,
    /// Better than any RFC asks.
    Beyond,
}

/// A numbered requirement of an RFC.
#[derive(Debug)]
pub(crate) struct Requirement {
    pub(crate) rfc: String,
    pub(crate) number: String,
    pub(crate) level: String,
    pub(crate) summary: String,
    pub(crate) rows: Vec<String>,
    pub(crate) setting: String,
}

/// All of it.
#[derive(Debug)]
pub(crate) struct Spec {
    pub(crate) rows: Vec<Row>,
    pub(crate) requirements: Vec<Requirement>,
    /// Rows that other rows' tests prove as well.
    pub(crate) same: BTreeMap<String, Vec<String>>,
    /// Rows without a test, and why.
    pub(crate) exceptions: BTreeMap<String, String>,
}

/// The sections whose rows are cases of the suite; the others belong to features that are not there yet.
const SECTIONS: [std::ops::RangeInclusive<u32>; 2] = [2..=22, 25..=26];

impl Spec {
    /// Reads everything below the repository's root; an id in a list that is no row is an error.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let text = |path: &str| fs::read_to_string(root.join(path)).with_context(|| format!("read {path}"));
        let rows = rows(&text("docs/behaviour.md")?)?;
        let same = list(&text("tests/behaviour/same.txt")?);
        let words = |others: String| others.split_whitespace().map(str::to_owned).collect();
        let spec = Self {
            rows,
            requirements: requirements(&text("tests/behaviour/requirements.txt")?)?,
            same: same.into_iter().map(|(id, others)| (id, words(others))).collect(),
            exceptions: list(&text("tests/behaviour/exceptions.txt")?),
        };
        let named = spec.same.iter().flat_map(|(id, others): (_, &Vec<String>)| others.iter().chain([id]));
        for id in named.chain(spec.exceptions.keys()) {
            if spec.row(id).is_none() {
                bail!("{id} is in a list of tests/behaviour and no row of docs/behaviour.md");
            }
        }
        Ok(spec)
    }

    /// The row with this id.
    pub(crate) fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }
}

fn rows(text: &str) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut section = 0;
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            section = heading.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
        }
        let in_suite = SECTIONS.iter().any(|sections| sections.contains(&section));
        let Some((id, text)) = line.strip_prefix("- **").and_then(|rest| rest.split_once("** ")) else {
            continue;
        };
        if in_suite {
            let level = Level::of(text).with_context(|| format!("{id} has no level: {text}"))?;
            rows.push(Row { id: id.to_owned(), level, text: text.to_owned() });
        }
    }
    Ok(rows)
}

/// Lines of an id and the rest, without those that begin with `#`.
fn list(text: &str) -> BTreeMap<String, String> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let fields = lines.filter_map(|line| line.split_once(' '));
    fields.map(|(id, rest)| (id.to_owned(), rest.trim().to_owned())).collect()
}

fn requirements(text: &str) -> Result<Vec<Requirement>> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let fields: Vec<&str> = line.split('|').map(str::trim).collect();
            let [rfc, number, level, summary, rows, setting] = fields[..] else {
                bail!("a requirement has six fields: {line}");
            };
            Ok(Requirement {
                rfc: rfc.to_owned(),
                number: number.to_owned(),
                level: level.to_owned(),
                summary: summary.to_owned(),
                rows: rows.split_whitespace().map(str::to_owned).collect(),
                setting: setting.to_owned(),
            })
        })
        .collect()
}

impl Level {
    /// The first of the words for a level; a decision that natgw has taken (DEC-5) binds like a SHOULD.
    fn of(text: &str) -> Option<Self> {
        let words = text.split(|letter: char| !letter.is_ascii_uppercase());
        words.into_iter().find_map(|word| match word {
            "MUST" => Some(Self::Must),
            "SHOULD" | "DEC" => Some(Self::Should),
            "MAY" => Some(Self::May),
            "BEYOND" => Some(Self::Beyond),
            _ => None,
        })
    }

    /// Whether a row of this level has to hold.
    pub(crate) fn binds(self) -> bool {
        self <= Self::Should
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Must => "MUST",
            Self::Should => "SHOULD",
            Self::May => "MAY",
            Self::Beyond => "BEYOND",
        })
    }
}
