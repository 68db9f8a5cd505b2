//! `natgw top`

mod screen;

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::Duration;

use clap::Args;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use serde::de::IgnoredAny;

pub(super) use self::screen::figure;
use self::screen::{Screen, Sort, View};
use super::table::{Column, Table};
use super::{Daemon, Failure, output};
use crate::api::{ClientError, Request, TopReport, TopRow};

#[derive(Args, Debug)]
pub(super) struct Top {
    /// Seconds between two looks
    #[arg(long, short, value_name = "SECONDS", default_value_t = 1.0, value_parser = seconds)]
    interval: f64,
    /// Print the first look and end
    #[arg(long)]
    once: bool,
    /// Write a line of JSON for each look instead
    #[arg(long)]
    json: bool,
    /// Show at most so many hosts, remotes and rules
    #[arg(long, value_name = "N", default_value_t = 100)]
    most: u32,
    /// What is shown first
    #[arg(long, value_name = "VIEW", value_enum, default_value_t = View::Hosts)]
    view: View,
    /// What rows are sorted by
    #[arg(long, value_name = "COLUMN", value_enum, default_value_t = Sort::Bits)]
    sort: Sort,
    /// Show only rows whose name contains this
    #[arg(long, value_name = "TEXT", default_value = "")]
    filter: String,
}

/// How long keys are waited for before the daemon is looked after.
const KEYS: Duration = Duration::from_millis(100);

fn seconds(word: &str) -> Result<f64, String> {
    let seconds: f64 = word.parse().map_err(|_| "a number of seconds".to_owned())?;
    if (0.1..=60.0).contains(&seconds) { Ok(seconds) } else { Err("from 0.1 to 60 seconds".to_owned()) }
}

impl Top {
    pub(super) fn carry_out(self, daemon: &Daemon) -> Result<(), Failure> {
        // The kernel measures its programs for as long as this is open, which wants CAP_SYS_ADMIN: the daemon has
        // given that up. Whoever has not got it sees that column empty.
        let _measured = aya::sys::enable_stats(aya::sys::Stats::RunTime);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most a minute")]
        let request = Request::Top { interval: (self.interval * 1000.0) as u32, most: self.most };
        if !self.once && !self.json {
            return self.live(daemon, request);
        }
        let mut out = output::stdout();
        let mut over = false;
        let answered: Result<IgnoredAny, _> = daemon.list(&request, |mut report: TopReport| {
            self.choose(&mut report);
            if self.json {
                serde_json::to_writer(&mut out, &report)?;
                out.write_all(b"\n")?;
            } else {
                write(&mut out, &report)?;
            }
            out.flush()?;
            over = self.once;
            if over { Err(io::ErrorKind::Interrupted.into()) } else { Ok(()) }
        });
        match answered {
            Err(ClientError::Output(error)) if over && error.kind() == io::ErrorKind::Interrupted => Ok(()),
            answered => Ok(answered.map(|_| ())?),
        }
    }

    /// Sorts and filters as the options say.
    fn choose(&self, report: &mut TopReport) {
        for rows in [&mut report.hosts, &mut report.remotes, &mut report.rules] {
            rows.retain(|row| row.name.contains(&self.filter));
            self.sort.sort(rows);
        }
        report.drops.retain(|drop| drop.reason.contains(&self.filter));
    }

    /// On the terminal, until a key ends it.
    fn live(self, daemon: &Daemon, request: Request) -> Result<(), Failure> {
        let (reports, received) = channel();
        let daemon = Daemon { socket: daemon.socket.clone() };
        // It ends with the process: the daemon sees the connection close.
        std::thread::spawn(move || {
            let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
            let answered: Result<IgnoredAny, _> =
                daemon.list(&request, |report: TopReport| reports.send(Ok(report)).map_err(gone));
            if let Err(error) = answered {
                let _ = reports.send(Err(error));
            }
        });
        // The first report, or what is wrong, before the terminal is taken.
        let first = match received.recv() {
            Ok(first) => first?,
            Err(_) => return Ok(()),
        };
        let mut screen = Screen::new(first, self.view, self.sort, self.filter);
        let mut terminal = ratatui::try_init().map_err(|error| Failure::Said {
            message: format!("top: prepare the terminal: {error}"),
            hint: Some("`natgw top --once` and `--json` need none".to_owned()),
        })?;
        let ended = show(&mut terminal, &mut screen, &received);
        ratatui::restore();
        ended
    }
}

fn show(
    terminal: &mut DefaultTerminal,
    screen: &mut Screen,
    reports: &Receiver<Result<TopReport, ClientError>>,
) -> Result<(), Failure> {
    loop {
        terminal.draw(|frame| screen.draw(frame))?;
        if event::poll(KEYS)?
            && let Event::Key(key) = event::read()?
            && key.kind == KeyEventKind::Press
            && screen.key(key)
        {
            return Ok(());
        }
        match reports.try_recv() {
            Ok(report) => screen.update(report?),
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

/// For people, without a terminal.
fn write(mut out: impl Write, report: &TopReport) -> io::Result<()> {
    for line in screen::summary(report) {
        writeln!(out, "{line}")?;
    }
    for (heading, rows) in
        [("INSIDE-HOST", &report.hosts), ("REMOTE", &report.remotes), ("RULE", &report.rules)]
    {
        if rows.is_empty() {
            continue;
        }
        writeln!(out)?;
        let columns = [
            Column::Left(heading),
            Column::Right("SESSIONS"),
            Column::Right("NEW/S"),
            Column::Right("PACKETS-OUT/S"),
            Column::Right("PACKETS-IN/S"),
            Column::Right("BITS-OUT/S"),
            Column::Right("BITS-IN/S"),
        ];
        let mut table = Table::new(&mut out, output::styled(), columns);
        for TopRow { name, sessions, new, traffic } in rows {
            table.row([
                name.clone(),
                sessions.to_string(),
                figure(*new),
                figure(traffic.packets_out),
                figure(traffic.packets_in),
                figure(traffic.bits_out),
                figure(traffic.bits_in),
            ])?;
        }
        table.finish()?;
    }
    if report.drops.is_empty() {
        return Ok(());
    }
    writeln!(out)?;
    let columns = [
        Column::Left("DROPPED-FOR"),
        Column::Right("PACKETS/S"),
        Column::Right("PACKETS"),
        Column::Left("WHICH-MEANS"),
    ];
    let mut table = Table::new(&mut out, output::styled(), columns);
    for drop in &report.drops {
        table.row([
            drop.reason.clone(),
            figure(drop.rate),
            drop.packets.to_string(),
            drop.description.clone(),
        ])?;
    }
    table.finish()?;
    Ok(())
}
