//! What tasks print and write alike: tables and JSON.

use std::fs::File;
use std::io::{self, Write as _};

use comfy_table::{ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;

/// A table's width where there is no terminal to ask.
const DEFAULT_WIDTH: u16 = 190;

/// A terminal narrower than this has no room for a table of many columns.
const WIDE: u16 = 150;
/// Between what stands in a line.
const SEPARATOR: &str = ", ";

/// A table without borders, a line below its heads.
pub(crate) fn table() -> Table {
    let mut table = Table::new();
    table
        .load_preset(presets::NOTHING)
        .set_style(TableComponent::HeaderLines, '─')
        .set_style(TableComponent::MiddleHeaderIntersections, '─')
        .set_content_arrangement(ContentArrangement::Dynamic);
    if !table.is_tty() {
        table.set_width(DEFAULT_WIDTH);
    }
    table
}

/// Rows as text for the terminal: a table, or, where its cells would be a few letters wide, each row in lines of its own.
pub(crate) fn rows<const N: usize>(heads: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let mut table = table();
    if let Some(width) = table.width().filter(|width| *width < WIDE) {
        return rows.map(|row| in_lines(&heads, &row, width.into())).collect::<Vec<_>>().join("\n");
    }
    table.set_header(heads).add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, 1));
    }
    table.to_string()
}

/// A row as `head: value` after `head: value`, broken between them where `width` ends. What has no head stands by itself.
fn in_lines(heads: &[&str], row: &[String], width: usize) -> String {
    let (mut lines, mut line) = (Vec::new(), String::new());
    for (head, value) in heads.iter().zip(row) {
        let part = if head.is_empty() { value.clone() } else { format!("{head}: {value}") };
        if line.is_empty() {
            line = part;
        } else if line.chars().count() + SEPARATOR.len() + part.chars().count() <= width {
            line = line + SEPARATOR + &part;
        } else {
            lines.push(std::mem::replace(&mut line, format!("    {part}")));
        }
    }
    lines.push(line);
    lines.join("\n")
}

/// Writes a report as JSON for people and programs.
pub(crate) fn write_json(report: &impl Serialize, mut file: File) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut file, report)?;
    writeln!(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_broken_between_its_values_where_the_terminal_ends() {
        let row = ["ok", "shop/cart", "shop/payments", "TLSv1.3"].map(str::to_owned);
        let lines = in_lines(&["", "source", "destination", "TLS"], &row, 40);
        assert_eq!(lines, "ok, source: shop/cart\n    destination: shop/payments\n    TLS: TLSv1.3");
        let wide = in_lines(&["", "source", "destination", "TLS"], &row, 80);
        assert_eq!(wide, "ok, source: shop/cart, destination: shop/payments, TLS: TLSv1.3");
    }
}
