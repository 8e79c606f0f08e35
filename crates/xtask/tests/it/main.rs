//! The rules of the source tree, on the source tree.
#![cfg(test)]

use std::fs;

fn clean(findings: &[String]) {
    assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
}

#[test]
fn crates_depend_on_each_other_as_the_table_says() {
    let metadata = xtask::metadata(&xtask::root()).unwrap();
    clean(&xtask::arrows::findings(&metadata).unwrap());
}

#[test]
fn sources_keep_the_rules() {
    clean(&xtask::sources::findings_in_tree(&xtask::root()).unwrap());
}

#[test]
fn every_dependency_is_explained() {
    let read = |name: &str| fs::read_to_string(xtask::root().join(name)).unwrap();
    clean(
        &xtask::dependencies::findings(&read("Cargo.toml"), &read("docs/dependencies.md")).unwrap(),
    );
}
