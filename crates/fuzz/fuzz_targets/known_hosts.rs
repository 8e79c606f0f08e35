//! Any bytes as what `fuzz::known_hosts` reads.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::known_hosts(bytes));
