//! As much of a DNS message (RFC 1035) as must be understood here: whose name is asked for, which addresses were
//! answered, and a refusal. Bytes of guests and of servers far away: nothing is believed before it was read to
//! its end, and nothing is kept.

use std::net::Ipv4Addr;

/// The type of an IPv4 address.
pub const TYPE_A: u16 = 1;
/// The class of the internet.
pub const CLASS_IN: u16 = 1;

const RESPONSE: u8 = 0x80;
const OPCODE: u8 = 0x78;
const RECURSION_DESIRED: u8 = 0x01;
const RECURSION_AVAILABLE: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const REFUSED: u8 = 5;
/// Length of a message's fixed head.
const HEAD: usize = 12;

/// The one question of a query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The name in lower case, without a final dot; empty for the root. Only printable ASCII without `.` and `\`
    /// in labels: what else there was made the query unreadable.
    pub name: String,
    /// The wanted type.
    pub kind: u16,
    /// Where the question ends in the message.
    end: usize,
}

/// Reads a standard query with exactly one question; nothing for anything else.
pub fn question(packet: &[u8]) -> Option<Question> {
    let mut reader = Reader(packet);
    reader.skip(2)?;
    let flags = *reader.take(2)?.first()?;
    if flags & (RESPONSE | OPCODE) != 0 || reader.u16()? != 1 {
        return None;
    }
    reader.skip(6)?;
    let name = reader.name()?;
    let (kind, class) = (reader.u16()?, reader.u16()?);
    let end = packet.len() - reader.0.len();
    (class == CLASS_IN).then_some(Question { name, kind, end })
}

/// The answer to a query that is not answered.
pub fn refusal(packet: &[u8], question: &Question) -> Option<Vec<u8>> {
    let mut answer = packet.get(..question.end)?.to_vec();
    let recursion = answer.get(2)? & RECURSION_DESIRED;
    let head = [
        RESPONSE | recursion,
        RECURSION_AVAILABLE | REFUSED,
        0,
        1,
        0,
        0,
        0,
        0,
        0,
        0,
    ];
    answer.get_mut(2..HEAD)?.copy_from_slice(&head);
    Some(answer)
}

/// Whether an answer was cut off and is to be asked for by TCP.
pub fn is_truncated(packet: &[u8]) -> bool {
    packet.get(2).is_some_and(|flags| flags & TRUNCATED != 0)
}

/// The addresses in an answer with this id, each with its time to live in seconds. `None` when the message is no
/// answer to that query or can't be read.
pub fn addresses(packet: &[u8], id: u16) -> Option<Vec<(Ipv4Addr, u32)>> {
    let mut reader = Reader(packet);
    if reader.u16()? != id || *reader.take(2)?.first()? & RESPONSE == 0 {
        return None;
    }
    let (questions, answers) = (reader.u16()?, reader.u16()?);
    reader.skip(4)?;
    for _ in 0..questions {
        reader.skip_name()?;
        reader.skip(4)?;
    }
    let mut found = Vec::new();
    for _ in 0..answers {
        reader.skip_name()?;
        let (kind, class) = (reader.u16()?, reader.u16()?);
        let ttl = reader.u32()?;
        let length = reader.u16()?;
        let data = reader.take(usize::from(length))?;
        if kind == TYPE_A && class == CLASS_IN {
            let octets: [u8; 4] = data.try_into().ok()?;
            found.push((octets.into(), ttl));
        }
    }
    Some(found)
}

