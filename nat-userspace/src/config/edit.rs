//! Rules put into the text of a configuration, and taken out of it: all else stays as it was written.

use toml_edit::{ArrayOfTables, DocumentMut, Item, Table};

/// A change of a configuration's text.
#[derive(Clone, Debug)]
pub enum Edit {
    /// Puts a rule in.
    Add {
        /// `snat`, `static` or `forward`.
        kind: String,
        /// Its keys, as they stand in the file.
        keys: String,
        /// Before which of its kind, counted from 0; behind all if nothing is said.
        before: Option<usize>,
    },
    /// Takes a rule out.
    Remove {
        /// Its kind.
        kind: String,
        /// Which of its kind, counted from 0.
        position: usize,
    },
}

/// Why a text cannot be changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EditError {
    /// It is no TOML.
    #[error("it is not TOML: {0}")]
    Text(String),
    /// The keys of the new rule are none.
    #[error("the rule's keys are not TOML: {0}")]
    Keys(String),
    /// The rules are written in a way that cannot be added to.
    #[error("its {0} rules are written in one line, not as [[{0}]] sections")]
    Inline(String),
    /// There is no such rule.
    #[error("it has no [[{0}]] number {1}")]
    Missing(String, usize),
}

impl Edit {
    /// The text with the change.
    pub fn apply(&self, text: &str) -> Result<String, EditError> {
        let mut document: DocumentMut = text.parse().map_err(|error| EditError::Text(format!("{error}")))?;
        match self {
            Self::Add { kind, keys, before } => {
                let keys: DocumentMut = keys.parse().map_err(|error| EditError::Keys(format!("{error}")))?;
                add(&mut document, kind, keys.as_table(), *before)?;
            }
            Self::Remove { kind, position } => remove(&mut document, kind, *position)?,
        }
        Ok(document.to_string())
    }
}

fn rules<'doc>(document: &'doc mut DocumentMut, kind: &str) -> Result<&'doc mut ArrayOfTables, EditError> {
    let rules = document.entry(kind).or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
    rules.as_array_of_tables_mut().ok_or_else(|| EditError::Inline(kind.to_owned()))
}

fn add(document: &mut DocumentMut, kind: &str, keys: &Table, before: Option<usize>) -> Result<(), EditError> {
    let is_empty = document.as_table().is_empty();
    let rules = rules(document, kind)?;
    let mut rule = Table::new();
    for (key, value) in keys {
        rule.insert(key, value.clone());
    }
    rule.decor_mut().set_prefix(if is_empty { "" } else { "\n" });
    let position = before.unwrap_or(rules.len());
    if position > rules.len() {
        return Err(EditError::Missing(kind.to_owned(), position + 1));
    }
    // Without a place of its own it follows the one before it. The first has none before it.
    if position == 0 {
        rule.set_position(rules.get(0).and_then(Table::position));
    }
    rules.insert(position, rule);
    Ok(())
}

fn remove(document: &mut DocumentMut, kind: &str, position: usize) -> Result<(), EditError> {
    let rules = rules(document, kind)?;
    if position >= rules.len() {
        return Err(EditError::Missing(kind.to_owned(), position + 1));
    }
    let removed = rules.remove(position);
    let prefix = removed.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
    let kept = kept_of(prefix).to_owned();
    let is_empty = rules.is_empty();
    if let Some(next) = rules.get_mut(position) {
        let own = next.decor().prefix().and_then(|prefix| prefix.as_str()).unwrap_or_default();
        let both = format!("{kept}{own}");
        next.decor_mut().set_prefix(both);
    } else if !kept.trim().is_empty() {
        let trailing = document.trailing().as_str().unwrap_or_default().to_owned();
        document.set_trailing(format!("{trailing}{kept}"));
    }
    if is_empty {
        document.remove(kind);
    }
    Ok(())
}

/// What stands before a rule and is not about it: a comment that a blank line sets off.
fn kept_of(prefix: &str) -> &str {
    match prefix.trim_end_matches([' ', '\t']).rfind("\n\n") {
        Some(blank) if !prefix[..blank].trim().is_empty() => &prefix[..=blank],
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# The gateway of the office.\n\n\
        # Guests may not get in.\n\
        [[snat]]  # the first\n\
        name = \"guests\"\n\
        to   =   \"none\"\n\
        \n\
        # All about the office.\n\
        \n\
        # The rest.\n\
        [[snat]]\n\
        name = \"office\"\n\
        to = \"masquerade\" # for now\n\
        \n\
        [timeouts] # shorter\n\
        udp = \"2m\"\n";

    fn add(before: Option<usize>, kind: &str) -> String {
        let keys = "name = \"new\"\nto = \"none\"\n".to_owned();
        Edit::Add { kind: kind.to_owned(), keys, before }.apply(TEXT).expect("a change")
    }

    fn remove(position: usize) -> Result<String, EditError> {
        Edit::Remove { kind: "snat".to_owned(), position }.apply(TEXT)
    }

    #[test]
    fn a_rule_is_added_and_nothing_else_changes() {
        let new = "\n[[snat]]\nname = \"new\"\nto = \"none\"\n";
        let behind = "to = \"masquerade\" # for now\n";
        assert_eq!(add(None, "snat"), TEXT.replace(behind, &format!("{behind}{new}")));
        let between = "to   =   \"none\"\n";
        assert_eq!(add(Some(1), "snat"), TEXT.replace(between, &format!("{between}{new}")));
        assert!(add(Some(0), "snat").starts_with(new), "{}", add(Some(0), "snat"));
        let other = add(None, "static");
        assert_eq!(other, format!("{TEXT}{}", new.replace("snat", "static")));
        for text in [add(None, "snat"), add(Some(0), "snat"), other] {
            assert!(text.contains("# All about the office.") && text.contains("[timeouts] # shorter"));
        }
    }

    #[test]
    fn a_rule_goes_with_its_comment_and_no_other() {
        let without = remove(0).expect("a change");
        assert_eq!(
            without,
            "# The gateway of the office.\n\
             \n# All about the office.\n\n# The rest.\n[[snat]]\nname = \"office\"\nto = \"masquerade\" # for now\n\
             \n[timeouts] # shorter\nudp = \"2m\"\n"
        );
        let without = remove(1).expect("a change");
        assert!(without.contains("# All about the office.") && !without.contains("# The rest."), "{without}");
        assert!(without.contains("[[snat]]  # the first"));
        assert_eq!(remove(2), Err(EditError::Missing("snat".to_owned(), 3)));
    }

    #[test]
    fn what_cannot_be_changed_is_said() {
        let edit = Edit::Remove { kind: "snat".to_owned(), position: 0 };
        assert_eq!(edit.apply("snat = [{ to = \"none\" }]"), Err(EditError::Inline("snat".to_owned())));
        assert!(matches!(edit.apply("snat ="), Err(EditError::Text(_))));
    }
}
