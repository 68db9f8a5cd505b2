//! From netfilter's translation rules to a configuration of this program's.
//!
//! `iptables` and `nft_text` read what `iptables-save` and `nft list ruleset` print (`nft_json` what
//! `nft -j` does) into the rules of `model`; `carry` says in this program's rules what each means, or
//! why that cannot be said; `toml` writes it down. Text in, text out.

#![deny(unsafe_code)]

mod carry;
mod iptables;
mod model;
mod nft_json;
mod nft_text;
#[cfg(test)]
mod tests;
mod toml;

use self::model::Ruleset;

/// Which interfaces are on which side, where that is known: netfilter's rules hardly say it.
#[derive(Clone, Debug, Default)]
pub struct Sides {
    /// Those of the inside.
    pub inside: Vec<String>,
    /// Those of the outside.
    pub outside: Vec<String>,
}

/// What a rule set became.
#[derive(Debug)]
pub struct Conversion {
    /// A valid configuration, with the rule that each part comes from as its comment.
    pub text: String,
    /// Rules that it does not have.
    pub left: Vec<Left>,
    /// What had to be assumed.
    pub notes: Vec<String>,
    /// How many sections were made.
    pub carried: usize,
}

/// A rule that could not be carried over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Left {
    /// Where it stands, as it was written.
    pub rule: String,
    /// Why, and what may be done.
    pub reason: String,
}

/// Why there is nothing to convert.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct ConvertError {
    problem: String,
    /// What to do.
    pub hint: &'static str,
}

/// Converts what `iptables-save` prints.
pub fn from_iptables(text: &str, sides: &Sides) -> Result<Conversion, ConvertError> {
    convert(&iptables::read(text), sides, "no rules as iptables-save prints them", "iptables-save > FILE")
}

/// Converts what `nft list ruleset` prints, with `-j` or without.
pub fn from_nft(text: &str, sides: &Sides) -> Result<Conversion, ConvertError> {
    let hint = "nft list ruleset > FILE; with -j it may be, too";
    let ruleset = if text.trim_start().starts_with('{') {
        nft_json::read(text)
            .map_err(|error| ConvertError { problem: format!("not the JSON of nft: {error}"), hint })?
    } else {
        nft_text::read(text)
    };
    convert(&ruleset, sides, "no rules as nft list ruleset prints them", hint)
}

fn convert(
    ruleset: &Ruleset,
    sides: &Sides,
    nothing: &str,
    hint: &'static str,
) -> Result<Conversion, ConvertError> {
    if ruleset.chains.is_empty() {
        return Err(ConvertError { problem: nothing.to_owned(), hint });
    }
    toml::write(carry::carry(ruleset, sides))
}
