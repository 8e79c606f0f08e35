//! Times, and how they are taken: contestants take turns, so that whatever else the machine does meets
//! all of them alike. Owns no state.

use std::time::{Duration, Instant};

use anyhow::Context;

/// Turns of each contestant. In one turn it goes several times in a row, so that all but the first find warm
/// caches.
const TURNS: usize = 10;
/// Untimed rounds of each contestant before the first turn: a twentieth of the timed ones, and at least one.
const WARM_UP_PART: usize = 20;
/// The longest that one contestant may take in all.
const PATIENCE: Duration = Duration::from_secs(24);

/// Times of one thing, shortest first; never empty.
#[derive(Debug, Clone)]
pub struct Times(Vec<Duration>);

impl Times {
    /// Sorts.
    pub fn new(mut times: Vec<Duration>) -> anyhow::Result<Self> {
        anyhow::ensure!(!times.is_empty(), "nothing was measured");
        times.sort_unstable();
        Ok(Self(times))
    }

    /// The time that so many of a hundred do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    /// Half of them are no longer.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }
}

impl std::fmt::Display for Times {
    /// Median, and in parentheses 90th and 99th percentile and how many there were.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [p90, p99] = [90, 99].map(|percent| self.percentile(percent));
        let n = self.count();
        write!(
            f,
            "{} ({}, {}; {n})",
            short(self.median()),
            short(p90),
            short(p99)
        )
    }
}

/// In milliseconds, with three figures.
pub fn short(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1000.0;
    match ms {
        100.0.. => format!("{ms:.0} ms"),
        10.0.. => format!("{ms:.1} ms"),
        _ => format!("{ms:.2} ms"),
    }
}

/// One who is measured. Times itself, so that it can prepare and clean up without its time being taken.
pub struct Contestant<'a> {
    rounds: usize,
    once: Box<dyn FnMut() -> anyhow::Result<Duration> + 'a>,
}

impl<'a> Contestant<'a> {
    /// Runs `once` so many times.
    pub fn new(rounds: usize, once: impl FnMut() -> anyhow::Result<Duration> + 'a) -> Self {
        Self {
            rounds,
            once: Box::new(once),
        }
    }
}

/// Measures all of them in turns. One that fails is out, the others go on.
pub fn contest(contestants: Vec<Contestant<'_>>) -> Vec<anyhow::Result<Times>> {
    let mut all: Vec<_> = contestants.into_iter().map(Entry::warmed_up).collect();
    for turn in 0..TURNS {
        for entry in &mut all {
            entry.turn(turn);
        }
    }
    all.into_iter().map(Entry::result).collect()
}

struct Entry<'a> {
    contestant: Contestant<'a>,
    times: Vec<Duration>,
    spent: Duration,
    failed: Option<anyhow::Error>,
}

impl<'a> Entry<'a> {
    fn warmed_up(contestant: Contestant<'a>) -> Self {
        let mut entry = Self {
            contestant,
            times: Vec::new(),
            spent: Duration::ZERO,
            failed: None,
        };
        entry.run((entry.contestant.rounds / WARM_UP_PART).max(1));
        entry.times.clear();
        entry
    }

    fn turn(&mut self, turn: usize) {
        let share = |turns: usize| self.contestant.rounds * turns / TURNS;
        self.run(share(turn + 1) - share(turn));
    }

    fn run(&mut self, rounds: usize) {
        for _ in 0..rounds {
            if self.failed.is_some() || self.spent > PATIENCE {
                return;
            }
            let began = Instant::now();
            match (self.contestant.once)() {
                Ok(time) => self.times.push(time),
                Err(error) => self.failed = Some(error),
            }
            self.spent += began.elapsed();
        }
    }

    fn result(self) -> anyhow::Result<Times> {
        match self.failed {
            Some(error) => Err(error),
            None => Times::new(self.times),
        }
    }
}

/// How long something takes.
pub fn timed<T>(act: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<(Duration, T)> {
    let began = Instant::now();
    let value = act()?;
    Ok((began.elapsed(), value))
}

/// How many a second, when `callers` threads do it `rounds` times each.
pub fn rate<F, C>(callers: usize, rounds: usize, caller: F) -> anyhow::Result<f64>
where
    F: Fn() -> anyhow::Result<C> + Sync,
    C: FnMut() -> anyhow::Result<()>,
{
    let ready = std::sync::Barrier::new(callers + 1);
    std::thread::scope(|scope| {
        let run = || {
            let caller = caller();
            ready.wait();
            let mut caller = caller?;
            (0..rounds).try_for_each(|_| caller())
        };
        let all: Vec<_> = (0..callers).map(|_| scope.spawn(run)).collect();
        ready.wait();
        let began = Instant::now();
        for one in all {
            one.join().ok().context("a caller panicked")??;
        }
        Ok((callers * rounds) as f64 / began.elapsed().as_secs_f64())
    })
}
