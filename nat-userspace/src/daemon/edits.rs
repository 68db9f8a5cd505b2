//! Rules added and deleted while the daemon runs, and written into its file if that is asked for.
//!
//! The order matters: the new file is there in full, under another name, before anything is changed, and takes the
//! place of the old one when all else has gone well.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::control::Post;
use crate::api::{ApiError, Reloaded, RuleRow, rule_rows};
use crate::config::{Config, Edit};

/// What is to be done with a rule.
pub enum RuleChange {
    /// Add one of a kind with these keys, before another if one is named.
    Add { kind: String, keys: String, before: Option<String> },
    /// Delete the one with this number or name.
    Delete { rule: String },
}

/// Kinds that may be added; virtual servers have more to them than one section.
const KINDS: [&str; 3] = ["snat", "static", "forward"];

impl RuleChange {
    fn verb(&self) -> &'static str {
        match self {
            Self::Add { .. } => "rule add",
            Self::Delete { .. } => "rule delete",
        }
    }

    /// The rule that it is about, or that it names as a place.
    fn reference(&self) -> Option<&str> {
        match self {
            Self::Add { before, .. } => before.as_deref(),
            Self::Delete { rule } => Some(rule),
        }
    }

    /// The change of a text whose rules are `rows`; what it refers to is that among them.
    fn edit(&self, rows: &[RuleRow], referred: Option<&RuleRow>) -> Result<Edit, ApiError> {
        let place = referred.map(|row| position(rows, row));
        match self {
            Self::Add { kind, keys, .. } => {
                if !KINDS.contains(&kind.as_str()) {
                    return Err(ApiError::new(
                        format!("rule add: `{kind}` is no kind of rule that can be added"),
                        "snat, static or forward; for the servers of a service see `natgw service`",
                    ));
                }
                if let Some(row) = referred.filter(|row| row.kind != *kind) {
                    return Err(ApiError::new(
                        format!("rule add: {} {} is no {kind}", row.kind, row.name),
                        "rules are tried in order within their kind: see `natgw rule list`",
                    ));
                }
                Ok(Edit::Add { kind: kind.clone(), keys: keys.clone(), before: place })
            }
            Self::Delete { rule } => {
                let row = referred.ok_or_else(|| missing("rule delete", rule))?;
                Ok(Edit::Remove { kind: row.kind.clone(), position: place.unwrap_or(0) })
            }
        }
    }
}

/// The rule with a number or a name.
fn find<'rows>(rows: &'rows [RuleRow], rule: &str, verb: &str) -> Result<&'rows RuleRow, ApiError> {
    let mut found = rows.iter().filter(|row| row.name == rule || row.id.to_string() == rule);
    match (found.next(), found.next()) {
        (Some(row), None) => Ok(row),
        (Some(_), Some(_)) => Err(ApiError::new(
            format!("{verb}: `{rule}` may be more than one rule"),
            "name it by its ID in `natgw rule list`",
        )),
        (None, _) => Err(missing(verb, rule)),
    }
}

fn missing(verb: &str, rule: &str) -> ApiError {
    ApiError::new(format!("{verb}: there is no rule `{rule}`"), "`natgw rule list` has their IDs and names")
}

/// The same rule among those of the file, where it may have another number.
fn same<'rows>(rows: &'rows [RuleRow], row: &RuleRow, verb: &str) -> Result<&'rows RuleRow, ApiError> {
    let plain = |row: &RuleRow| RuleRow { id: 0, ..row.clone() };
    rows.iter().find(|other| plain(other) == plain(row)).ok_or_else(|| {
        ApiError::new(
            format!("{verb} --save: the file has no {} {} like that in force", row.kind, row.name),
            "somebody has changed it: `natgw reload` takes it as it is; nothing was changed",
        )
    })
}

/// Which of its kind a rule is.
fn position(rows: &[RuleRow], row: &RuleRow) -> usize {
    rows.iter().filter(|other| other.kind == row.kind && other.id < row.id).count()
}

