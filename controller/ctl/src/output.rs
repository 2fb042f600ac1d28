//! Forms of output: tables for people, JSON and YAML for programs.

use crate::error::{Result, io, lift_display};
use clap::ValueEnum;
use serde::Serialize;
use std::io::Write as _;

/// How data is shown. `json` is stable; the others may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// One JSON value.
    Json,
    /// The same in YAML.
    Yaml,
    /// Names alone, one per line.
    Name,
}

/// Something that is listed.
pub(crate) trait Row: Serialize {
    /// Name of a list of these in JSON.
    const LIST: &'static str;
    /// Columns; those from `wide` on are shown by `-o wide` alone.
    const COLUMNS: &'static [&'static str];
    /// Number of columns of the narrow table.
    const NARROW: usize;
    /// What identifies it.
    fn name(&self) -> String;
    /// One text per column.
    fn cells(&self) -> Vec<String>;
}

#[derive(Serialize)]
struct List<'a, R> {
    kind: &'static str,
    items: &'a [R],
}

/// Rows in the asked form, ready to be printed.
pub(crate) fn rows<R: Row>(rows: &[R], format: Format) -> Result<String> {
    match format {
        Format::Table => Ok(table(R::COLUMNS, R::NARROW, rows.iter().map(Row::cells))),
        Format::Wide => Ok(table(R::COLUMNS, R::COLUMNS.len(), rows.iter().map(Row::cells))),
        Format::Name => Ok(rows.iter().map(|row| row.name() + "\n").collect()),
        Format::Json | Format::Yaml => value(
            &List {
                kind: R::LIST,
                items: rows,
            },
            format,
        ),
    }
}

/// A value as JSON or, for every other form, as YAML.
pub(crate) fn value<T: Serialize>(value: &T, format: Format) -> Result<String> {
    match format {
        Format::Json => serde_json::to_string_pretty(value)
            .map(|text| text + "\n")
            .map_err(lift_display),
        _ => serde_norway::to_string(value).map_err(lift_display),
    }
}

/// Prints data; a reader that closed the pipe early has seen enough.
pub(crate) fn print(text: &str) -> Result<()> {
    print_bytes(text.as_bytes())
}

/// Prints raw data.
pub(crate) fn print_bytes(bytes: &[u8]) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(io("write to standard output")),
    }
}

fn table(columns: &[&str], shown: usize, rows: impl Iterator<Item = Vec<String>>) -> String {
    let header = columns.iter().map(|c| (*c).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(header).chain(rows).collect();
    let width = |column: usize| {
        lines
            .iter()
            .filter_map(|line| line.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..shown).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            // What an agent sent may hold anything; a terminal must not obey it.
            let clean: String = cell
                .chars()
                .map(|c| if c.is_control() { '?' } else { c })
                .collect();
            out.push_str(&format!("{clean:<width$}  "));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

/// Bytes as people read them, in binary units.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: &[&str] = &["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A catalog time as text, `None` for never.
pub(crate) fn time(millis: u64) -> Option<String> {
    let millis = i64::try_from(millis).ok().filter(|millis| *millis != 0)?;
    jiff::Timestamp::from_millisecond(millis)
        .ok()
        .map(|time| format!("{time:.3}"))
}

/// A time for a table: to the second, `-` for never.
pub(crate) fn short_time(millis: u64) -> String {
    let millis = i64::try_from(millis).ok().filter(|millis| *millis != 0);
    millis
        .and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok())
        .map_or_else(|| "-".into(), |time| format!("{time:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Thing {
        name: String,
        size: u64,
        note: String,
    }

    impl Row for Thing {
        const LIST: &'static str = "ThingList";
        const COLUMNS: &'static [&'static str] = &["NAME", "SIZE", "NOTE"];
        const NARROW: usize = 2;
        fn name(&self) -> String {
            self.name.clone()
        }
        fn cells(&self) -> Vec<String> {
            vec![self.name.clone(), bytes(self.size), self.note.clone()]
        }
    }

    fn things() -> Vec<Thing> {
        vec![
            Thing {
                name: "a".into(),
                size: 5,
                note: "plain".into(),
            },
            Thing {
                name: "longer".into(),
                size: 3 << 20,
                note: "evil\x1b[2J".into(),
            },
        ]
    }

    #[test]
    fn each_form_shows_what_it_should() {
        let things = things();
        assert_eq!(
            rows(&things, Format::Table).unwrap(),
            "NAME    SIZE\na       5 B\nlonger  3.0 MiB\n"
        );
        let wide = rows(&things, Format::Wide).unwrap();
        assert!(wide.contains("plain") && !wide.contains('\x1b'), "{wide}");
        assert_eq!(rows(&things, Format::Name).unwrap(), "a\nlonger\n");
        let json: serde_json::Value = serde_json::from_str(&rows(&things, Format::Json).unwrap()).unwrap();
        assert_eq!(json["kind"], "ThingList");
        assert_eq!(json["items"][1]["size"], 3 << 20);
        assert!(
            rows(&things, Format::Yaml)
                .unwrap()
                .starts_with("kind: ThingList\n")
        );
    }

    #[test]
    fn numbers_and_times_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16384.0 PiB");
        assert_eq!(time(0), None);
        assert_eq!(time(1_732_127_400_123).unwrap(), "2024-11-20T18:30:00.123Z");
        assert_eq!(short_time(1_732_127_400_123), "2024-11-20T18:30:00Z");
        assert_eq!(short_time(u64::MAX), "-");
    }
}
