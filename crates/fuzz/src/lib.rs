//! What must hold for any bytes that the parsers are given. Run by libFuzzer (`cargo +nightly fuzz run --fuzz-dir
//! crates/fuzz known_hosts`), and in every test run by `crates/ssh/tests/it/parsers.rs`, which includes this file.

use std::io;
use std::path::{Path, PathBuf};

/// A `known_hosts` file: what is revoked stays revoked whatever stands around it.
pub fn known_hosts(bytes: &[u8]) {
    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
    let lines = bytes.split(|byte| *byte == b'\n').count();
    if let Ok(known) = ssh::KnownHosts::parse(bytes) {
        for (host, port) in [("web", 22), ("fd00::1", 2222)] {
            assert!(known.of(host, port).all(|entry| entry.line <= lines));
        }
        let revoked = [bytes, format!("\n@revoked web {KEY}\n").as_bytes()].concat();
        if let Ok(known) = ssh::KnownHosts::parse(&revoked) {
            assert!(known.of("web", 22).any(|entry| entry.line == lines + 1));
        }
    }
    let broken = [bytes, b"\n@revoked web ssh-ed25519 AAA\n"].concat();
    assert!(ssh::KnownHosts::parse(&broken).is_err());
}

/// An ssh_config file, which includes its own second half: a command that would run is never passed over.
pub fn ssh_config(bytes: &[u8]) {
    let half = bytes.len() / 2;
    let mut source = |_: &str| -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
        Ok(vec![(PathBuf::from("included"), bytes[half..].to_vec())])
    };
    let first = [b"ProxyCommand run me\n".as_slice(), bytes].concat();
    for text in [bytes, &first] {
        let Ok(config) = ssh::ssh_config::parse(text, Path::new("config"), &mut source) else {
            continue;
        };
        for alias in config.aliases().into_iter().take(8).chain(["web"]) {
            let found = config.resolve(alias);
            assert!(found.port != Some(0));
            assert!(found.identity_files.len() <= 100 && found.unused.len() <= 100);
            assert!(text.len() == bytes.len() || found.refused.is_some());
        }
    }
}

/// An audit log: nothing but what the log wrote itself is sound.
pub fn audit_log(bytes: &[u8]) {
    let report = audit::verify_reader(bytes, None).unwrap();
    assert!(bytes.is_empty() || !report.is_sound() || bytes.ends_with(b"\n"));
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(report.records <= lines as u64);
    // Whatever stands in front or behind, sound or not, a line of somebody else's is found.
    let after = [bytes, b"\n{}\n"].concat();
    assert!(
        !audit::verify_reader(after.as_slice(), None)
            .unwrap()
            .is_sound()
    );
}
