//! Any bytes, and bytes that look like something, given to each parser; and files as large as they may be.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use ssh::KnownHosts;

#[path = "../../../fuzz/src/lib.rs"]
mod fuzz;

/// Pieces that mean something to one of the parsers.
fn pieces() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b" ".to_vec()),
        Just(b"\"".to_vec()),
        Just(b"Host web".to_vec()),
        Just(b"\nMatch host ".to_vec()),
        Just(b"\nInclude x\n".to_vec()),
        Just(b"\nPort 7\n".to_vec()),
        Just(b"\nIdentityFile=%d/".to_vec()),
        Just(b"ProxyJump none\n".to_vec()),
        Just(b"@revoked ".to_vec()),
        Just(b"@cert-authority *.lan ".to_vec()),
        Just(b"|1|AAAA|".to_vec()),
        Just(b"web,!*.lan ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ".to_vec()),
        Just(b"{\"seq\":1,\"time\":\"2026-01-02T03:04:05.000006Z\",\"id\":\"".to_vec()),
        Just(b"\",\"hash\":\"".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..12),
    ];
    proptest::collection::vec(word, 0..40).prop_map(|words| words.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_make_a_parser_fall(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        fuzz::known_hosts(&bytes);
        fuzz::ssh_config(&bytes);
        fuzz::audit_log(&bytes);
    }

    #[test]
    fn no_pieces_make_a_parser_fall(bytes in pieces()) {
        fuzz::known_hosts(&bytes);
        fuzz::ssh_config(&bytes);
        fuzz::audit_log(&bytes);
    }
}

/// The largest files that are read, made so that each line costs most. Far from any limit that a person would notice,
/// with room for a machine that is busy and a build that is not optimised.
#[test]
fn the_largest_files_are_read_in_bounded_time() {
    const LIMIT: Duration = Duration::from_secs(120);
    let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ\n";
    let host = "a".repeat(253);
    let hashed = format!("|1|AAAAAAAAAAAAAAAAAAAAAAAAAAA=|AAAAAAAAAAAAAAAAAAAAAAAAAAA= {key}");
    let stars = format!("{}b {key}", "*a".repeat(120));
    for line in [hashed, stars, format!("{} {key}", "*a".repeat(1_000_000))] {
        let text = line.repeat(16 * 1024 * 1024 / line.len());
        let begun = Instant::now();
        let known = KnownHosts::parse(text.as_bytes()).unwrap();
        assert_eq!(known.of(&host, 22).count(), 0);
        assert!(
            begun.elapsed() < LIMIT,
            "{:?}: {}",
            begun.elapsed(),
            &line[..60]
        );
    }
    let larger = vec![b'\n'; 16 * 1024 * 1024 + 1];
    assert!(KnownHosts::parse(&larger).is_err());

    let patterns = "*a".repeat(120) + "b ";
    let text = format!("Host {}\n", patterns.repeat(1000)).repeat(4);
    let mut nothing = |_: &str| Ok(Vec::new());
    let path = std::path::Path::new("config");
    let begun = Instant::now();
    let config = ssh::ssh_config::parse(text.as_bytes(), path, &mut nothing).unwrap();
    let _ = config.resolve(&host);
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let lines = "Host a\n".repeat(20_001);
    let refused = ssh::ssh_config::parse(lines.as_bytes(), path, &mut nothing).unwrap_err();
    assert!(refused.to_string().contains("20000 lines"), "{refused}");
}
