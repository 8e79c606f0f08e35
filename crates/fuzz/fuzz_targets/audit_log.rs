//! Any bytes as what `fuzz::audit_log` reads.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::audit_log(bytes));