/// The unread rest of a packet.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn skip(&mut self, length: usize) -> Option<()> {
        self.take(length).map(|_| ())
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// A name is labels up to an empty one or up to a pointer to the rest of it.
    fn skip_name(&mut self) -> Option<()> {
        loop {
            match *self.take(1)?.first()? {
                0 => return Some(()),
                pointer if pointer & 0xc0 == 0xc0 => return self.skip(1),
                length => self.skip(usize::from(length))?,
            }
        }
    }

    /// A name that is written out, as that of a question always is.
    fn name(&mut self) -> Option<String> {
        let mut name = String::new();
        loop {
            let length = *self.take(1)?.first()?;
            match length {
                0 => return Some(name),
                1..=63 => {}
                _ => return None,
            }
            let label = self.take(usize::from(length))?;
            let plain = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'.' | b'\\');
            if !label.iter().all(plain) || name.len() + label.len() > 253 {
                return None;
            }
            if !name.is_empty() {
                name.push('.');
            }
            name.extend(label.iter().map(|b| char::from(b.to_ascii_lowercase())));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(labels: &[&[u8]]) -> Vec<u8> {
        let mut packet = vec![0x4d, 0x2a, 0x01, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in labels {
            packet.push(u8::try_from(label.len()).unwrap());
            packet.extend(*label);
        }
        packet.extend([0, 0, 1, 0, 1]);
        packet
    }

    fn answer(records: &[(u16, u32, &[u8])]) -> Vec<u8> {
        let mut packet = query(&[b"www", b"example", b"com"]);
        packet[2] |= RESPONSE;
        packet[7] = u8::try_from(records.len()).unwrap();
        for (kind, ttl, data) in records {
            packet.extend([0xc0, 12]);
            packet.extend(kind.to_be_bytes());
            packet.extend([0, 1]);
            packet.extend(ttl.to_be_bytes());
            packet.extend(u16::try_from(data.len()).unwrap().to_be_bytes());
            packet.extend(*data);
        }
        packet
    }

    #[test]
    fn questions_are_read_and_refused() {
        let packet = query(&[b"WWW", b"Example", b"com"]);
        let asked = question(&packet).unwrap();
        assert_eq!((asked.name.as_str(), asked.kind), ("www.example.com", 1));
        let refused = refusal(&packet, &asked).unwrap();
        assert_eq!(refused[..4], [0x4d, 0x2a, 0x81, 0x85]);
        assert_eq!(refused[4..12], [0, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(question(&query(&[])).unwrap().name, "");
        // What comes behind the question, like EDNS, is not in the refusal.
        let mut longer = packet.clone();
        longer.extend([0; 11]);
        assert_eq!(refusal(&longer, &asked).unwrap().len(), packet.len());
    }

    #[test]
    fn what_is_no_plain_query_is_none() {
        for label in [&b"a.b"[..], b"a b", b"a\nb", b"\xff", b"a\\b"] {
            assert_eq!(question(&query(&[label])), None, "{label:?}");
        }
        let mut packet = query(&[b"a", b"b"]);
        packet[5] = 2;
        assert_eq!(question(&packet), None, "two questions");
        packet[5] = 1;
        packet[2] = 0x81;
        assert_eq!(question(&packet), None, "an answer");
        packet[2] = 0x28;
        assert_eq!(question(&packet), None, "an update");
        packet[2] = 1;
        packet[12] = 0xc0;
        assert_eq!(question(&packet), None, "a pointer");
        let long = [[b'x'; 63].as_slice(); 5];
        assert_eq!(question(&query(&long)), None, "too long");
    }

    #[test]
    fn addresses_are_read_with_their_time() {
        let alias: &[u8] = &[1, b'x', 0];
        let packet = answer(&[(5, 9, alias), (1, 300, &[8, 8, 8, 8]), (28, 1, &[0; 16])]);
        assert_eq!(
            addresses(&packet, 0x4d2a),
            Some(vec![([8, 8, 8, 8].into(), 300)])
        );
        assert_eq!(addresses(&packet, 7), None, "of another query");
        assert_eq!(addresses(&query(&[b"a"]), 0x4d2a), None, "a question");
        assert_eq!(addresses(&packet[..packet.len() - 1], 0x4d2a), None, "cut");
    }

    proptest! {
        #[test]
        fn no_packet_hurts(packet in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Some(asked) = question(&packet) {
                prop_assert!(refusal(&packet, &asked).is_some());
            }
            let _ = addresses(&packet, 0);
        }
    }
}
