//! Tables for people: a heading, aligned columns, numbers to the right.
//!
//! A listing may have a million rows: only its beginning is looked at to find the widths, the
//! rest is written as it comes. A later cell that is wider shifts its own line only.

use std::io::{self, Write};

/// A column's heading, and the side its cells lean to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Column {
    /// Words.
    Left(&'static str),
    /// Numbers.
    Right(&'static str),
}

impl Column {
    fn heading(self) -> &'static str {
        match self {
            Self::Left(heading) | Self::Right(heading) => heading,
        }
    }
}

/// A table that is being written.
pub(super) struct Table<W: Write, const N: usize> {
    out: W,
    columns: [Column; N],
    styled: bool,
    /// The rows held back until the widths are known.
    first: Vec<[String; N]>,
    widths: Option<[usize; N]>,
}

impl<W: Write, const N: usize> Table<W, N> {
    /// `styled`: the heading may be set off by terminal sequences.
    pub(super) fn new(out: W, styled: bool, columns: [Column; N]) -> Self {
        Self { out, columns, styled, first: Vec::new(), widths: None }
    }

    pub(super) fn row(&mut self, cells: [String; N]) -> io::Result<()> {
        match self.widths {
            Some(widths) => self.line(&widths, cells.each_ref().map(String::as_str)),
            None if self.first.len() + 1 < MEASURED_ROWS => {
                self.first.push(cells);
                Ok(())
            }
            None => {
                self.first.push(cells);
                self.begin()
            }
        }
    }

    /// Writes what is held back, if only the heading; gives the output back, not flushed.
    pub(super) fn finish(mut self) -> io::Result<W> {
        if self.widths.is_none() {
            self.begin()?;
        }
        Ok(self.out)
    }

    fn begin(&mut self) -> io::Result<()> {
        let first = std::mem::take(&mut self.first);
        let headings = self.columns.map(Column::heading);
        let mut widths = headings.map(str::len);
        for cells in &first {
            for (width, cell) in widths.iter_mut().zip(cells) {
                *width = cell.chars().count().max(*width);
            }
        }
        self.widths = Some(widths);
        if self.styled {
            self.out.write_all(BOLD)?;
        }
        self.line(&widths, headings)?;
        if self.styled {
            self.out.write_all(PLAIN)?;
        }
        first.iter().try_for_each(|cells| self.line(&widths, cells.each_ref().map(String::as_str)))
    }

    fn line(&mut self, widths: &[usize; N], cells: [&str; N]) -> io::Result<()> {
        for (index, (cell, column)) in cells.into_iter().zip(self.columns).enumerate() {
            let gap = if index == 0 { "" } else { "  " };
            let width = widths[index];
            match column {
                Column::Right(_) => write!(self.out, "{gap}{cell:>width$}")?,
                // No blanks at the end of a line.
                Column::Left(_) if index + 1 == N => write!(self.out, "{gap}{cell}")?,
                Column::Left(_) => write!(self.out, "{gap}{cell:<width$}")?,
            }
        }
        self.out.write_all(b"\n")
    }
}

/// What stands in an empty cell: each line has as many words as columns.
pub(super) fn or_dash(cell: Option<String>) -> String {
    cell.filter(|cell| !cell.is_empty()).unwrap_or_else(|| "-".to_owned())
}

/// How many rows are looked at to find the widths.
const MEASURED_ROWS: usize = 500;

const BOLD: &[u8] = b"\x1b[1m";
const PLAIN: &[u8] = b"\x1b[0m";

#[cfg(test)]
mod tests {
    use super::*;

    fn written(rows: usize, styled: bool) -> String {
        let columns = [Column::Left("NAME"), Column::Right("COUNT"), Column::Left("NOTE")];
        let mut table = Table::new(Vec::new(), styled, columns);
        for row in 0..rows {
            let cells = ["lan".to_owned(), (row * 123_456).to_string(), "fine".to_owned()];
            table.row(cells).expect("a Vec takes all");
        }
        String::from_utf8(table.finish().expect("a Vec takes all")).expect("UTF-8")
    }

    #[test]
    fn columns_are_aligned() {
        assert_eq!(
            written(2, false),
            "NAME   COUNT  NOTE\n\
             lan        0  fine\n\
             lan   123456  fine\n"
        );
        assert_eq!(written(0, false), "NAME  COUNT  NOTE\n");
        assert_eq!(written(0, true), "\x1b[1mNAME  COUNT  NOTE\n\x1b[0m");
    }

    #[test]
    fn rows_are_not_held_back_for_ever() {
        let columns = [Column::Right("N")];
        let mut table = Table::new(Vec::new(), false, columns);
        for row in 0..MEASURED_ROWS {
            assert!(table.out.is_empty());
            table.row([row.to_string()]).expect("a Vec takes all");
        }
        assert_eq!(table.out.split(|&byte| byte == b'\n').count(), MEASURED_ROWS + 2);
        table.row([u64::MAX.to_string()]).expect("a Vec takes all");
        assert!(table.out.ends_with(b"\n18446744073709551615\n") && table.first.is_empty());
    }
}
