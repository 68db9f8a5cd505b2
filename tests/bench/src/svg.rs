//! A chart of lines, as SVG: two logarithmic axes, a line for each series.

use std::fmt::Write as _;

/// What to draw.
pub(crate) struct Chart<'a> {
    pub(crate) title: &'a str,
    pub(crate) horizontal: &'a str,
    pub(crate) vertical: &'a str,
    /// Name and points of each line; all numbers are positive.
    pub(crate) lines: Vec<(&'a str, Vec<(f64, f64)>)>,
}

impl Chart<'_> {
    /// The picture.
    pub(crate) fn draw(&self) -> String {
        let points = || self.lines.iter().flat_map(|(_, points)| points);
        let across = Axis::of(points().map(|point| point.0), LEFT, WIDTH - RIGHT);
        let up = Axis::of(points().map(|point| point.1), HEIGHT - BOTTOM, TOP);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
             font-family=\"sans-serif\" font-size=\"13\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n\
             <text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}</text>\n",
            escaped(self.title)
        );
        for tick in across.ticks() {
            let x = across.place(tick);
            line(&mut svg, (x, TOP), (x, HEIGHT - BOTTOM));
            text(&mut svg, (x, HEIGHT - BOTTOM + 18.0), "middle", &short(tick));
        }
        for tick in up.ticks() {
            let y = up.place(tick);
            line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y));
            text(&mut svg, (LEFT - 6.0, y + 4.0), "end", &short(tick));
        }
        text(&mut svg, (f64::midpoint(LEFT, WIDTH - RIGHT), HEIGHT - 12.0), "middle", self.horizontal);
        text(&mut svg, (LEFT, TOP - 8.0), "start", self.vertical);
        for ((name, points), colour) in self.lines.iter().zip(COLOURS.iter().cycle()) {
            let mut path = String::new();
            for (x, y) in points {
                let (x, y) = (across.place(*x), up.place(*y));
                let _infallible = write!(path, "{x:.1},{y:.1} ");
                let _infallible =
                    writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
            }
            let _infallible = writeln!(
                svg,
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.trim_end()
            );
            if let Some((x, y)) = points.last() {
                text(&mut svg, (across.place(*x) + 8.0, up.place(*y) + 4.0), "start", name);
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// A logarithmic axis between two places of the picture.
struct Axis {
    from: f64,
    to: f64,
    start: f64,
    end: f64,
}

impl Axis {
    /// From the power of two below the smallest value to that above the largest.
    fn of(values: impl Iterator<Item = f64>, start: f64, end: f64) -> Self {
        let (least, most) = values
            .fold((f64::MAX, f64::MIN_POSITIVE), |(least, most), value| (least.min(value), most.max(value)));
        let from = least.min(most).log2().floor();
        Self { from, to: most.log2().ceil().max(from + 1.0), start, end }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.log2() - self.from) / (self.to - self.from);
        self.start + share * (self.end - self.start)
    }

    /// Powers of two, at most a dozen of them.
    fn ticks(&self) -> Vec<f64> {
        let step = ((self.to - self.from) / 12.0).ceil();
        let mut ticks = Vec::new();
        let mut at = self.from;
        while at <= self.to {
            ticks.push(at.exp2());
            at += step;
        }
        ticks
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64)) {
    let _infallible = writeln!(
        svg,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#ddd\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escaped(text);
    let _infallible = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

/// 65536 as 64 k, 1048576 as 1 M; what is no such number in short.
fn short(value: f64) -> String {
    for (unit, name) in [(1_048_576.0, " M"), (1024.0, " k")] {
        if value >= unit {
            return format!("{}{name}", value / unit);
        }
    }
    format!("{value}")
}

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 440.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 80.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 56.0;
const COLOURS: [&str; 5] = ["#0b7a75", "#7d8491", "#c1440e", "#5b4b8a", "#b08900"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_has_its_lines_and_its_axes() {
        let chart = Chart {
            title: "hops < flows",
            horizontal: "flows",
            vertical: "ns",
            lines: vec![("natgw", vec![(1.0, 100.0), (65_536.0, 400.0)]), ("bare", vec![(1.0, 200.0)])],
        };
        let svg = chart.draw();
        assert_eq!(svg.matches("<polyline").count(), 2);
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("hops &lt; flows") && svg.contains(">64 k<") && svg.contains(">512<"));
        // The smallest value lies at the axes' origin: 64 is the power of two below 100.
        assert!(svg.contains("cx=\"70.0\""));
    }
}
