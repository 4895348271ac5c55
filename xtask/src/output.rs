//! What tasks print and write alike: tables and JSON.

use std::fs::File;
use std::io::{self, Write as _};

use comfy_table::{ContentArrangement, Table, TableComponent, presets};
use serde::Serialize;

/// A table's width where there is no terminal to ask.
const DEFAULT_WIDTH: u16 = 190;

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

/// Writes a report as JSON for people and programs.
pub(crate) fn write_json(report: &impl Serialize, mut file: File) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut file, report)?;
    writeln!(file)
}
