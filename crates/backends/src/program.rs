//! Runs one program of the node: argv only, cleared environment, bounded output, a deadline. Knows
//! nothing of what the programs are for.

use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use engine::ports::PortError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// What a program of ours may print before the rest is dropped.
const OUTPUT_CAP: usize = 16 << 20;

/// Where programs are looked for.
const SEARCHED: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The whole path of a program of the node.
pub(crate) fn found(program: &Path) -> Option<PathBuf> {
    if program.is_absolute() {
        return None;
    }
    let paths = SEARCHED.split(':').map(|dir| Path::new(dir).join(program));
    paths.into_iter().find(|path| path.exists())
}

/// A program to run.
pub(crate) struct Program {
    what: String,
    command: Command,
    stdin: Vec<u8>,
    deadline: Duration,
}

/// What it printed; it ended with 0.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) stdout: Vec<u8>,
}

/// How it ended, whatever the code.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
}

impl Program {
    /// `what` names the operation in errors, like "start guest i-…".
    pub(crate) fn new(what: impl Into<String>, program: impl AsRef<std::ffi::OsStr>) -> Self {
        // With its whole path, since a program that has to be looked for is started by a copy of this process.
        let path = Path::new(program.as_ref());
        let found = found(path);
        let mut command = Command::new(found.as_deref().unwrap_or(path));
        command
            .env_clear()
            .env("PATH", SEARCHED)
            .env("LC_ALL", "C.UTF-8")
            .env("HOME", "/root")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Self {
            what: what.into(),
            command,
            stdin: Vec::new(),
            deadline: Duration::from_secs(60),
        }
    }

    pub(crate) fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub(crate) fn args<S: AsRef<std::ffi::OsStr>>(
        mut self,
        args: impl IntoIterator<Item = S>,
    ) -> Self {
        self.command.args(args);
        self
    }

    pub(crate) fn env(mut self, key: &str, value: &Path) -> Self {
        self.command.env(key, value);
        self
    }

    pub(crate) fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.stdin = bytes.into();
        self
    }

    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it; anything but exit code 0 is an error with the last lines of what it wrote to stderr.
    pub(crate) async fn run(self) -> Result<Printed, PortError> {
        let what = self.what.clone();
        let ended = self.output().await?;
        if ended.status.success() {
            return Ok(Printed {
                stdout: ended.stdout,
            });
        }
        let said = tail(&ended.stderr).or_else(|| tail(&ended.stdout));
        Err(PortError::new(
            what,
            match said {
                Some(said) => format!("{said} ({})", ended.status),
                None => ended.status.to_string(),
            },
        ))
    }

    /// Runs it to its end, whatever the code.
    pub(crate) async fn output(mut self) -> Result<Ended, PortError> {
        let program = self
            .command
            .as_std()
            .get_program()
            .to_string_lossy()
            .into_owned();
        let mut child = self.command.spawn().map_err(|e| {
            let error = PortError::new(&self.what, format!("can't run {program}: {e}"));
            if e.kind() == std::io::ErrorKind::NotFound {
                error.hint("see what is missing and how to get it: proximity doctor")
            } else {
                error
            }
        })?;
        let (mut stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let input = std::mem::take(&mut self.stdin);
        let feed = async move {
            if let Some(pipe) = &mut stdin {
                // A program that does not read its input to the end is not an error of ours.
                let _ = pipe.write_all(&input).await;
            }
            drop(stdin);
        };
        let work = async {
            let ((), out, err, status) =
                tokio::join!(feed, read_capped(stdout), read_capped(stderr), child.wait());
            status.map(|status| Ended {
                status,
                stdout: out,
                stderr: err,
            })
        };
        match tokio::time::timeout(self.deadline, work).await {
            Ok(ended) => ended
                .map_err(|e| PortError::new(self.what, format!("can't wait for {program}: {e}"))),
            // `kill_on_drop` ends it.
            Err(_) => Err(PortError::new(
                self.what,
                format!("{program} did not end within {} s", self.deadline.as_secs()),
            )),
        }
    }
}

/// Reads to the end, keeps the first [`OUTPUT_CAP`] bytes and drops the rest so that the writer never blocks.
async fn read_capped(pipe: Option<impl AsyncRead + Unpin>) -> Vec<u8> {
    let mut kept = Vec::new();
    let Some(mut pipe) = pipe else { return kept };
    let mut buffer = vec![0u8; 64 << 10];
    while let Ok(n @ 1..) = pipe.read(&mut buffer).await {
        let room = OUTPUT_CAP.saturating_sub(kept.len());
        kept.extend(buffer.iter().take(n.min(room)));
    }
    kept
}

/// The last three lines, on one line, without control characters.
fn tail(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    let lines: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let last = lines.get(lines.len().saturating_sub(3)..)?;
    let joined: String = last
        .join("; ")
        .chars()
        .filter(|c| !c.is_control())
        .take(600)
        .collect();
    (!joined.is_empty()).then_some(joined)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn codes_output_and_deadlines() {
        let cat = Program::new("copy", "cat")
            .stdin(vec![7u8; 1 << 20])
            .run()
            .await
            .unwrap();
        assert_eq!(cat.stdout.len(), 1 << 20);
        let bad = Program::new("look", "ls")
            .arg("/does/not/exist")
            .run()
            .await
            .unwrap_err();
        assert!(
            bad.to_string().starts_with("look: ") && bad.to_string().contains("No such file"),
            "{bad}"
        );
        let missing = Program::new("try", "no-such-program")
            .run()
            .await
            .unwrap_err();
        assert!(missing.hint.unwrap().contains("doctor"));
        let slow = Program::new("wait", "sleep")
            .arg("60")
            .deadline(Duration::from_millis(50));
        assert!(
            slow.run()
                .await
                .unwrap_err()
                .to_string()
                .contains("did not end")
        );
        let env = Program::new("env", "env").run().await.unwrap();
        assert_eq!(String::from_utf8(env.stdout).unwrap().lines().count(), 3);
    }
}
