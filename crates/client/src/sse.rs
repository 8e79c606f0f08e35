//! Reads `text/event-stream` (the WHATWG HTML standard, "Server-sent events") from pieces of any
//! size. Pure: bytes in, events out. Bounded: a line or an event past the limit is an error.

/// Most that one line or one event's data may take.
const LIMIT: usize = 1 << 20;

/// One event of the stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ServerEvent {
    /// The last `id:` seen.
    pub id: Option<String>,
    /// `event:`; empty means `message`.
    pub name: String,
    /// The `data:` lines, joined by newlines.
    pub data: String,
}

/// The stream has a line or an event longer than any of ours.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Keeps what is not a whole event yet.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    line: Vec<u8>,
    event: ServerEvent,
    has_data: bool,
    after_cr: bool,
}

impl Reader {
    /// Takes the next piece and hands out the events that it completes.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Result<Vec<ServerEvent>, TooLong> {
        let mut events = Vec::new();
        for &byte in piece {
            let was_cr = std::mem::replace(&mut self.after_cr, byte == b'\r');
            match byte {
                b'\n' if was_cr => {}
                b'\n' | b'\r' => events.extend(self.end_of_line()?),
                _ if self.line.len() >= LIMIT => return Err(TooLong),
                _ => self.line.push(byte),
            }
        }
        Ok(events)
    }

    fn end_of_line(&mut self) -> Result<Option<ServerEvent>, TooLong> {
        let line = std::mem::take(&mut self.line);
        if line.is_empty() {
            return Ok(self.end_of_event());
        }
        let line = String::from_utf8_lossy(&line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => {
                if self.event.data.len() + value.len() > LIMIT {
                    return Err(TooLong);
                }
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
                self.has_data = true;
            }
            "event" => value.clone_into(&mut self.event.name),
            "id" if !value.contains('\0') => self.event.id = Some(value.to_owned()),
            // A comment (empty field) keeps the connection alive; unknown fields are ignored.
            _ => {}
        }
        Ok(None)
    }

    fn end_of_event(&mut self) -> Option<ServerEvent> {
        let next = ServerEvent {
            id: self.event.id.clone(),
            ..ServerEvent::default()
        };
        let event = std::mem::replace(&mut self.event, next);
        std::mem::take(&mut self.has_data).then_some(event)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> Vec<(Option<String>, String, String)> {
        Reader::default()
            .push(text.as_bytes())
            .unwrap()
            .into_iter()
            .map(|e| (e.id, e.name, e.data))
            .collect()
    }

    #[test]
    fn events_and_comments() {
        assert_eq!(
            read(
                ": hello\n\nid: 1\nevent: step\ndata: {\"a\":1}\n\ndata:x\r\ndata: y\r\n\r\nevent: step\n\n"
            ),
            [
                (Some("1".into()), "step".into(), "{\"a\":1}".into()),
                (Some("1".into()), String::new(), "x\ny".into()),
            ]
        );
    }

    #[test]
    fn half_an_event_is_none() {
        assert!(read("id: 1\ndata: x\n").is_empty());
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = Reader::default();
        let piece = vec![b'x'; LIMIT];
        assert_eq!(reader.push(&piece), Ok(vec![]));
        assert_eq!(reader.push(b"x"), Err(TooLong));
    }

    proptest! {
        #[test]
        fn the_cut_between_pieces_does_not_matter(
            text in "((id|event|data|retry|):? ?[a-zé]{0,3}(\n|\r\n|\r)){0,12}\n\n",
            cut in 0usize..60,
        ) {
            let whole = Reader::default().push(text.as_bytes()).unwrap();
            let cut = cut.min(text.len());
            let mut reader = Reader::default();
            let mut parts = reader.push(&text.as_bytes()[..cut]).unwrap();
            parts.extend(reader.push(&text.as_bytes()[cut..]).unwrap());
            prop_assert_eq!(parts, whole);
        }
    }
}
