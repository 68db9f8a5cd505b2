//! The inventory of `unsafe`: how often each file has it, compared with a list that is under review.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use crate::shell::{root, Result};

/// The list.
const LIST: &str = "xtask/unsafe.txt";

/// Compares, and says what to do about a difference.
pub(crate) fn check() -> Result {
    let mut found = BTreeMap::new();
    for folder in ["fuzz", "nat-common", "nat-ebpf", "nat-userspace", "tests", "xtask"] {
        count(&root().join(folder), &mut found)?;
    }
    let mut text = String::new();
    for (file, times) in &found {
        let _ = writeln!(text, "{times} {file}");
    }
    let list = root().join(LIST);
    let known = fs::read_to_string(&list).unwrap_or_default();
    if known == text {
        return Ok(());
    }
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<std::collections::BTreeSet<_>>();
    let (known, now) = (lines(&known), lines(&text));
    let gone = known.difference(&now).map(|line| format!("- {line}"));
    let new = now.difference(&known).map(|line| format!("+ {line}"));
    let difference: Vec<String> = gone.chain(new).collect();
    fs::write(&list, &text).map_err(|error| format!("write {}: {error}", list.display()))?;
    Err(format!(
        "`unsafe` is not where {LIST} says; the list is written anew, look at the difference and commit it:\n{}",
        difference.join("\n")
    ))
}

/// Counts the word in code, not in comments and not in names of lints.
fn count(folder: &Path, found: &mut BTreeMap<String, usize>) -> Result {
    let failed = |error: std::io::Error| format!("look into {}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path: PathBuf = entry.map_err(failed)?.path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "target") {
                count(&path, found)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).map_err(failed)?;
            let times = text.lines().map(in_line).sum();
            if times > 0 {
                let name = path.strip_prefix(root()).unwrap_or(&path);
                found.insert(name.display().to_string(), times);
            }
        }
    }
    Ok(())
}

fn in_line(line: &str) -> usize {
    let code = line.split("//").next().unwrap_or_default();
    let words = code.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '"');
    words.filter(|word| *word == "unsafe").count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_counts() {
        assert_eq!(in_line("    unsafe { *pointer } // unsafe in words"), 1);
        assert_eq!(in_line("unsafe impl Send for A {} unsafe impl Sync for A {}"), 2);
        assert_eq!(in_line("#![deny(unsafe_code)]"), 0);
    }
}
