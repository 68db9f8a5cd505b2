//! What `natgw top` draws, and what its keys do.

use clap::ValueEnum;
use ratatui::Frame;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Style, Stylize as _};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Row, Table};

use super::super::output;
use crate::api::{TopDrop, TopReport, TopRow};

/// Which rows are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum View {
    /// Inside hosts
    Hosts,
    /// Remotes
    Remotes,
    /// Rules
    Rules,
    /// Drops by reason
    Drops,
}

impl View {
    const ALL: [(Self, char, &'static str); 4] = [
        (Self::Hosts, 'h', "hosts"),
        (Self::Remotes, 'r', "remotes"),
        (Self::Rules, 'u', "rules"),
        (Self::Drops, 'd', "drops"),
    ];
}

/// What they are sorted by, most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// Bits a second, both ways
    Bits,
    /// Packets a second, both ways
    Packets,
    /// Sessions
    Sessions,
    /// New sessions a second
    New,
    /// Names, in their order
    Name,
}

impl Sort {
    const ALL: [(Self, char, &'static str); 5] = [
        (Self::Bits, 'b', "bits"),
        (Self::Packets, 'p', "packets"),
        (Self::Sessions, 's', "sessions"),
        (Self::New, 'n', "new"),
        (Self::Name, 'a', "name"),
    ];

    pub(super) fn sort(self, rows: &mut [TopRow]) {
        #[expect(clippy::cast_precision_loss, reason = "for the order alone")]
        let weight = |row: &TopRow| match self {
            Self::Bits => row.traffic.bits_out + row.traffic.bits_in,
            Self::Packets => row.traffic.packets_out + row.traffic.packets_in,
            Self::Sessions => row.sessions as f64,
            Self::New => row.new,
            Self::Name => 0.0,
        };
        rows.sort_by(|one, other| {
            weight(other).total_cmp(&weight(one)).then_with(|| one.name.cmp(&other.name))
        });
    }
}

/// The last report, and how it is looked at.
pub(super) struct Screen {
    report: TopReport,
    view: View,
    sort: Sort,
    filter: String,
    /// The filter is being typed.
    typing: bool,
    paused: bool,
    /// Rows above the first that is shown.
    skipped: usize,
}

impl Screen {
    pub(super) fn new(report: TopReport, view: View, sort: Sort, filter: String) -> Self {
        Self { report, view, sort, filter, typing: false, paused: false, skipped: 0 }
    }

    /// A new report; a paused screen stays as it is.
    pub(super) fn update(&mut self, report: TopReport) {
        if !self.paused {
            self.report = report;
        }
    }

