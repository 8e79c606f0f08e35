//! A request, checked: what to run, as whom, where, with which variables. Reads the guest's users and
//! directories; starts nothing.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api::exec::{Encoding, ExecRequest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use wire::attach::COOKIE;

use super::failure::Failure;
use crate::account::{self, Account};

/// The deadline of a command that names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(600);
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What to run. No Debug: arguments, variables and input may hold secrets.
pub struct Order {
    /// Program and arguments; at least the program.
    pub argv: Vec<String>,
    /// All variables.
    pub env: BTreeMap<String, String>,
    /// The working directory.
    pub directory: PathBuf,
    /// The same, for the kernel.
    pub c_directory: CString,
    /// Who runs it.
    pub account: Account,
    /// What it reads.
    pub stdin: Vec<u8>,
    /// How long it may run, if that is said.
    pub timeout: Option<Duration>,
    /// `NAME=VALUE` of the variable by which its processes are found.
    pub cookie: String,
}

impl Order {
    /// Checks a request to run to the end.
    pub fn of(request: ExecRequest) -> Result<Self, Failure> {
        let mut order = Self::open(request)?;
        order.timeout.get_or_insert(DEFAULT_TIMEOUT);
        Ok(order)
    }

    /// Checks a request whose streams stay open: without a deadline unless it names one.
    pub fn open(request: ExecRequest) -> Result<Self, Failure> {
        check_texts(&request)?;
        let stdin = stdin(&request)?;
        let timeout = timeout(&request)?;
        let argv = match (request.command, request.argv) {
            (None, argv) if !argv.is_empty() => argv,
            (Some(line), argv) if argv.is_empty() => vec!["/bin/sh".into(), "-c".into(), line],
            _ => return Err(Failure::request("give exactly one of argv and command")),
        };
        let account =
            account::of(request.user.as_deref().unwrap_or("0")).map_err(Failure::request)?;
        let directory = directory(request.cwd, &account)?;
        let c_directory = CString::new(directory.as_os_str().as_encoded_bytes())
            .map_err(|_| Failure::request("the directory has a NUL byte"))?;
        let value = cookie()?;
        let mut env = account::environment(&account, &request.env);
        let cookie = format!("{COOKIE}={value}");
        env.insert(COOKIE.to_owned(), value);
        Ok(Self {
            argv,
            env,
            directory,
            c_directory,
            account,
            stdin,
            timeout,
            cookie,
        })
    }

    /// The program's name as it was asked for.
    pub fn program(&self) -> &str {
        self.argv.first().map(String::as_str).unwrap_or_default()
    }

    /// Finds the program as a shell would: by the command's own PATH, or by its path.
    pub fn resolve(&self) -> Result<PathBuf, Unrunnable> {
        let program = self.program();
        if program.contains('/') {
            let path = self.directory.join(program);
            return self.runnable(&path).map(|()| path);
        }
        let mut worst = Unrunnable::NotFound(io::ErrorKind::NotFound.into());
        if program.is_empty() {
            return Err(worst);
        }
        let path = self.env.get("PATH").map_or("", String::as_str);
        for directory in path.split(':') {
            let candidate = self.directory.join(directory).join(program);
            match self.runnable(&candidate) {
                Ok(()) => return Ok(candidate),
                Err(denied @ Unrunnable::NotExecutable(_)) => worst = denied,
                Err(Unrunnable::NotFound(_)) => {}
            }
        }
        Err(worst)
    }

    fn runnable(&self, path: &Path) -> Result<(), Unrunnable> {
        match fs::metadata(path) {
            Ok(meta) if meta.is_file() && self.account.may_execute(&meta) => Ok(()),
            Ok(_) => Err(Unrunnable::NotExecutable(
                io::ErrorKind::PermissionDenied.into(),
            )),
            Err(error) => Err(Unrunnable::of(error)),
        }
    }
}

/// A program that can't be run: the command's own outcome, as in a shell.
#[derive(Debug)]
pub enum Unrunnable {
    /// It is not there.
    NotFound(io::Error),
    /// It is there, and can't be run.
    NotExecutable(io::Error),
}

impl Unrunnable {
    /// What an error of looking at or starting a program means.
    pub fn of(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound(error),
            _ => Self::NotExecutable(error),
        }
    }

    /// A shell's exit code for it.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotFound(_) => 127,
            Self::NotExecutable(_) => 126,
        }
    }

    /// The line for the command's standard error.
    pub fn line(&self, program: &str) -> String {
        let (Self::NotFound(error) | Self::NotExecutable(error)) = self;
        format!("{program:?} can't be run: {error}\n")
    }
}

fn check_texts(request: &ExecRequest) -> Result<(), Failure> {
    let texts = request.argv.iter().chain(&request.command);
    let texts = texts.chain(request.env.keys()).chain(request.env.values());
    let mut texts = texts.chain(&request.cwd).chain(&request.user);
    if texts.any(|text| text.contains('\0')) {
        return Err(Failure::request("NUL bytes can't be passed to a program"));
    }
    if request.env.keys().any(|k| k.is_empty() || k.contains('=')) {
        return Err(Failure::request(
            "a variable's name is empty or has a `=` in it",
        ));
    }
    Ok(())
}

fn stdin(request: &ExecRequest) -> Result<Vec<u8>, Failure> {
    let text = request.stdin.as_deref().unwrap_or_default();
    match request.stdin_encoding.unwrap_or_default() {
        Encoding::Utf8 => Ok(text.as_bytes().to_vec()),
        Encoding::Base64 => STANDARD
            .decode(text)
            .map_err(|_| Failure::request("stdin is not base64 with padding")),
    }
}

fn timeout(request: &ExecRequest) -> Result<Option<Duration>, Failure> {
    match request.timeout_ms.map(Duration::from_millis) {
        Some(timeout) if timeout.is_zero() || timeout > MAX_TIMEOUT => Err(Failure::request(
            "timeout_ms must be 1 to 86400000, which is a day",
        )),
        timeout => Ok(timeout),
    }
}

fn directory(asked: Option<String>, account: &Account) -> Result<PathBuf, Failure> {
    let Some(asked) = asked else {
        let home = PathBuf::from(&account.home);
        return Ok(if enter(&home, account).is_ok() {
            home
        } else {
            "/".into()
        });
    };
    let directory = PathBuf::from(asked);
    enter(&directory, account).map_err(|cause| {
        Failure::request(format!(
            "the directory {directory:?} can't be entered: {cause}"
        ))
    })?;
    Ok(directory)
}

fn enter(directory: &Path, account: &Account) -> io::Result<()> {
    if !directory.is_absolute() {
        return Err(io::Error::other("its path is not absolute"));
    }
    let meta = fs::metadata(directory)?;
    if !meta.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    if !account.may_execute(&meta) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    Ok(())
}

fn cookie() -> Result<String, Failure> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes).map_err(|e| Failure::Kernel {
        what: "a random number",
        cause: io::Error::other(e.to_string()),
    })?;
    Ok(hex::encode(bytes))
}
