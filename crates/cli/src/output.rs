//! How results look: sizes and counts for people, columns, colours, and text made safe to show.

use std::fmt::Write as _;
use std::io::{self, Write};

use anyhow::{Context, Result};
use serde::Serialize;

/// A style of shown text.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Style {
    /// Headings and names.
    Bold,
    /// What matters less.
    Dim,
    /// What is good.
    Green,
    /// What went wrong.
    Red,
}

/// `text` in a style, if colours are wanted.
pub(crate) fn styled(text: &str, style: Style, colours: bool) -> String {
    let code = match style {
        Style::Bold => 1,
        Style::Dim => 2,
        Style::Green => 32,
        Style::Red => 31,
    };
    if colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// Bytes for people, in the decimal units disks are sold in.
pub(crate) fn size(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB", "EB"])
}

/// A count for people: 46.7 B parameters.
pub(crate) fn count(n: u64) -> String {
    scaled(n, &["", "k", "M", "B", "T"])
}

/// Arithmetic operations for people.
pub(crate) fn operations(n: u64) -> String {
    scaled(n, &["op", "kop", "Mop", "Gop", "Top", "Pop"])
}

/// A number with three digits and the largest unit, of steps of a thousand, that leaves at least 1.
fn scaled(n: u64, units: &[&str]) -> String {
    let mut value = n as f64;
    let mut unit = 0;
    // 999.5 would round up to four digits.
    while value >= 999.5 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    let digits = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {}", units[unit]).trim_end().to_owned()
}

/// A rate, or a time, with two or three digits.
pub(crate) fn rate(value: f64) -> String {
    match value {
        v if v < 0.995 => format!("{v:.2}"),
        v if v < 99.5 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// Bytes as lower case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Names, in bold, and values below each other. Values may come from a file and are made safe.
pub(crate) fn pairs(rows: &[(&str, String)], colours: bool) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().fold(String::new(), |mut text, (name, value)| {
        let name = styled(&format!("{name:<width$}"), Style::Bold, colours);
        let _ = writeln!(text, "{name}  {}", harmless(value));
        text
    })
}

/// Rows as columns; the first row is the heading. `right` names the columns of numbers.
pub(crate) fn table(rows: &[Vec<String>], right: &[usize], colours: bool) -> String {
    let width = |row: &[String], column: usize| row.get(column).map_or(0, |c| c.chars().count());
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| width(row, column)).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for (i, row) in rows.iter().enumerate() {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let wide = widths[column];
            let _ = if right.contains(&column) {
                write!(line, "{cell:>wide$}  ")
            } else {
                write!(line, "{cell:<wide$}  ")
            };
        }
        let line = line.trim_end();
        let shown = if i == 0 { styled(line, Style::Bold, colours) } else { line.to_owned() };
        let _ = writeln!(text, "{shown}");
    }
    text
}

/// Writes to stdout in one go.
///
/// # Errors
/// If stdout does not take it; a closed pipe is recognised in `main` and is no failure.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write to stdout")
}

/// Writes a value to stdout as indented JSON.
///
/// # Errors
/// As [`print()`].
pub(crate) fn print_json(value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    text.push('\n');
    print(&text)
}

/// Writes a line to stderr; that nobody may be listening there is no failure.
pub(crate) fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether a model's text may contain `c` on its way to a terminal.
///
/// Escape sequences begin with a control character, of the C0 or C1 set; without those their rest
/// is harmless text. Tab and line feed stay. The marks that reorder text go too: with them what
/// is shown is not what would be copied.
pub(crate) fn is_harmless(c: char) -> bool {
    match c {
        '\n' | '\t' => true,
        '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => false,
        c => !c.is_control(),
    }
}

/// `text` without what could steer a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().filter(|&c| is_harmless(c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits() {
        let shown: Vec<String> =
            [0, 999, 1000, 9_994, 9_996, 98_362_432, 999_600_000, 18_600_000_000, u64::MAX]
                .map(size)
                .to_vec();
        let wanted =
            ["0 B", "999 B", "1.00 kB", "9.99 kB", "10.0 kB", "98.4 MB", "1.00 GB", "18.6 GB"];
        assert_eq!(shown[..8], wanted);
        assert_eq!(count(46_702_792_704), "46.7 B");
        assert_eq!(count(7), "7");
    }

    #[test]
    fn escapes_lose_their_power_but_text_stays() {
        let hostile = "a\x1b[31mb\x1b]0;title\x07c\u{9b}2Jd\re\u{202e}f\0\tg\n";
        assert_eq!(harmless(hostile), "a[31mb]0;titlec2Jdef\tg\n");
        assert_eq!(harmless("Grüße, 你好 👩‍🚀"), "Grüße, 你好 👩‍🚀");
    }
}