    /// A key. Whether it ends the program.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        match key.code {
            KeyCode::Char('c') if control => return true,
            KeyCode::Enter if self.typing => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace if self.typing => {
                self.filter.pop();
            }
            KeyCode::Char(letter) if self.typing => self.filter.push(letter),
            KeyCode::Char('q') => return true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Down => self.skipped = (self.skipped + 1).min(self.rows().saturating_sub(1)),
            KeyCode::Up => self.skipped = self.skipped.saturating_sub(1),
            KeyCode::Home => self.skipped = 0,
            KeyCode::Tab => {
                let position = View::ALL.iter().position(|(view, ..)| *view == self.view).unwrap_or(0);
                self.show(View::ALL[(position + 1) % View::ALL.len()].0);
            }
            KeyCode::Char(letter) => {
                if let Some((view, ..)) = View::ALL.iter().find(|(_, key, _)| *key == letter) {
                    self.show(*view);
                }
                if let Some((sort, ..)) = Sort::ALL.iter().find(|(_, key, _)| *key == letter) {
                    self.sort = *sort;
                }
            }
            _ => {}
        }
        false
    }

    fn show(&mut self, view: View) {
        self.view = view;
        self.skipped = 0;
    }

    /// Rows of the view that the filter lets through.
    fn rows(&self) -> usize {
        match self.view {
            View::Drops => self.drops().count(),
            _ => self.chosen().len(),
        }
    }

    fn drops(&self) -> impl Iterator<Item = &TopDrop> {
        self.report.drops.iter().filter(|drop| drop.reason.contains(&self.filter))
    }

    fn chosen(&self) -> Vec<TopRow> {
        let rows = match self.view {
            View::Hosts | View::Drops => &self.report.hosts,
            View::Remotes => &self.report.remotes,
            View::Rules => &self.report.rules,
        };
        let mut rows: Vec<TopRow> =
            rows.iter().filter(|row| row.name.contains(&self.filter)).cloned().collect();
        self.sort.sort(&mut rows);
        rows
    }

    pub(super) fn draw(&self, frame: &mut Frame<'_>) {
        let summary = summary(&self.report);
        let height = u16::try_from(summary.len()).unwrap_or(0);
        let [above, gap, views, table, keys] = Layout::vertical([
            Constraint::Length(height),
            Constraint::Length(1),
            Constraint::Length(1),
            Constraint::Min(2),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        frame.render_widget(Paragraph::new(summary.into_iter().map(Line::from).collect::<Vec<_>>()), above);
        let paused = if self.paused { "paused" } else { "" };
        frame.render_widget(Line::from(paused.bold()).right_aligned(), gap);
        frame.render_widget(self.views(), views);
        let bold = Style::new().bold();
        if self.view == View::Drops {
            let widths =
                [Constraint::Length(16), Constraint::Length(9), Constraint::Length(12), Constraint::Min(20)];
            let rows = self.drops().skip(self.skipped).map(|drop| {
                Row::new([
                    drop.reason.clone(),
                    format!("{:>9}", figure(drop.rate)),
                    format!("{:>12}", drop.packets),
                    drop.description.clone(),
                ])
            });
            let heading = ["DROPPED-FOR", "PACKETS/S", "     PACKETS", "WHICH-MEANS"];
            frame.render_widget(Table::new(rows, widths).header(Row::new(heading).style(bold)), table);
        } else {
            let number = |text: String| format!("{text:>9}");
            let rows = self.chosen().into_iter().skip(self.skipped).map(|row| {
                Row::new([
                    row.name,
                    number(row.sessions.to_string()),
                    number(figure(row.new)),
                    number(figure(row.traffic.packets_out)),
                    number(figure(row.traffic.packets_in)),
                    number(figure(row.traffic.bits_out)),
                    number(figure(row.traffic.bits_in)),
                ])
            });
            let first = match self.view {
                View::Remotes => "REMOTE",
                View::Rules => "RULE",
                View::Hosts | View::Drops => "INSIDE-HOST",
            };
            let heading =
                [first, " SESSIONS", "    NEW/S", "PKT-OUT/S", " PKT-IN/S", "BIT-OUT/S", " BIT-IN/S"];
            let widths = [Constraint::Min(18)].into_iter().chain([Constraint::Length(9); 6]);
            frame.render_widget(Table::new(rows, widths).header(Row::new(heading).style(bold)), table);
        }
        frame.render_widget(Line::from(KEYS.dim()), keys);
    }

    /// Which view, which order, which filter.
    fn views(&self) -> Line<'_> {
        let mut spans = Vec::new();
        for (view, _, name) in View::ALL {
            spans.push(if view == self.view { name.reversed() } else { name.into() });
            spans.push(Span::raw(" "));
        }
        if self.view != View::Drops {
            let sort = Sort::ALL.iter().find(|(sort, ..)| *sort == self.sort);
            spans.push(format!("  by {}", sort.map_or("", |(.., name)| *name)).into());
        }
        if self.typing || !self.filter.is_empty() {
            spans.push(format!("  filter: {}{}", self.filter, if self.typing { "_" } else { "" }).into());
        }
        Line::from(spans)
    }
}

const KEYS: &str = "q end  h r u d Tab views  b p s n a sort  / filter  Esc clear  Space pause";

/// The gateway as a whole, in lines of at most 80 columns.
pub(super) fn summary(report: &TopReport) -> Vec<String> {
    let TopReport { packets, traffic, cpu, .. } = report;
    let clock = report.time.split(['T', 'Z']).nth(1).unwrap_or(&report.time);
    let percent = |share: f64| format!("{share:.1} %");
    vec![
        format!("natgw  {clock} UTC  up {}  over {:.1} s", output::seconds(report.uptime), report.interval),
        format!(
            "sessions   {} of {}, {} new a second",
            report.sessions,
            report.sessions_limit,
            figure(report.new)
        ),
        format!(
            "packets/s  {} translated, {} passed, {} punted, {} dropped",
            figure(packets.translated),
            figure(packets.passed),
            figure(packets.punted),
            figure(packets.dropped)
        ),
        format!(
            "traffic    out {} bit/s in {} packets/s, in {} bit/s in {} packets/s",
            figure(traffic.bits_out),
            figure(traffic.packets_out),
            figure(traffic.bits_in),
            figure(traffic.packets_in)
        ),
        format!(
            "CPU        fast path {}, slow path {} (of one CPU)",
            cpu.fast_path.map_or_else(|| "not told".to_owned(), percent),
            percent(cpu.slow_path)
        ),
    ]
}

