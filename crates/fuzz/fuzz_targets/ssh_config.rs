//! Any bytes as what `fuzz::ssh_config` reads.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::ssh_config(bytes));
