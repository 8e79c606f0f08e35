//! Tables and fact sheets for people. Every cell is escaped here, so no command can forget to.

use comfy_table::{ContentArrangement, Table as Grid};

use crate::guest_text;

/// A table with one line a row and no lines drawn, easy to cut with `awk`.
pub struct Table(Grid);

impl Table {
    /// A table with these column heads.
    pub fn new(heads: &[&str]) -> Self {
        let mut grid = Grid::new();
        grid.load_style(comfy_table::presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(heads.to_vec());
        Self(grid)
    }

    /// Adds a row.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|c| {
            let shown = guest_text::line(&c);
            if shown.is_empty() {
                "-".to_owned()
            } else {
                shown
            }
        }));
    }

    /// The table as text, without blanks at the ends of lines.
    pub fn text(mut self) -> String {
        let last = self.0.column_count().saturating_sub(1);
        for (i, column) in self.0.column_iter_mut().enumerate() {
            column.set_padding((0, if i == last { 0 } else { 2 }));
        }
        trimmed(&self.0.to_string())
    }
}

/// Names and values below each other; values are escaped, empty ones left out.
pub struct Facts(Vec<(&'static str, String)>);

impl Facts {
    /// An empty sheet.
    pub fn new() -> Self {
        Self(Vec::new())
    }

    /// Adds a line.
    #[must_use]
    pub fn fact(mut self, name: &'static str, value: impl ToString) -> Self {
        let value = guest_text::line(&value.to_string());
        if !value.is_empty() {
            self.0.push((name, value));
        }
        self
    }

    /// Adds a line for each value, the name before the first only.
    #[must_use]
    pub fn facts(mut self, name: &'static str, values: impl IntoIterator<Item = String>) -> Self {
        let mut name = name;
        for value in values {
            self.0.push((name, guest_text::line(&value)));
            name = "";
        }
        self
    }

    /// The sheet as text, each line indented by `indent` blanks.
    pub fn text(&self, indent: usize) -> String {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        let lines = self
            .0
            .iter()
            .map(|(name, value)| format!("{:indent$}{name:width$}  {value}", ""));
        trimmed(&lines.collect::<Vec<_>>().join("\n"))
    }
}

fn trimmed(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_escaped_and_columns_line_up() {
        let mut table = Table::new(&["NAME", "CLIENT", "IP"]);
        table.row(["web".into(), "a\x1b[31m\nb".into(), "10.20.0.100".into()]);
        table.row(["日本".into(), String::new(), "10.20.0.7".into()]);
        insta::assert_snapshot!(table.text(), @r"
        NAME  CLIENT        IP
        web   a\x1b[31m\nb  10.20.0.100
        日本  -             10.20.0.7
        ");
    }

    #[test]
    fn facts_line_up() {
        let text = Facts::new()
            .fact("name", "web")
            .fact("nothing", "")
            .facts("problems", ["one".to_owned(), "two\n".to_owned()])
            .text(2);
        insta::assert_snapshot!(text, @r"
          name      web
          problems  one
                    two\n
        ");
    }
}
