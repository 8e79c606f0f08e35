//! What `POST /exec` of `/bin/true` costs on a kept connection, beside a bare start and wait of the same
//! program by this process: `cargo run --profile agent -p agent --example exec_cost [ROUNDS]`.

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

const ROUNDS: usize = 3000;
const CALLERS: usize = 64;

fn main() -> Outcome<()> {
    let rounds = std::env::args().nth(1);
    let rounds = rounds.map_or(Ok(ROUNDS), |n| n.parse())?;
    // Before the agent begins to take all statuses of this process.
    let bare = times(rounds, start_and_wait)?;
    let bare_rate = rate(rounds / 30 + 1, || Ok(start_and_wait))?;
    let directory = std::env::temp_dir().join(format!("exec-cost-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let socket = serve(directory.join("agent.sock"))?;
    let mut caller = Caller::connect(&socket)?;
    let exec = times(rounds, || caller.call())?;
    let rate = rate(rounds / 30 + 1, || {
        let mut caller = Caller::connect(&socket)?;
        Ok(move || caller.call())
    })?;
    std::fs::remove_dir_all(&directory)?;
    say("bare start and wait", &bare);
    say("POST /exec", &exec);
    let ratio = median(&exec).as_secs_f64() / median(&bare).as_secs_f64();
    println!("ratio of the medians: {ratio:.2}");
    println!("{CALLERS} at a time: {rate:.0}/s, bare {bare_rate:.0}/s");
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

fn serve(socket: PathBuf) -> Outcome<PathBuf> {
    let at = socket.clone();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || -> Outcome<()> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listener = tokio::net::UnixListener::bind(at)?;
            let router = agent::exec::router(agent::exec::Processes::start()?);
            tell.send(())?;
            axum::serve(listener, router).await?;
            Ok(())
        })
    });
    told.recv()?;
    Ok(socket)
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