/// Three digits or so: `0`, `0.3`, `12`, `1.2k`, `34.5M`.
pub(in crate::cli) fn figure(value: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut value = value;
    let mut unit = 0;
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 && (value >= 9.95 || value < 0.05) {
        format!("{value:.0}")
    } else {
        format!("{value:.1}{}", UNITS[unit])
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;
    use crate::api::{CpuUse, PacketRates, Traffic};

    fn row(name: &str, sessions: u64, bits: f64) -> TopRow {
        let traffic = Traffic { packets_out: 10.0, packets_in: 20.0, bits_out: bits, bits_in: 2.0 * bits };
        TopRow { name: name.to_owned(), sessions, new: 0.0, traffic }
    }

    fn screen() -> Screen {
        let report = TopReport {
            time: "2026-03-01T12:00:00Z".to_owned(),
            interval: 1.0,
            uptime: 7440,
            sessions: 12,
            sessions_limit: 1_048_576,
            new: 3.0,
            packets: PacketRates { translated: 48_211.0, passed: 5.0, punted: 12.0, dropped: 0.3 },
            traffic: Traffic { packets_out: 100.0, packets_in: 200.0, bits_out: 1.2e6, bits_in: 3.45e9 },
            cpu: CpuUse { fast_path: Some(3.1), slow_path: 0.25 },
            hosts: vec![row("10.1.1.12", 3, 1000.0), row("10.1.1.13", 9, 500.0)],
            remotes: vec![row("198.51.100.7", 12, 1500.0)],
            rules: vec![row("office", 12, 1500.0)],
            drops: vec![TopDrop {
                reason: "no_route".to_owned(),
                description: "no route to the destination".to_owned(),
                rate: 0.3,
                packets: 7,
            }],
        };
        Screen::new(report, View::Hosts, Sort::Bits, String::new())
    }

    fn drawn(screen: &Screen) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).expect("a terminal in memory");
        terminal.draw(|frame| screen.draw(frame)).expect("it draws");
        let buffer = terminal.backend().buffer().clone();
        let rows = buffer.content().chunks(80);
        rows.map(|row| {
            row.iter().map(ratatui::buffer::Cell::symbol).collect::<String>().trim_end().to_owned()
        })
        .collect()
    }

    fn press(screen: &mut Screen, keys: &str) -> bool {
        keys.chars().any(|key| screen.key(KeyEvent::from(KeyCode::Char(key))))
    }

    #[test]
    fn it_fits_eighty_by_twenty_four() {
        let lines = drawn(&screen());
        assert_eq!(
            lines[..10],
            [
                "natgw  12:00:00 UTC  up 2h4m  over 1.0 s",
                "sessions   12 of 1048576, 3.0 new a second",
                "packets/s  48.2k translated, 5.0 passed, 12 punted, 0.3 dropped",
                "traffic    out 1.2M bit/s in 100 packets/s, in 3.5G bit/s in 200 packets/s",
                "CPU        fast path 3.1 %, slow path 0.2 % (of one CPU)",
                "",
                "hosts remotes rules drops   by bits",
                "INSIDE-HOST           SESSIONS     NEW/S PKT-OUT/S  PKT-IN/S BIT-OUT/S  BIT-IN/S",
                "10.1.1.12                    3         0        10        20      1.0k      2.0k",
                "10.1.1.13                    9         0        10        20       500      1.0k",
            ]
        );
        assert_eq!(lines[23], KEYS);
    }

    #[test]
    fn keys_choose_views_orders_and_filters() {
        let mut screen = screen();
        assert!(!press(&mut screen, "s"));
        assert!(drawn(&screen)[8].starts_with("10.1.1.13"), "by sessions");
        press(&mut screen, "a");
        assert!(drawn(&screen)[8].starts_with("10.1.1.12"), "by name");
        screen.key(KeyEvent::from(KeyCode::Down));
        assert!(drawn(&screen)[8].starts_with("10.1.1.13"), "one further");
        press(&mut screen, "r");
        assert!(drawn(&screen)[8].starts_with("198.51.100.7"), "remotes");
        screen.key(KeyEvent::from(KeyCode::Tab));
        assert!(drawn(&screen)[8].starts_with("office"), "rules");
        press(&mut screen, "d");
        assert!(
            drawn(&screen)[8].starts_with("no_route               0.3            7 no route to"),
            "drops"
        );
        press(&mut screen, "h/.13q");
        screen.key(KeyEvent::from(KeyCode::Backspace));
        let lines = drawn(&screen);
        assert!(lines[6].ends_with("filter: .13_") && lines[8].starts_with("10.1.1.13"), "{lines:?}");
        assert_eq!(lines[9], "");
        screen.key(KeyEvent::from(KeyCode::Esc));
        assert!(drawn(&screen)[8].starts_with("10.1.1.12"), "all again");
        press(&mut screen, " ");
        screen.update(TopReport::default());
        assert!(drawn(&screen)[5].ends_with("paused") && drawn(&screen)[8].starts_with("10.1.1.12"));
        assert!(press(&mut screen, "q"));
        assert!(screen.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)));
    }

    #[test]
    fn figures_are_short() {
        let shown: Vec<String> =
            [0.0, 0.04, 0.3, 9.0, 12.4, 999.0, 999.6, 1234.0, 34_500_000.0, 2e15].map(figure).to_vec();
        assert_eq!(shown, ["0", "0", "0.3", "9.0", "12", "999", "1.0k", "1.2k", "34.5M", "2000.0T"]);
    }
}
