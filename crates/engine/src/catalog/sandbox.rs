//! What sandboxes can be made of: files of the catalog with `kind: sandbox`.

use api::ImageName;
use api::app::Limits;
use serde::Deserialize;

use crate::image::{IdRange, ImageSpec, Init};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SandboxFile {
    #[serde(rename = "kind")]
    _kind: String,
    id: String,
    title: String,
    description: String,
    limits: Limits,
    image: ImageSpec,
}

/// Something sandboxes can be made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxImage {
    /// Its name.
    pub id: ImageName,
    /// Its name for people.
    pub title: String,
    /// What it is, in a sentence.
    pub description: String,
    /// Limits a sandbox gets by default.
    pub limits: Limits,
    /// The image, base included.
    pub image: ImageSpec,
}

impl SandboxImage {
    /// Parses and checks one file with `kind: sandbox`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: SandboxFile = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        // Before the base is put below it, which gives it the ids of sandboxes.
        file.image
            .check_of_recipe(IdRange::Apps)
            .map_err(|e| format!("image: {e}"))?;
        let image = file.image.on_small_base();
        if !image.enable.is_empty() || !image.mask.is_empty() || image.init != Init::default() {
            return Err(
                "image: a sandbox has no init system and no units to enable or mask".into(),
            );
        }
        Ok(Self {
            id: file.id.parse().map_err(|e| format!("{e}"))?,
            title: file.title,
            description: file.description,
            limits: file.limits,
            image,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Catalog;

    #[test]
    fn the_default_image_is_there_and_has_no_init_system() {
        let catalog = Catalog::new(&[]).unwrap();
        let debian = catalog.sandbox("debian").unwrap();
        assert_eq!(debian.image.ids, IdRange::Sandboxes);
        assert!(!debian.image.packages.iter().any(|p| p.contains("systemd")));
        assert_eq!(catalog.sandboxes().count(), 1);
        assert!(catalog.sandbox("../debian").is_none());
    }

    #[test]
    fn what_a_sandbox_cannot_have_is_refused() {
        let text = include_str!("../../../../catalog/sandbox/debian.yml");
        let check = |from: &str, to: &str, expect: &str| {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let error = SandboxImage::parse(&changed).unwrap_err();
            assert!(error.contains(expect), "{error}");
        };
        check("image:\n", "image:\n  enable: [x.service]\n", "units");
        check("image:\n", "image:\n  init: openrc\n", "init system");
        check("image:\n", "image:\n  ids: sandboxes\n", "ids");
        check("kind: sandbox", "kind: sandbox\nport: 80", "port");
        check("id: debian", "id: ../x", "image name");
    }
}
