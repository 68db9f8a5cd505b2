//! docs/rfc-compliance.md: each requirement, the verdict, the rows that prove it.

use std::fmt::Write as _;

use crate::{
    proofs::{Tests, Verdict, verdict},
    spec::Spec,
};

/// The document, from the results of a whole run.
pub(crate) fn document(spec: &Spec, tests: &Tests) -> String {
    let mut text = String::from(
        "# RFC compliance\n\n\
         Written by `cargo xtask test behaviour --write` from the results of the suite, and compared with them by every `cargo xtask test`: a verdict here is that of packets captured on both sides \
         of a running gateway. What a row says is in [behaviour.md](behaviour.md).\n",
    );
    let mut rfc = "";
    for requirement in &spec.requirements {
        if requirement.rfc != rfc {
            rfc = &requirement.rfc;
            let _ = write!(
                text,
                "\n## RFC {rfc}\n\n| requirement | level | in short | verdict | rows | setting |\n|---|---|---|---|---|---|\n"
            );
        }
        let verdicts = requirement.rows.iter().map(|row| verdict(spec, tests, row));
        let holds = summary(&verdicts.collect::<Vec<_>>());
        let _ = writeln!(
            text,
            "| {} | {} | {} | {holds} | {} | {} |",
            requirement.number,
            requirement.level,
            requirement.summary,
            requirement.rows.join(", "),
            requirement.setting
        );
    }
    text.push_str("\n## Every row\n\n| row | level | verdict |\n|---|---|---|\n");
    for row in &spec.rows {
        let said = match verdict(spec, tests, &row.id) {
            Verdict::Excepted => format!("not tested: {}", spec.exceptions[&row.id]),
            other => summary(&[other]).to_owned(),
        };
        let _ = writeln!(text, "| {} | {} | {said} |", row.id, row.level);
    }
    text
}

fn summary(verdicts: &[Verdict]) -> &'static str {
    let all = |wanted: &[Verdict]| verdicts.iter().all(|verdict| wanted.contains(verdict));
    if verdicts.contains(&Verdict::Failed) {
        "**fails**"
    } else if all(&[Verdict::Proven]) {
        "holds"
    } else if verdicts.contains(&Verdict::Proven) {
        "holds in part"
    } else if all(&[Verdict::Excepted]) {
        "not tested"
    } else {
        "not shown"
    }
}
