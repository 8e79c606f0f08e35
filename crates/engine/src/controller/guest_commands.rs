//! Commands in guests: checked as a whole, sent down one channel, their outcome told once. A command
//! is never tried again: when its end is not known, that is what the caller hears.

use std::time::Duration;

use api::exec::{Encoding, ExecRequest, ExecResult, decode, encode};
use api::session::SessionStart;

use super::Controller;
use super::ways::{FoundGuest, no_channel};
use crate::error::Error;
use crate::instance::InstanceRecord;
use crate::ports::{
    ChannelError, CommandEnd, CommandOutcome, Duplex, FileDownload, FileRequest, FileUpload,
    FileWritten, GuestCommand, Session,
};
use crate::zone::ZoneRecord;

/// Deadline of a command when none is given.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
/// The longest deadline.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

impl Controller {
    /// Runs a command in an instance, or in a zone's appliance by its name.
    pub async fn exec(&self, name: &str, request: &ExecRequest) -> Result<ExecResult, Error> {
        self.exec_in(None, name, request).await
    }

    /// The same, for a guest that may have been found already.
    pub async fn exec_in(
        &self,
        found: Option<FoundGuest>,
        name: &str,
        request: &ExecRequest,
    ) -> Result<ExecResult, Error> {
        let command = check_command(request)?;
        let asked = request.channel.as_deref();
        let way = self.way_to_found(found, name, asked).await?;
        let mut last = None;
        for channel in &way.channels {
            match channel.run(&way.target, command.clone()).await {
                Ok(outcome) => return Ok(exec_result(outcome, channel.name())),
                // Only what certainly did not reach the guest may go down another channel.
                Err(e @ ChannelError::Unreachable(_)) => last = Some(e),
                Err(e) => return Err(e.into()),
            }
        }
        Err(last.unwrap_or_else(no_channel).into())
    }

    /// Starts a command with its streams open; returns the channel's name with it.
    pub async fn open_session(
        &self,
        name: &str,
        start: &SessionStart,
    ) -> Result<(Session, &'static str), Error> {
        let mut command = check_command(&start.exec)?;
        if start.exec.timeout_ms.is_none() {
            command.timeout = MAX_TIMEOUT;
        }
        if start.tty.is_some_and(|s| s.rows == 0 || s.cols == 0) {
            return Err(Error::BadRequest {
                what: "a terminal has at least one line and one column".into(),
                hint: r#""tty":{"rows":24,"cols":80}"#.into(),
            });
        }
        let way = self.way_to(name, start.exec.channel.as_deref()).await?;
        let mut last = None;
        for channel in &way.channels {
            match channel.open(&way.target, command.clone(), start.tty).await {
                Ok(session) => return Ok((session, channel.name())),
                Err(e @ ChannelError::Unreachable(_)) => last = Some(e),
                Err(e) => return Err(e.into()),
            }
        }
        Err(last.unwrap_or_else(no_channel).into())
    }

    /// Reads a file of a guest, or the rest of it from an offset; on a socket where the caller can take one
    /// and there is one to be had.
    pub async fn read_file(
        &self,
        name: &str,
        request: &FileRequest,
        offset: u64,
        socket: bool,
    ) -> Result<FileDownload, Error> {
        check_file(request)?;
        let (channel, target) = self.best_way(name).await?;
        Ok(channel.read_file(&target, request, offset, socket).await?)
    }

    /// Replaces a file of a guest in one step, or changes nothing.
    pub async fn write_file(
        &self,
        name: &str,
        request: &FileRequest,
        upload: FileUpload,
    ) -> Result<FileWritten, Error> {
        check_file(request)?;
        let (channel, target) = self.best_way(name).await?;
        Ok(channel.write_file(&target, request, upload).await?)
    }

    /// Connects to a TCP port on a guest's loopback.
    pub async fn forward(&self, name: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        if port == 0 {
            return Err(Error::BadRequest {
                what: "0 is not a port".into(),
                hint: "a TCP port of the guest, 1 to 65535".into(),
            });
        }
        let (channel, target) = self.best_way(name).await?;
        Ok(channel.forward(&target, port).await?)
    }

    async fn zone_of(&self, record: &InstanceRecord) -> Result<ZoneRecord, Error> {
        let zone = self.ports().store.zone(&record.zone).await?;
        zone.ok_or_else(|| Error::UnknownZone(record.zone.to_string()))
    }

    /// The last lines of an app's log: its journal, or its console when it can't be asked. Data from
    /// a guest, without control characters.
    pub async fn logs(&self, name: &str, lines: usize) -> Result<Vec<String>, Error> {
        let record = self.instance_named(name).await?;
        let zone = self.zone_of(&record).await?;
        let console = self.ports().backend.console_tail(&record.id, lines);
        let Some(channel) = self.channels_of(&record).into_iter().next() else {
            return Ok(console.await);
        };
        let count = lines.to_string();
        let argv = [
            "journalctl",
            "-b",
            "-q",
            "--no-pager",
            "-o",
            "short-iso",
            "-n",
            &count,
        ];
        let command = GuestCommand {
            argv: argv.map(str::to_owned).into(),
            env: Default::default(),
            cwd: None,
            user: None,
            stdin: Vec::new(),
            timeout: Duration::from_secs(10),
        };
        match channel.run(&record.channel_target(&zone), command).await {
            Ok(outcome) if outcome.end == CommandEnd::Exited(0) => {
                let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
                let clean = |line: &str| line.chars().filter(|c| !c.is_control()).collect();
                Ok(text.lines().map(clean).collect())
            }
            _ => Ok(console.await),
        }
    }

