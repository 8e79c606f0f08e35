//! Tells the linker how the static agent is put together.

/// A program that may lie anywhere in memory has 8,000 places that are set when it starts. In the short form of them
/// (`DT_RELR`) they take 3 KiB instead of 200. A static program brings what reads it; a dynamic one would need a
/// C library of 2022 or newer, so it stays as it is.
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let has = |name: &str, value: &str| {
        std::env::var(name).is_ok_and(|all| all.split(',').any(|one| one == value))
    };
    if has("CARGO_CFG_TARGET_FEATURE", "crt-static") && has("CARGO_CFG_TARGET_OS", "linux") {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}
