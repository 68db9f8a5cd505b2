//! A strict reader of Prometheus' text format: whatever a lenient scraper would let pass is an error here.

use std::collections::BTreeMap;

/// Metrics by name and labels, as they are written: `natgw_ports{address="203.0.113.1",…}`.
#[derive(Debug, Default)]
pub struct Metrics {
    kinds: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads a whole exposition, or says which line is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut metrics = Self::default();
        let mut helped: Option<&str> = None;
        let mut family: Option<&str> = None;
        if !text.ends_with('\n') {
            return Err("the last line does not end".to_owned());
        }
        for line in text.lines() {
            let wrong = |why: &str| format!("{why}: {line}");
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').ok_or_else(|| wrong("no help"))?;
                if !is_name(name) || help.trim() != help || help.is_empty() {
                    return Err(wrong("a name or a help that is none"));
                }
                helped = Some(name);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').ok_or_else(|| wrong("no type"))?;
                if helped != Some(name) {
                    return Err(wrong("TYPE does not follow its HELP"));
                }
                match (kind, name.ends_with("_total")) {
                    ("counter", true) | ("gauge", false) => {}
                    _ => return Err(wrong("a counter, and nothing else, ends in _total")),
                }
                if metrics.kinds.insert(name.to_owned(), kind.to_owned()).is_some() {
                    return Err(wrong("a second family of the name"));
                }
                family = Some(name);
            } else {
                let (series, value) = line.rsplit_once(' ').ok_or_else(|| wrong("no value"))?;
                let name = labels(series).ok_or_else(|| wrong("labels that are none"))?;
                if family != Some(name) {
                    return Err(wrong("outside of its family"));
                }
                let value: f64 = value.parse().map_err(|_| wrong("not a number"))?;
                if !value.is_finite() || value < 0.0 {
                    return Err(wrong("not a count or a size"));
                }
                if metrics.values.insert(series.to_owned(), value).is_some() {
                    return Err(wrong("twice"));
                }
            }
        }
        Ok(metrics)
    }

    /// The value under a name with its labels.
    pub fn get(&self, series: &str) -> f64 {
        *self.values.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.values))
    }

    /// The names there are.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.kinds.keys().map(String::as_str)
    }

    /// What was served to a scraper.
    pub fn series(&self) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().map(|(series, value)| (series.as_str(), *value))
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with("natgw_") && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// The name of a series whose labels are in order.
fn labels(series: &str) -> Option<&str> {
    let Some((name, rest)) = series.split_once('{') else { return is_name(series).then_some(series) };
    let mut rest = rest.strip_suffix('}')?;
    let mut seen = Vec::new();
    loop {
        let (label, text) = rest.split_once("=\"")?;
        let good = !label.is_empty() && label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
        if !good || seen.contains(&label) {
            return None;
        }
        seen.push(label);
        let end = end_of_text(text)?;
        rest = &text[end + 1..];
        if rest.is_empty() {
            return is_name(name).then_some(name);
        }
        rest = rest.strip_prefix(',')?;
    }
}

/// Where the closing quote is; escapes are `\\`, `\"` and `\n` alone.
fn end_of_text(text: &str) -> Option<usize> {
    let mut bytes = text.bytes().enumerate();
    loop {
        match bytes.next()? {
            (at, b'"') => return Some(at),
            (_, b'\\') if !matches!(bytes.next()?.1, b'\\' | b'"' | b'n') => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_order_is_read() {
        let good =
            "# HELP natgw_x_total Xs.\n# TYPE natgw_x_total counter\nnatgw_x_total{a=\"1\\\"\",b=\"\"} 2\n";
        assert!(Metrics::parse(good).is_ok_and(|read| read.values.len() == 1));
        let wrong = [
            good.trim_end().to_owned(),
            good.replace("counter", "gauge"),
            good.replace("natgw_x_total{", "natgw_y_total{"),
            good.replace("} 2", "} NaN"),
            good.replace("} 2", "} -2"),
            good.replace("b=", "a="),
            good.replace("\\\"", "\\q"),
            format!("{good}{}", good.lines().last().unwrap()) + "\n",
            format!("{good}{good}"),
            good.replace("# HELP natgw_x_total Xs.\n", ""),
        ];
        for text in wrong {
            assert!(Metrics::parse(&text).is_err(), "{text}");
        }
    }
}
