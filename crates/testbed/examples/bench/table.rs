//! The table that is printed: one row for each thing and peer, as Markdown.

use std::time::Duration;

use crate::timing::{Times, short};

const HEADINGS: [&str; 7] = ["what", "ours", "peer", "its", "ratio", "goal", "met"];
const NOTHING: &str = "–";

/// One line.
#[derive(Debug, Default)]
pub struct Row {
    what: String,
    ours: String,
    peer: String,
    its: String,
    ratio: String,
    goal: String,
    met: Option<bool>,
}

/// What a comparison should come to.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// Ours is at most this part of the peer's.
    AtMost(f64),
    /// Ours is at least so many times the peer's.
    AtLeast(f64),
    /// It is shown for information.
    None,
}

impl Goal {
    fn text(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {most}"),
            Self::AtLeast(least) => format!("≥ {least}"),
            Self::None => NOTHING.into(),
        }
    }

    fn is_met(self, ratio: f64) -> Option<bool> {
        match self {
            Self::AtMost(most) => Some(ratio <= most),
            Self::AtLeast(least) => Some(ratio >= least),
            Self::None => None,
        }
    }
}

/// Everything that was measured.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Row>,
    /// Why something could not be measured; shown below the table.
    causes: Vec<String>,
}

impl Table {
    /// Our times beside those of a peer, by their medians.
    pub fn times(
        &mut self,
        what: &str,
        ours: &anyhow::Result<Times>,
        peer: &str,
        its: &anyhow::Result<Times>,
        goal: Goal,
    ) {
        let seconds = |times: &Times| times.median().as_secs_f64();
        self.compare(what, ours, peer, its, goal, seconds, Times::to_string);
    }

    /// Our numbers beside those of a peer; what could not be measured stands there with its cause.
    #[expect(clippy::too_many_arguments, reason = "the columns of a row")]
    pub fn compare<T>(
        &mut self,
        what: &str,
        ours: &anyhow::Result<T>,
        peer: &str,
        its: &anyhow::Result<T>,
        goal: Goal,
        number: impl Fn(&T) -> f64,
        text: impl Fn(&T) -> String,
    ) {
        let shown = [ours, its].map(|value| self.shown(value, &text));
        let ratio = match (ours, its) {
            (Ok(ours), Ok(its)) => Some(number(ours) / number(its)),
            _ => None,
        };
        let [shown_ours, shown_its] = shown;
        self.rows.push(Row {
            what: what.into(),
            ours: shown_ours,
            peer: peer.into(),
            its: shown_its,
            ratio: ratio.map_or(NOTHING.into(), figures),
            goal: goal.text(),
            // What we could not do is not met; what a peer could not do is not known.
            met: match ratio {
                Some(ratio) => goal.is_met(ratio),
                None => ours.is_err().then_some(false),
            },
        });
    }

    /// A number of ours with a bound of its own.
    pub fn bound<T: PartialOrd>(
        &mut self,
        what: &str,
        ours: &anyhow::Result<T>,
        most: Option<T>,
        text: impl Fn(&T) -> String,
    ) {
        let met = match (ours, &most) {
            (Ok(ours), Some(most)) => Some(ours <= most),
            (Err(_), _) => Some(false),
            _ => None,
        };
        let shown = self.shown(ours, &text);
        self.rows.push(Row {
            what: what.into(),
            ours: shown,
            peer: NOTHING.into(),
            its: NOTHING.into(),
            ratio: NOTHING.into(),
            goal: most.map_or(NOTHING.into(), |most| format!("≤ {}", text(&most))),
            met,
        });
    }

    /// Times of ours with a bound for their median.
    pub fn bound_times(&mut self, what: &str, ours: &anyhow::Result<Times>, most_ms: Option<u64>) {
        let median = ours.as_ref().map(Times::median);
        let median = median.map_err(|error| anyhow::anyhow!("{error:#}"));
        self.bound(what, &median, most_ms.map(Duration::from_millis), |time| {
            short(*time)
        });
        if let (Ok(times), Some(row)) = (ours, self.rows.last_mut()) {
            row.ours = times.to_string();
        }
    }

    /// A value, or a word that leads to the cause below the table.
    fn shown<T>(&mut self, value: &anyhow::Result<T>, text: impl Fn(&T) -> String) -> String {
        match value {
            Ok(value) => text(value),
            Err(error) => {
                let cause = one_line(error);
                let known = self.causes.iter().position(|known| *known == cause);
                let number = known.unwrap_or_else(|| {
                    self.causes.push(cause);
                    self.causes.len() - 1
                });
                format!("**missing** ({})", number + 1)
            }
        }
    }

    /// How many goals of those that could be measured are not met.
    pub fn missed(&self) -> usize {
        self.rows
            .iter()
            .filter(|row| row.met == Some(false))
            .count()
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut lines = vec![HEADINGS.map(str::to_owned)];
        lines.extend(self.rows.iter().map(Row::cells));
        let mut widths = [3; HEADINGS.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = cell.chars().count().max(*width);
            }
        }
        for (number, line) in lines.iter().enumerate() {
            for (width, cell) in widths.iter().zip(line) {
                write!(f, "| {cell:width$} ")?;
            }
            writeln!(f, "|")?;
            if number == 0 {
                for width in widths {
                    write!(f, "|{}", "-".repeat(width + 2))?;
                }
                writeln!(f, "|")?;
            }
        }
        for (number, cause) in (1..).zip(&self.causes) {
            writeln!(f, "\n({number}) {cause}")?;
        }
        Ok(())
    }
}

impl Row {
    fn cells(&self) -> [String; HEADINGS.len()] {
        let met = match self.met {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => NOTHING,
        };
        [
            self.what.clone(),
            self.ours.clone(),
            self.peer.clone(),
            self.its.clone(),
            self.ratio.clone(),
            self.goal.clone(),
            met.into(),
        ]
    }
}

fn figures(ratio: f64) -> String {
    if ratio < 0.1 {
        format!("{ratio:.3}")
    } else {
        format!("{ratio:.2}")
    }
}

fn one_line(error: &anyhow::Error) -> String {
    let text: String = format!("{error:#}")
        .chars()
        .map(|c| if c.is_control() || c == '|' { ' ' } else { c })
        .take(240)
        .collect();
    text.trim().to_owned()
}
