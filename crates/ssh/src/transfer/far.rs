//! The far side of a transfer: constant shell scripts, which get paths and numbers as arguments.

use std::time::Duration;

use tokio::sync::mpsc;

use super::QUEUE;
use crate::command::{Chunk, Command, Finished, Input, Output};
use crate::connection::Connection;
use crate::error::Error;
use crate::hosts::Vm;
use crate::running::{Begun, Limit};

/// `sum FILE` prints a line with the SHA-256 of what it reads from the file, or nothing.
pub(super) const SUM: &str = "sum() { \
    if command -v sha256sum >/dev/null 2>&1; then sha256sum <\"$1\"; \
    elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <\"$1\"; \
    elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 <\"$1\"; fi; }; \
    can_sum() { command -v sha256sum >/dev/null 2>&1 || command -v shasum >/dev/null 2>&1 || \
    command -v openssl >/dev/null 2>&1; }; ";

/// How much of standard error is kept of a script whose answer is gathered.
const MAX_SAID_BYTES: usize = 4096;

/// A host that is logged in to. Bulk data has this connection for itself, so that it stalls nobody.
pub(crate) struct Far<'a> {
    pub vm: &'a Vm,
    pub connection: Connection,
    /// Whether a host that makes no checksum gets and gives nothing.
    pub must_prove: bool,
}

impl Far<'_> {
    /// Runs a script of ours, which may use [`SUM`]. One that gets a stream does nothing but take it to its end.
    pub async fn script(
        &self,
        script: &'static str,
        arguments: &[impl AsRef<[u8]>],
        input: Input,
        output: Output,
        limit: Limit,
    ) -> Result<Finished, Error> {
        let id = self.vm.id.as_str();
        let mut argv = vec![
            b"/bin/sh".to_vec(),
            b"-c".to_vec(),
            format!("{SUM}{script}").into_bytes(),
            b"proximity".to_vec(),
        ];
        argv.extend(arguments.iter().map(|argument| argument.as_ref().to_vec()));
        let invalid = |reason: String| Error::InvalidCommand {
            vm: id.to_owned(),
            reason,
        };
        let command = Command::argv(argv).map_err(|e| invalid(e.to_string()))?;
        // Messages are compared with nothing, but people read them.
        let command = command
            .env("LC_ALL", "C")
            .map_err(|e| invalid(e.to_string()))?;
        let channel = self.connection.channel().await?;
        let login = self.vm.user.as_str();
        let begun = match &input {
            Input::Stream(_) => Begun::fed(id, login, channel, &command).await?,
            Input::None | Input::Bytes(_) => Begun::on(id, login, channel, &command, None).await?,
        };
        let finished = begun.run(&command, input, output, limit).await?;
        if finished.timed_out {
            return Err(Error::OutcomeUnknown {
                vm: id.to_owned(),
                reason: match limit {
                    Limit::Idle(idle) => format!("nothing moved for {} s", idle.as_secs()),
                    Limit::Total(total) => {
                        format!("the host did not answer within {} s", total.as_secs())
                    }
                },
            });
        }
        Ok(finished)
    }

    /// A script that answers soon, with what it printed.
    pub async fn ask(
        &self,
        script: &'static str,
        arguments: &[impl AsRef<[u8]>],
        limit: Duration,
    ) -> Result<Answer, Error> {
        let limit = Limit::Total(limit);
        let finished = self
            .script(script, arguments, Input::None, Output::Collect, limit)
            .await?;
        Ok(Answer {
            lines: String::from_utf8_lossy(&finished.stdout)
                .lines()
                .map(str::to_owned)
                .collect(),
            complaint: complaint(&finished),
        })
    }

    /// A script whose answer may be long: all of its standard output, at most `max` bytes. It may take `limit` as long
    /// as nothing comes.
    pub(super) async fn gather(
        &self,
        script: &'static str,
        arguments: &[impl AsRef<[u8]>],
        input: Input,
        max: usize,
        limit: Duration,
    ) -> Result<Gathered, Error> {
        let (to, mut from) = mpsc::channel(QUEUE);
        let gathering = async move {
            let (mut out, mut said) = (Vec::new(), Vec::new());
            while let Some(chunk) = from.recv().await {
                match chunk {
                    Chunk::Stdout(data) => out.extend_from_slice(&data),
                    Chunk::Stderr(data) => {
                        said.extend(data.iter().take(MAX_SAID_BYTES.saturating_sub(said.len())));
                    }
                }
                if out.len() > max {
                    // Nobody listens from here on, which ends the script.
                    return None;
                }
            }
            Some((out, said))
        };
        let running = self.script(
            script,
            arguments,
            input,
            Output::Stream(to),
            Limit::Idle(limit),
        );
        let (gathered, finished) = tokio::join!(gathering, running);
        let Some((out, said)) = gathered else {
            let reason = format!("the host answers with more than {max} bytes");
            return Err(self.failed("its answer", reason, None));
        };
        Ok(Gathered {
            exit_code: finished?.exit_code,
            out,
            complaint: first_line(&said),
        })
    }

    /// A failure that leaves the target as it was.
    pub fn failed(&self, path: &str, reason: impl Into<String>, hint: Option<&str>) -> Error {
        Error::Transfer {
            vm: self.vm.id.to_string(),
            path: path.to_owned(),
            reason: reason.into(),
            hint: hint.map(str::to_owned),
        }
    }

    /// For hosts without any program that makes a checksum.
    pub fn no_checksum(&self, path: &str) -> Error {
        self.failed(
            path,
            "the host has no sha256sum, shasum or openssl, so nothing could be proved; nothing was transferred",
            Some("install coreutils there"),
        )
    }
}

