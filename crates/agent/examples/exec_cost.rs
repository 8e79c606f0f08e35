//! What `POST /exec` of `/bin/true` costs on a kept connection, beside a bare start and wait of the same
//! program by this process: `cargo run --profile agent -p agent --example exec_cost [ROUNDS]`.
//!
//! The agent is a process of its own, as in a guest, once without and once with control groups. Bare
//! starts and calls take turns, so that both have the same machine.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use agent::exec::{Groups, Processes, router};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: usize = 3000;
const CALLERS: usize = 64;
const TURNS: usize = 10;
/// Threads of a guest's agent.
const WORKERS: usize = 2;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", socket, groups] => serve(socket.into(), *groups == "groups"),
        [] => measure(ROUNDS),
        [rounds] => measure(rounds.parse()?),
        _ => Err("usage: exec_cost [ROUNDS]".into()),
    }
}

fn measure(rounds: usize) -> Outcome<()> {
    let directory = std::env::temp_dir().join(format!("exec-cost-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let plain = Agent::start(directory.join("plain.sock"), "none")?;
    let grouped = Agent::start(directory.join("grouped.sock"), "groups")?;
    for (name, agent) in [("without groups", &plain), ("with groups", &grouped)] {
        compare(name, &agent.socket, rounds)?;
    }
    drop((plain, grouped));
    std::fs::remove_dir_all(&directory)?;
    Ok(())
}

fn compare(name: &str, socket: &Path, rounds: usize) -> Outcome<()> {
    let mut caller = Caller::connect(socket)?;
    let (mut bare, mut exec) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        bare.extend(times(rounds / TURNS, start_and_wait)?);
        exec.extend(times(rounds / TURNS, || caller.call())?);
    }
    bare.sort_unstable();
    exec.sort_unstable();
    let (mut bare_rate, mut exec_rate) = (Vec::new(), Vec::new());
    for _ in 0..TURNS {
        let rounds = rounds / TURNS / 30 + 1;
        bare_rate.push(rate(rounds, || Ok(start_and_wait))?);
        exec_rate.push(rate(rounds, || {
            let mut caller = Caller::connect(socket)?;
            Ok(move || caller.call())
        })?);
    }
    bare_rate.sort_unstable_by(f64::total_cmp);
    exec_rate.sort_unstable_by(f64::total_cmp);
    let rate = |sorted: &[f64]| sorted.get(sorted.len() / 2).copied().unwrap_or_default();
    let (bare_rate, exec_rate) = (rate(&bare_rate), rate(&exec_rate));
    say("bare start and wait", &bare);
    say(&format!("POST /exec {name}"), &exec);
    let ratio = median(&exec).as_secs_f64() / median(&bare).as_secs_f64();
    println!("ratio of the medians: {ratio:.2}");
    let share = 100.0 * exec_rate / bare_rate;
    println!("{CALLERS} at a time: {exec_rate:.0}/s, bare {bare_rate:.0}/s: {share:.0} %");
    Ok(())
}

fn start_and_wait() -> Outcome<()> {
    let status = Command::new("/bin/true").stdin(Stdio::null()).status()?;
    status.success().then_some(()).ok_or("it failed".into())
}

/// How many a second, when many threads do it.
fn rate<F, C>(rounds: usize, caller: F) -> Outcome<f64>
where
    F: Fn() -> Outcome<C> + Sync,
    C: FnMut() -> Outcome<()>,
{
    let began = Instant::now();
    std::thread::scope(|scope| {
        let run = || times(rounds, caller()?).map(drop);
        let callers: Vec<_> = (0..CALLERS).map(|_| scope.spawn(run)).collect();
        for caller in callers {
            caller.join().map_err(|_| "a caller panicked")??;
        }
        Outcome::Ok(())
    })?;
    Ok((CALLERS * rounds) as f64 / began.elapsed().as_secs_f64())
}

/// Ends with the process that started it: with its standard input.
fn serve(socket: PathBuf, groups: bool) -> Outcome<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let groups = groups.then(Groups::of_this_process).transpose()?;
        let listener = tokio::net::UnixListener::bind(socket)?;
        tokio::spawn(async { axum::serve(listener, router(Processes::start(groups)?)).await });
        println!("serving");
        let mut rest = Vec::new();
        tokio::task::spawn_blocking(move || std::io::stdin().read_to_end(&mut rest)).await??;
        Ok(())
    })
}

struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(socket: PathBuf, groups: &str) -> Outcome<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("serve")
            .arg(&socket)
            .arg(groups)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = process.stdout.take().ok_or("it has no output")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        (line == "serving\n")
            .then_some(())
            .ok_or("it does not serve")?;
        Ok(Self { process, socket })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

struct Caller(BufReader<UnixStream>);

impl Caller {
    fn connect(socket: &Path) -> Outcome<Self> {
        Ok(Self(BufReader::new(UnixStream::connect(socket)?)))
    }

    fn call(&mut self) -> Outcome<()> {
        let body = r#"{"argv":["/bin/true"]}"#;
        let head = "POST /exec HTTP/1.1\r\nhost: guest\r\ncontent-length: ";
        let request = format!("{head}{}\r\n\r\n{body}", body.len());
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut length, mut line) = (0, String::new());
        while line != "\r\n" {
            line.clear();
            self.0.read_line(&mut line)?;
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse()?;
            }
        }
        let mut answer = vec![0; length];
        self.0.read_exact(&mut answer)?;
        let answer = String::from_utf8(answer)?;
        let ran = answer.contains(r#""exit_code":0"#);
        ran.then_some(()).ok_or(answer.into())
    }
}

fn times(rounds: usize, mut once: impl FnMut() -> Outcome<()>) -> Outcome<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let began = Instant::now();
        once()?;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    Ok(times)
}

fn median(sorted: &[Duration]) -> Duration {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

fn say(what: &str, sorted: &[Duration]) {
    let late = sorted
        .get(sorted.len() * 99 / 100)
        .copied()
        .unwrap_or_default();
    println!("{what}: p50 {:?}, p99 {late:?}", median(sorted));
}