impl Post {
    /// Changes a rule, now and, if that is asked for, in the file. Done is what the change did; a change that cannot be
    /// made or saved changes nothing.
    pub(super) fn change_rules(&self, change: &RuleChange, save: bool) -> Result<Reloaded, ApiError> {
        let verb = change.verb();
        let (path, source) =
            self.ask(|worker| (worker.options.config_path.clone(), worker.options.source.clone()))?;
        let origin = path.display().to_string();
        let parse = |text: &str, what: &str| {
            Config::parse(text, &origin).map_err(|error| {
                ApiError::new(
                    format!("{verb}: {what} {error}"),
                    "nothing was changed: see the keys in docs/configuration.md",
                )
            })
        };
        let rows = rule_rows(&parse(&source, "the rules in force:")?);
        let referred = change.reference().map(|rule| find(&rows, rule, verb)).transpose()?;
        let apply = |edit: &Edit, text: &str| -> Result<(String, Config), ApiError> {
            let text = edit.apply(text).map_err(|error| {
                ApiError::new(format!("{verb}: {origin}: {error}"), "change it by hand and `natgw reload`")
            })?;
            let config = parse(&text, "with the change,")?;
            Ok((text, config))
        };
        let (text, config) = apply(&change.edit(&rows, referred)?, &source)?;
        let saved = if save {
            let file = fs::read_to_string(&path).map_err(|error| cannot_save(verb, &path, "read", &error))?;
            // Whoever has written into the file meanwhile keeps that.
            let new = if file == source {
                text.clone()
            } else {
                let rows = rule_rows(&parse(&file, "the file:")?);
                let referred = referred.map(|row| same(&rows, row, verb)).transpose()?;
                apply(&change.edit(&rows, referred)?, &file)?.0
            };
            Some(NewFile::write(verb, &path, &new)?)
        } else {
            None
        };
        let mut reloaded = self.ask(move |worker| {
            let reloaded = worker.reload(config)?;
            worker.options.source = text;
            Ok::<Reloaded, ApiError>(reloaded)
        })??;
        match saved {
            Some(file) => {
                file.put_in_place()?;
                reloaded.saved = Some(path.display().to_string());
            }
            None => reloaded.warnings.push(format!(
                "not saved: {} is as it was, and `natgw reload` or a restart goes back to it; --save keeps the change",
                path.display()
            )),
        }
        Ok(reloaded)
    }
}

/// A file that is whole, beside the one that it is to replace; gone unless it does.
struct NewFile {
    verb: &'static str,
    path: PathBuf,
    beside: Option<PathBuf>,
}

impl NewFile {
    fn write(verb: &'static str, path: &Path, text: &str) -> Result<Self, ApiError> {
        let cannot = |what: &'static str| move |error: io::Error| cannot_save(verb, path, what, &error);
        // A link stays one: what it leads to is replaced.
        let path = &path.canonicalize().map_err(cannot("find"))?;
        let metadata = fs::metadata(path).map_err(cannot("look at"))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let beside = path.with_file_name(format!(".{name}.{}.new", std::process::id()));
        let mut file = File::create(&beside).map_err(cannot("write beside"))?;
        // From here on it goes if anything fails.
        let new = Self { verb, path: path.clone(), beside: Some(beside) };
        file.write_all(text.as_bytes()).map_err(cannot("write beside"))?;
        file.set_permissions(fs::Permissions::from_mode(metadata.mode()))
            .map_err(cannot("set the mode of"))?;
        std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()))
            .map_err(cannot("set the owner of"))?;
        file.sync_all().map_err(cannot("write beside"))?;
        Ok(new)
    }

    fn put_in_place(mut self) -> Result<(), ApiError> {
        let Some(beside) = &self.beside else { return Ok(()) };
        fs::rename(beside, &self.path).map_err(|error| {
            let ApiError { message, hint } = cannot_save(self.verb, &self.path, "replace", &error);
            ApiError::new(format!("{message}; the change is in force all the same"), hint)
        })?;
        self.beside = None;
        // The name, too, has to be on the disk; should that fail, the file is whole all the same.
        if let Some(folder) = self.path.parent()
            && let Ok(folder) = File::open(folder)
        {
            let _ = folder.sync_all();
        }
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(beside) = &self.beside {
            let _ = fs::remove_file(beside);
        }
    }
}

fn cannot_save(verb: &str, path: &Path, what: &str, error: &io::Error) -> ApiError {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "make room on the file system, or leave --save out; nothing was changed"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "the daemon has to be allowed to write there (systemd: ReadWritePaths=), or leave --save out; nothing was changed"
        }
        _ => "leave --save out and change the file by hand; nothing was changed",
    };
    ApiError::new(format!("{verb} --save: {what} {}: {error}", path.display()), hint)
}