/// All that a script printed.
pub(super) struct Gathered {
    pub out: Vec<u8>,
    pub exit_code: i32,
    /// The first of standard error, for people; may be empty.
    pub complaint: String,
}

/// The first line that says something; the causes come before the summary.
pub(super) fn first_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().find(|line| !line.trim().is_empty());
    let line = line.unwrap_or_default().chars();
    line.filter(|c| !c.is_control()).take(300).collect()
}

/// What a script printed.
pub(crate) struct Answer {
    pub lines: Vec<String>,
    /// The last of standard error, for people.
    pub complaint: String,
}

impl Answer {
    /// The rest of the line that begins with this word.
    pub fn get(&self, word: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| {
            let rest = line.strip_prefix(word)?;
            (rest.is_empty() || rest.starts_with(' ')).then(|| rest.trim())
        })
    }

    /// The digest in the line that begins with this word: its one run of 64 hexadecimal digits.
    pub fn sha256(&self, word: &str) -> Option<&str> {
        let is_digest =
            |text: &&str| text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit());
        self.get(word)?.split_ascii_whitespace().find(is_digest)
    }
}

/// The last line that a script wrote on standard error.
pub(crate) fn complaint(finished: &Finished) -> String {
    let text = String::from_utf8_lossy(&finished.stderr);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    let line = line.map(|line| line.chars().filter(|c| !c.is_control()).take(300).collect());
    line.unwrap_or_else(|| format!("exit code {}", finished.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_of_every_program_are_found() {
        let digest = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        for line in [
            format!("SUM {digest}  -"),
            format!("SUM SHA2-256(stdin)= {digest}"),
            format!("SUM (stdin)= {digest}"),
        ] {
            let answer = Answer {
                lines: vec![line],
                complaint: String::new(),
            };
            assert_eq!(answer.sha256("SUM"), Some(digest));
        }
        let answer = Answer {
            lines: vec!["SUM ".into(), "SUMMER x".into()],
            complaint: String::new(),
        };
        assert_eq!(answer.sha256("SUM"), None);
        assert_eq!(answer.get("SUMM"), None);
    }
}
