//! Shows the steps of an operation: a line for each that ended, and on a terminal one line that
//! lives for the step that runs.
//!
//! Writes to what it is given and never fails: progress that cannot be shown is not a failure.

use std::io::Write;
use std::time::{Duration, Instant};

use api::operation::{OperationEvent, StepState};

use crate::guest_text;
use crate::screen::Look;

const FRAMES: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
const PLAIN_FRAMES: [&str; 4] = ["-", "\\", "|", "/"];
const STEP_WIDTH: usize = 10;
const MESSAGE_WIDTH: usize = 36;

/// The progress of one operation.
pub struct Progress<W> {
    to: W,
    look: Look,
    width: usize,
    running: Option<Running>,
    drawn: bool,
    frame: usize,
}

struct Running {
    step: String,
    message: String,
    since: Instant,
}

impl<W: Write> Progress<W> {
    /// Progress written to `to`, whose terminal, if it is one, has `width` columns.
    pub fn new(to: W, look: Look, width: usize) -> Self {
        Self {
            to,
            look,
            width,
            running: None,
            drawn: false,
            frame: 0,
        }
    }

    /// Something happened.
    pub fn event(&mut self, event: &OperationEvent) {
        let step = guest_text::line(&event.step);
        let message = guest_text::line(&event.message);
        match event.state {
            StepState::Started => {
                self.running = Some(Running {
                    step,
                    message,
                    since: Instant::now(),
                });
                self.draw();
            }
            StepState::Progress => {
                match &mut self.running {
                    Some(running) if running.step == step => running.message = message,
                    running => {
                        *running = Some(Running {
                            step,
                            message,
                            since: Instant::now(),
                        });
                    }
                }
                self.draw();
            }
            StepState::Done | StepState::Failed => {
                if self.running.as_ref().is_some_and(|r| r.step == step) {
                    self.running = None;
                }
                let sign = if event.state == StepState::Done {
                    self.look.good()
                } else {
                    self.look.bad()
                };
                let took = event.elapsed_ms.map(Duration::from_millis).map(elapsed);
                let took = self.look.dim(&took.unwrap_or_default());
                let line = format!("{sign} {step:STEP_WIDTH$} {message:MESSAGE_WIDTH$}  {took}");
                self.line(&line);
            }
        }
    }

    /// Time passed.
    pub fn tick(&mut self) {
        self.frame = self.frame.wrapping_add(1);
        self.draw();
    }

    /// A remark between the steps.
    pub fn remark(&mut self, text: &str) {
        let text = self.look.dim(&guest_text::line(text));
        self.line(&text);
    }

    /// Nothing more comes: wipes the living line.
    pub fn end(&mut self) {
        self.running = None;
        self.wipe();
        let _ = self.to.flush();
    }

    fn line(&mut self, text: &str) {
        self.wipe();
        let _ = writeln!(self.to, "{}", text.trim_end());
        self.draw();
    }

    fn wipe(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = write!(self.to, "\r\x1b[2K");
        }
    }

    fn draw(&mut self) {
        let Some(running) = self.running.as_ref().filter(|_| self.look.terminal) else {
            return;
        };
        let frames: &[&str] = if self.look.fancy {
            &FRAMES
        } else {
            &PLAIN_FRAMES
        };
        let frame = frames
            .get(self.frame.checked_rem(frames.len()).unwrap_or(0))
            .copied()
            .unwrap_or_default();
        let Running {
            step,
            message,
            since,
        } = running;
        let took = elapsed(since.elapsed());
        let line = format!("{frame} {step:STEP_WIDTH$} {message:MESSAGE_WIDTH$}  {took}");
        // A line that wraps could not be wiped.
        let line: String = line.chars().take(self.width.saturating_sub(1)).collect();
        let _ = write!(self.to, "\r\x1b[2K{line}");
        let _ = self.to.flush();
        self.drawn = true;
    }
}

/// A duration for people: `0.04 s`, `12.3 s`, `2 min 05 s`.
pub fn elapsed(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 9.995 {
        format!("{seconds:.2} s")
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else {
        let whole = time.as_secs_f64().round();
        format!("{:.0} min {:02.0} s", (whole / 60.0).floor(), whole % 60.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(step: &str, state: StepState, message: &str, ms: Option<u64>) -> OperationEvent {
        OperationEvent {
            seq: 1,
            time: String::new(),
            step: step.to_owned(),
            state,
            message: message.to_owned(),
            elapsed_ms: ms,
        }
    }

    fn shown(look: Look) -> String {
        let mut text = Vec::new();
        let mut progress = Progress::new(&mut text, look, 40);
        progress.event(&event("bridge", StepState::Started, "proximity-lan", None));
        progress.tick();
        progress.event(&event(
            "bridge",
            StepState::Done,
            "proximity-lan 10.20.0.0/24",
            Some(40),
        ));
        progress.event(&event("ready", StepState::Started, "waiting", None));
        progress.remark("the connection was lost");
        progress.event(&event(
            "ready",
            StepState::Failed,
            "no\x1b[2J answer",
            Some(61_000),
        ));
        progress.end();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_file_gets_a_line_for_each_step_that_ended() {
        insta::assert_snapshot!(shown(Look::PLAIN), @r"
        ok   bridge     proximity-lan 10.20.0.0/24            0.04 s
        the connection was lost
        FAIL ready      no\x1b[2J answer                      1 min 01 s
        ");
    }

    #[test]
    fn a_terminal_gets_a_living_line_that_is_wiped() {
        let look = Look {
            terminal: true,
            fancy: false,
        };
        let text = shown(look).replace('\r', "<").replace("\x1b[2K", ">");
        insta::assert_snapshot!(text, @r"
        <>- bridge     proximity-lan             <>\ bridge     proximity-lan             <>ok   bridge     proximity-lan 10.20.0.0/24            0.04 s
        <>\ ready      waiting                   <>the connection was lost
        <>\ ready      waiting                   <>FAIL ready      no\x1b[2J answer                      1 min 01 s
        ");
    }

    #[test]
    fn durations() {
        let check = |ms: u64, text: &str| assert_eq!(elapsed(Duration::from_millis(ms)), text);
        check(0, "0.00 s");
        check(40, "0.04 s");
        check(9_994, "9.99 s");
        check(12_340, "12.3 s");
        check(59_949, "59.9 s");
        check(59_990, "1 min 00 s");
        check(125_000, "2 min 05 s");
    }
}
