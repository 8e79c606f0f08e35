//! The agent's log: one line an event on stderr, with the priority prefix that journald reads.
//!
//! A subscriber of our own because the usual one with filters is as large as the rest of the
//! agent. Keeps no state but the least level that is shown. Control characters in values are
//! escaped, so that nothing a guest sent can begin a line of its own.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use tracing::field::{Field, Visit};
use tracing::span;
use tracing::{Event, Level, Metadata, Subscriber};

/// Sends all events of this process to stderr, `debug` ones only when asked for.
pub fn start(debug: bool) {
    let least = if debug { Level::DEBUG } else { Level::INFO };
    // A second call (only tests do that) leaves the first in place.
    let _ = tracing::subscriber::set_global_default(Stderr { least });
}

struct Stderr {
    least: Level,
}

impl Subscriber for Stderr {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries speak only when something is wrong.
        let ours = metadata.target().starts_with("agent");
        let level = *metadata.level();
        level <= if ours { self.least } else { Level::WARN }
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        let line = render(*event.metadata().level(), |visitor| event.record(visitor));
        // Nobody is left to tell when stderr is gone.
        let _ = std::io::stderr().lock().write_all(line.as_bytes());
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

fn render(level: Level, record: impl FnOnce(&mut dyn Visit)) -> String {
    let mut line = Line::default();
    record(&mut line);
    let priority = match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    };
    format!("<{priority}>{}{}\n", line.message, line.fields)
}

#[derive(Default)]
struct Line {
    message: String,
    fields: String,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text: String = format!("{value:?}")
            .chars()
            .flat_map(|c| {
                let escape = c.is_control();
                let escaped = escape.then(|| c.escape_default()).into_iter().flatten();
                escaped.chain((!escape).then_some(c))
            })
            .collect();
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            self.message.write_str(&text)
        } else {
            write!(self.fields, " {}={text}", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    struct Capture(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Capture {
        fn enabled(&self, _: &Metadata<'_>) -> bool {
            true
        }
        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }
        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn event(&self, event: &Event<'_>) {
            let line = render(*event.metadata().level(), |v| event.record(v));
            self.0.lock().unwrap().push(line);
        }
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_value_cannot_begin_a_line() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        tracing::subscriber::with_default(Capture(lines.clone()), || {
            tracing::warn!(guest.name = %"a\n<0>forged\u{1b}[2J", "lease from {}", "x\ny");
        });
        assert_eq!(
            *lines.lock().unwrap(),
            ["<4>lease from x\\ny guest.name=a\\n<0>forged\\u{1b}[2J\n"]
        );
    }
}
