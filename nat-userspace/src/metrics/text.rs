//! Prometheus' text format: families with HELP and TYPE, each value a line.

use std::fmt::{self, Write as _};

/// The text so far.
#[derive(Default)]
pub(super) struct Text(String);

/// Values of one name.
pub(super) struct Family<'text> {
    text: &'text mut String,
    name: &'static str,
}

impl Text {
    /// A family of values that only grow; its name ends in `_total`.
    pub(super) fn counter(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "counter", help)
    }

    /// A family of values that rise and fall.
    pub(super) fn gauge(&mut self, name: &'static str, help: &str) -> Family<'_> {
        self.family(name, "gauge", help)
    }

    fn family(&mut self, name: &'static str, kind: &str, help: &str) -> Family<'_> {
        write(&mut self.0, format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        Family { text: &mut self.0, name }
    }

    pub(super) fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    /// A value under these labels.
    pub(super) fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line(labels, format_args!("{value}"));
    }

    /// A whole number under these labels.
    pub(super) fn count(&mut self, labels: &[(&str, &str)], value: u64) {
        self.line(labels, format_args!("{value}"));
    }

    fn line(&mut self, labels: &[(&str, &str)], value: fmt::Arguments<'_>) {
        self.text.push_str(self.name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let before = if index == 0 { '{' } else { ',' };
            write(self.text, format_args!("{before}{label}=\"{text}\""));
        }
        let after = if labels.is_empty() { "" } else { "}" };
        write(self.text, format_args!("{after} {value}\n"));
    }
}

fn write(text: &mut String, what: fmt::Arguments<'_>) {
    // A String takes everything.
    let _ = text.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.gauge("natgw_example", "An example.").value(&[("rule", "a\"b\\c\nd"), ("side", "in")], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP natgw_example An example.\n# TYPE natgw_example gauge\nnatgw_example{rule=\"a\\\"b\\\\c\\nd\",side=\"in\"} 0.5\n"
        );
    }
}