    /// Sets the password of the management page's `root` on a zone's appliance.
    pub async fn set_appliance_password(
        &self,
        zone: Option<&str>,
        password: &str,
    ) -> Result<(), Error> {
        let length = password.chars().count();
        if !(12..=256).contains(&length) || password.chars().any(char::is_control) {
            return Err(Error::BadRequest {
                what: "the password must have 12 to 256 characters and no control characters"
                    .into(),
                hint: "four random words do well".into(),
            });
        }
        let zone = self.zone_for_deploy(zone).await?;
        let command = GuestCommand {
            argv: vec!["/usr/sbin/chpasswd".into()],
            env: Default::default(),
            cwd: None,
            user: None,
            stdin: format!("root:{password}\n").into_bytes(),
            timeout: Duration::from_secs(30),
        };
        let channels = self.channels_of_appliance();
        let channel = channels.first().ok_or_else(no_channel)?;
        let outcome = channel.run(&zone.channel_target(), command).await?;
        match outcome.end {
            CommandEnd::Exited(0) => Ok(()),
            end => Err(ChannelError::OutcomeUnknown(format!("chpasswd ended with {end:?}")).into()),
        }
    }
}

fn check_file(request: &FileRequest) -> Result<(), Error> {
    let legal = request.path.starts_with('/') && !request.path.contains('\0');
    let most = api::file::PATH_MAX_BYTES;
    if legal && request.path.len() <= most {
        return Ok(());
    }
    Err(Error::BadRequest {
        what: format!("the path must be absolute, without NUL, at most {most} bytes"),
        hint: "like /srv/data.csv".into(),
    })
}

fn check_command(request: &ExecRequest) -> Result<GuestCommand, Error> {
    let bad = |what: &str, hint: &str| Error::BadRequest {
        what: what.into(),
        hint: hint.into(),
    };
    let argv = match (&request.command, request.argv.as_slice()) {
        (None, [_, ..]) => request.argv.clone(),
        (Some(line), []) => vec!["/bin/sh".into(), "-c".into(), line.clone()],
        _ => {
            return Err(bad(
                "give exactly one of argv and command",
                r#"{"argv":["id","-u"]} or {"command":"id; ls"}"#,
            ));
        }
    };
    let texts = argv
        .iter()
        .chain(request.env.keys())
        .chain(request.env.values());
    if texts
        .chain(&request.cwd)
        .chain(&request.user)
        .any(|t| t.contains('\0'))
    {
        return Err(bad(
            "NUL bytes can't be passed to a program",
            "send binary data by stdin",
        ));
    }
    if request.env.keys().any(|k| k.is_empty() || k.contains('=')) {
        return Err(bad(
            "an environment variable's name is empty or has a `=`",
            r#""env":{"NAME":"value"}"#,
        ));
    }
    if request.cwd.as_ref().is_some_and(|d| !d.starts_with('/')) {
        return Err(bad("cwd must be an absolute path", r#""cwd":"/srv""#));
    }
    let stdin = decode(
        request.stdin.clone().unwrap_or_default(),
        request.stdin_encoding.unwrap_or(Encoding::Utf8),
    )
    .ok_or_else(|| bad("stdin is not base64", "standard alphabet, with padding"))?;
    let timeout = request
        .timeout_ms
        .map_or(DEFAULT_TIMEOUT, Duration::from_millis);
    if timeout.is_zero() || timeout > MAX_TIMEOUT {
        return Err(bad("timeout_ms is out of range", "1 to 86400000 (a day)"));
    }
    Ok(GuestCommand {
        argv,
        env: request.env.clone(),
        cwd: request.cwd.clone(),
        user: request.user.clone(),
        stdin,
        timeout,
    })
}

fn exec_result(outcome: CommandOutcome, channel: &str) -> ExecResult {
    let (stdout, stdout_encoding) = encode(outcome.stdout);
    let (stderr, stderr_encoding) = encode(outcome.stderr);
    let (exit_code, signal, timed_out) = match outcome.end {
        CommandEnd::Exited(code) => (Some(code), None, false),
        CommandEnd::Signalled(signal) => (None, Some(signal), false),
        CommandEnd::TimedOut => (None, None, true),
    };
    ExecResult {
        stdout,
        stderr,
        stdout_encoding,
        stderr_encoding,
        exit_code,
        signal,
        timed_out,
        truncated: outcome.truncated,
        duration_ms: u64::try_from(outcome.duration.as_millis()).unwrap_or(u64::MAX),
        channel: channel.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_checked() {
        let ok = |json: &str| check_command(&serde_json::from_str(json).unwrap());
        assert_eq!(ok(r#"{"argv":["id"]}"#).unwrap().argv, ["id"]);
        assert_eq!(
            ok(r#"{"command":"id; ls"}"#).unwrap().argv,
            ["/bin/sh", "-c", "id; ls"]
        );
        assert_eq!(
            ok(r#"{"argv":["cat"],"stdin":"AP8=","stdin_encoding":"base64"}"#)
                .unwrap()
                .stdin,
            [0, 255]
        );
        for bad in [
            r#"{}"#,
            r#"{"argv":["a"],"command":"b"}"#,
            r#"{"argv":["a\u0000b"]}"#,
            r#"{"argv":["a"],"env":{"A=B":"c"}}"#,
            r#"{"argv":["a"],"cwd":"tmp"}"#,
            r#"{"argv":["a"],"timeout_ms":0}"#,
            r#"{"argv":["a"],"stdin":"?","stdin_encoding":"base64"}"#,
        ] {
            assert!(ok(bad).is_err(), "{bad}");
        }
    }
}
