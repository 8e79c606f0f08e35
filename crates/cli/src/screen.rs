//! The three standard streams as the commands see them: results to standard output, everything
//! else to standard error, colours and signs only where a person looks.
//!
//! Never panics on a closed stream: a result that cannot be written is a failure that `main` knows
//! to pass over in silence, a lost remark is no failure at all.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use serde::Serialize;

use crate::exit::Exit;
use crate::failure::Failure;
use crate::guest_text;

/// Where and how to write.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    json: bool,
    quiet: bool,
    stdout: Look,
    stderr: Look,
}

/// How one stream shows text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// Whether a person looks at it.
    pub terminal: bool,
    /// Whether colours and signs beyond ASCII may be used.
    pub fancy: bool,
}

impl Look {
    /// For files, pipes and machines.
    #[cfg(test)]
    pub const PLAIN: Self = Self {
        terminal: false,
        fancy: false,
    };

    fn of(terminal: bool) -> Self {
        // https://no-color.org: any value that is not empty counts.
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|v| v == "dumb");
        Self {
            terminal: terminal && !dumb,
            fancy: terminal && !dumb && !no_color,
        }
    }

    /// The sign in front of what went well.
    pub fn good(self) -> &'static str {
        if self.fancy {
            "\x1b[32m✔\x1b[0m"
        } else {
            "ok  "
        }
    }

    /// The sign in front of what went wrong.
    pub fn bad(self) -> &'static str {
        if self.fancy {
            "\x1b[31m✘\x1b[0m"
        } else {
            "FAIL"
        }
    }

    /// Text that stands back.
    pub fn dim(self, text: &str) -> String {
        if self.fancy {
            format!("\x1b[2m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

impl Screen {
    /// Looks at the streams of this process.
    pub fn new(json: bool, quiet: bool) -> Self {
        Self {
            json,
            quiet,
            stdout: Look::of(io::stdout().is_terminal()),
            stderr: Look::of(io::stderr().is_terminal()),
        }
    }

    /// Whether the result is for a machine.
    pub fn json(&self) -> bool {
        self.json
    }

    /// How standard output shows text.
    pub fn out(&self) -> Look {
        self.stdout
    }

    /// How standard error shows progress; nothing for machines and with `-q`.
    pub fn progress(&self) -> Option<Look> {
        (!self.json && !self.quiet).then_some(self.stderr)
    }

    /// A result: raw bytes to standard output.
    pub fn bytes(&self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(bytes)
            .and_then(|()| out.flush())
            .map_err(Failure::Output)
    }

    /// A result: text to standard output, with a newline at its end.
    pub fn print(&self, text: &str) -> Result<(), Failure> {
        let mut text = text.trim_end_matches('\n').to_owned();
        text.push('\n');
        self.bytes(text.as_bytes())
    }

    /// A result: the one JSON document.
    pub fn document(&self, value: &impl Serialize) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|e| Failure::local(format!("cannot write the result as JSON: {e}")))?;
        self.print(&text)
    }

    /// A result, as JSON or as the text that `shown` makes for people.
    pub fn result<T: Serialize>(
        &self,
        value: &T,
        shown: impl FnOnce(&T) -> String,
    ) -> Result<Exit, Failure> {
        if self.json {
            self.document(value)?;
        } else {
            self.print(&shown(value))?;
        }
        Ok(Exit::OK)
    }

    /// A list, as JSON or as a table; an empty one is a remark, so that no script takes it for data.
    pub fn list<T: Serialize>(
        &self,
        values: &[T],
        none: &str,
        shown: impl FnOnce(&[T]) -> String,
    ) -> Result<Exit, Failure> {
        if self.json {
            self.document(&values)?;
        } else if values.is_empty() {
            self.note(none);
        } else {
            self.print(&shown(values))?;
        }
        Ok(Exit::OK)
    }

    /// A remark on standard error; not for machines, not with `-q`.
    pub fn note(&self, text: &str) {
        if !self.json && !self.quiet {
            warn(text);
        }
    }

    /// What a person must hear whatever the flags are.
    pub fn warn(&self, text: &str) {
        warn(text);
    }

    /// Says why a command failed and what to do next.
    pub fn failure(&self, failure: &Failure, exit: Exit) {
        if failure.is_silent() {
            return;
        }
        if self.json && !matches!(failure, Failure::Output(_)) {
            let _ = self.document(&failure.document(exit));
        }
        let mut text = format!(
            "error: {}",
            indented(&guest_text::lines(&failure.to_string()))
        );
        if let Some(hint) = failure.hint() {
            text.push_str("\n  hint: ");
            text.push_str(&indented(&guest_text::lines(&hint)));
        }
        warn(&text);
    }

    /// Asks whether to go on. Without a terminal only `--yes` is an answer.
    pub fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        if yes {
            return Ok(());
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::usage(
                format!("{question} There is nobody to ask."),
                "add --yes",
            ));
        }
        let mut err = io::stderr().lock();
        let _ = write!(err, "{question} [y/N] ");
        let _ = err.flush();
        let mut answer = String::new();
        // An answer has no business to be longer.
        let mut stdin = io::BufReader::new(io::stdin().lock().take(256));
        io::BufRead::read_line(&mut stdin, &mut answer)
            .map_err(|e| Failure::local(format!("cannot read the answer: {e}")))?;
        if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
            Ok(())
        } else {
            Err(Failure::Local {
                what: "nothing was done".to_owned(),
                hint: None,
            })
        }
    }
}

/// Continuation lines stand below the first.
fn indented(text: &str) -> String {
    text.trim_end().replace('\n', "\n  ")
}

fn warn(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}
