//! The documentation shows only files that the engine takes.

use engine::catalog::{Recipe, SandboxImage};
use engine::config::Config;

/// The fenced blocks of YAML on a page.
fn yaml_blocks(page: &str) -> Vec<&str> {
    let after_fences = page.split("```yaml\n").skip(1);
    after_fences
        .map(|rest| rest.split_once("```").unwrap().0)
        .collect()
}

#[test]
fn the_configuration_page_shows_the_defaults_and_files_that_parse() {
    let page = include_str!("../../../../docs/configuration.md");
    let blocks = yaml_blocks(page);
    assert_eq!(
        Config::parse(blocks[0]).unwrap(),
        Config::built_in().unwrap()
    );
    for block in blocks {
        assert!(Config::parse(block).is_ok(), "{block}");
    }
}

#[test]
fn the_catalog_page_shows_files_that_check() {
    let page = include_str!("../../../../docs/catalog.md");
    let blocks = yaml_blocks(page);
    assert!(!blocks.is_empty());
    for block in blocks {
        let checked = if block.contains("kind: sandbox") {
            SandboxImage::parse(block).map(drop)
        } else {
            Recipe::parse(block).map(drop)
        };
        assert!(checked.is_ok(), "{checked:?}");
    }
}

#[test]
fn the_installed_file_changes_nothing_until_a_setting_is_taken_in() {
    let file = include_str!("../../../../packaging/config.yml");
    let built_in = Config::built_in().unwrap();
    assert_eq!(Config::parse(file).unwrap(), built_in);
    let (head, settings) = file.split_once("\n\n").unwrap();
    assert!(head.lines().all(|line| line.starts_with("# ")), "{head}");
    let settings: Vec<&str> = settings
        .lines()
        .map(|line| line.strip_prefix('#').unwrap_or(line))
        .collect();
    assert_eq!(Config::parse(&settings.join("\n")).unwrap(), built_in);
}
