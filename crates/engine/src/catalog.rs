//! The catalog: recipes, parsed and checked. A recipe says which image, which files, which port,
//! and how readiness shows. Built-in ones are compiled in; a machine may add its own. Files with
//! `kind: sandbox` say what sandboxes can be made of.

mod sandbox;

use std::collections::BTreeMap;

use api::app::{Limits, RecipeParameter};
use api::{ImageName, RecipeId};
use serde::Deserialize;
use wire::gateway::Readiness;

pub use sandbox::SandboxImage;

use crate::image::{IdRange, ImageSpec, check_guest_path, parse_mode};

/// The recipes that come with the binary.
const BUILT_IN: &[(&str, &str)] = &[
    ("nginx.yml", include_str!("../../../catalog/nginx.yml")),
    (
        "nginx-openrc.yml",
        include_str!("../../../catalog/nginx-openrc.yml"),
    ),
    (
        "static-site.yml",
        include_str!("../../../catalog/static-site.yml"),
    ),
];

/// The sandbox images that come with the binary.
const BUILT_IN_SANDBOXES: &[(&str, &str)] = &[(
    "sandbox/debian.yml",
    include_str!("../../../catalog/sandbox/debian.yml"),
)];

/// What says which kind of file it is, before the rest is looked at.
#[derive(Debug, Deserialize)]
struct KindOnly {
    kind: Option<String>,
}

/// Sections that the parser sees as they stand in the file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecipeFile {
    #[serde(default, rename = "kind")]
    _kind: Option<String>,
    id: String,
    title: String,
    description: String,
    port: u16,
    readiness: ReadinessSection,
    limits: Limits,
    #[serde(default)]
    parameters: BTreeMap<String, ParameterSection>,
    image: ImageSpec,
    #[serde(default)]
    files: Vec<FileSection>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadinessSection {
    http: Option<String>,
    #[serde(default)]
    tcp: bool,
    #[serde(default = "half_a_minute")]
    timeout_s: u32,
}

fn half_a_minute() -> u32 {
    30
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ParameterSection {
    description: String,
    #[serde(default)]
    required: bool,
    #[serde(default = "four_kib")]
    max_bytes: usize,
}

fn four_kib() -> usize {
    4096
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSection {
    path: String,
    content: Option<String>,
    from: Option<String>,
    #[serde(default)]
    mode: Option<String>,
}

/// A checked recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    /// Its id.
    pub id: RecipeId,
    /// Its name for people.
    pub title: String,
    /// What it is, in a sentence.
    pub description: String,
    /// The port the app answers on.
    pub port: u16,
    /// What counts as the app's own answer.
    pub readiness: Readiness,
    /// How long the first answer may take, in seconds.
    pub ready_timeout_s: u32,
    /// Limits an instance gets by default.
    pub limits: Limits,
    /// What can be set at deploy.
    pub parameters: Vec<Parameter>,
    /// The image, base included.
    pub image: ImageSpec,
    files: Vec<RecipeGuestFile>,
}

/// Something that can be set at deploy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameter {
    /// Its key, what it does, and whether it must be given.
    pub summary: RecipeParameter,
    /// The longest value, in bytes.
    pub max_bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct RecipeGuestFile {
    path: String,
    mode: u32,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Source {
    Text(String),
    /// The whole value of a parameter. Values are never spliced into text of ours.
    Parameter(String),
}

/// A file that is written into a guest before its first start.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct GuestFile {
    /// Absolute path in the guest.
    pub path: String,
    /// Permissions.
    pub mode: u32,
    /// Its text.
    pub content: String,
}

// The text may be a parameter's value, and that a secret.
impl std::fmt::Debug for GuestFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GuestFile({}, {} bytes)", self.path, self.content.len())
    }
}

impl Recipe {
    /// Parses and checks one recipe.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: RecipeFile = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        let id: RecipeId = file.id.parse().map_err(|e| format!("{e}"))?;
        if file.port == 0 {
            return Err("port: 0 is not a port".into());
        }
        let readiness = match (file.readiness.http, file.readiness.tcp) {
            (Some(path), false) if check_http_path(&path) => Readiness::Http { path },
            (None, true) => Readiness::Tcp,
            _ => return Err("readiness: give `http: /path` or `tcp: true`".into()),
        };
        let image = file.image.on_base();
        image
            .check_of_recipe(IdRange::Apps)
            .map_err(|e| format!("image: {e}"))?;
        let parameters: Vec<Parameter> = file
            .parameters
            .into_iter()
            .map(|(name, p)| Parameter {
                summary: RecipeParameter {
                    name,
                    description: p.description,
                    required: p.required,
                },
                max_bytes: p.max_bytes,
            })
            .collect();
        let mut files = file
            .files
            .into_iter()
            .map(|f| check_file(f, &parameters))
            .collect::<Result<Vec<_>, _>>()?;
        if !file.environment.is_empty() {
            files.push(environment_file(&file.environment)?);
        }
        Ok(Self {
            id,
            title: file.title,
            description: file.description,
            port: file.port,
            readiness,
            ready_timeout_s: file.readiness.timeout_s.clamp(1, 600),
            limits: file.limits,
            parameters,
            image,
            files,
        })
    }

    /// The files of one instance, made of the recipe's and the values given at deploy.
    pub fn files(&self, config: &BTreeMap<String, String>) -> Result<Vec<GuestFile>, String> {
        for key in config.keys() {
            if !self.parameters.iter().any(|p| p.summary.name == *key) {
                let known: Vec<_> = self
                    .parameters
                    .iter()
                    .map(|p| p.summary.name.as_str())
                    .collect();
                return Err(format!(
                    "recipe {} has no parameter {key:?}; known: {}",
                    self.id,
                    if known.is_empty() {
                        "none".to_owned()
                    } else {
                        known.join(", ")
                    }
                ));
            }
        }
        for p in &self.parameters {
            match config.get(&p.summary.name) {
                None if p.summary.required => {
                    return Err(format!(
                        "parameter {:?} must be given ({})",
                        p.summary.name, p.summary.description
                    ));
                }
                Some(v) if v.len() > p.max_bytes => {
                    return Err(format!(
                        "parameter {:?} has {} bytes, at most {} are allowed",
                        p.summary.name,
                        v.len(),
                        p.max_bytes
                    ));
                }
                _ => {}
            }
        }
        let files = self.files.iter().filter_map(|f| {
            let content = match &f.source {
                Source::Text(t) => t.clone(),
                Source::Parameter(p) => config.get(p)?.clone(),
            };
            Some(GuestFile {
                path: f.path.clone(),
                mode: f.mode,
                content,
            })
        });
        Ok(files.collect())
    }
}

fn check_http_path(path: &str) -> bool {
    path.starts_with('/')
        && path.len() <= 200
        && path
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "/-._~%?=&".contains(c))
}

fn check_file(file: FileSection, parameters: &[Parameter]) -> Result<RecipeGuestFile, String> {
    check_guest_path(&file.path).map_err(|e| format!("files: {e}"))?;
    let source = match (file.content, file.from) {
        (Some(text), None) => Source::Text(text),
        (None, Some(p)) if parameters.iter().any(|q| q.summary.name == p) => Source::Parameter(p),
        (None, Some(p)) => return Err(format!("files: {}: no parameter {p:?}", file.path)),
        _ => return Err(format!("files: {}: give `content` or `from`", file.path)),
    };
    Ok(RecipeGuestFile {
        mode: parse_mode(file.mode.as_deref().unwrap_or("0644"))?,
        path: file.path,
        source,
    })
}

/// `/etc/proximity/environment` in the form of systemd's `EnvironmentFile=`: one quoted value a line.
fn environment_file(environment: &BTreeMap<String, String>) -> Result<RecipeGuestFile, String> {
    let mut text = String::new();
    for (key, value) in environment {
        let legal_key = !key.is_empty()
            && !key.starts_with(|c: char| c.is_ascii_digit())
            && key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !legal_key
            || value
                .chars()
                .any(|c| c.is_control() || matches!(c, '"' | '\\' | '$' | '`'))
        {
            return Err(format!("environment: {key:?} can't be written"));
        }
        text.push_str(&format!("{key}=\"{value}\"\n"));
    }
    Ok(RecipeGuestFile {
        path: "/etc/proximity/environment".into(),
        mode: 0o600,
        source: Source::Text(text),
    })
}

/// All recipes of this controller.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    recipes: BTreeMap<RecipeId, Recipe>,
    sandboxes: BTreeMap<ImageName, SandboxImage>,
}

impl Catalog {
    /// The built-in recipes and further ones (file name, text), which win over built-in ones of
    /// the same id.
    pub fn new(further: &[(String, String)]) -> Result<Self, String> {
        let mut catalog = Self::default();
        let built_in = BUILT_IN.iter().chain(BUILT_IN_SANDBOXES);
        let built_in = built_in.map(|(n, t)| ((*n).to_owned(), (*t).to_owned()));
        for (name, text) in built_in.chain(further.iter().cloned()) {
            catalog.add(&text).map_err(|e| format!("{name}: {e}"))?;
        }
        Ok(catalog)
    }

    fn add(&mut self, text: &str) -> Result<(), String> {
        let kind: KindOnly = serde_saphyr::from_str(text).map_err(|e| e.to_string())?;
        match kind.kind.as_deref() {
            None | Some("app") => {
                let recipe = Recipe::parse(text)?;
                self.recipes.insert(recipe.id.clone(), recipe);
            }
            Some("sandbox") => {
                let image = SandboxImage::parse(text)?;
                self.sandboxes.insert(image.id.clone(), image);
            }
            Some(other) => return Err(format!("kind: {other:?} is neither `app` nor `sandbox`")),
        }
        Ok(())
    }

    /// One image that sandboxes can be made of.
    pub fn sandbox(&self, name: &str) -> Option<&SandboxImage> {
        let name: ImageName = name.parse().ok()?;
        self.sandboxes.get(&name)
    }

    /// All images that sandboxes can be made of, by name.
    pub fn sandboxes(&self) -> impl Iterator<Item = &SandboxImage> {
        self.sandboxes.values()
    }

    /// One recipe.
    pub fn get(&self, id: &str) -> Option<&Recipe> {
        id.parse::<RecipeId>()
            .ok()
            .and_then(|id| self.recipes.get(&id))
    }

    /// All recipes by id.
    pub fn iter(&self) -> impl Iterator<Item = &Recipe> {
        self.recipes.values()
    }

    /// The id that looks most like a mistyped one.
    pub fn nearest(&self, id: &str) -> Option<&RecipeId> {
        self.recipes
            .keys()
            .min_by_key(|k| strsim::damerau_levenshtein(k.as_str(), id))
            .filter(|k| strsim::damerau_levenshtein(k.as_str(), id) <= 3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_built_in_recipes_are_sound() {
        let catalog = Catalog::new(&[]).unwrap();
        let nginx = catalog.get("nginx").unwrap();
        assert_eq!(nginx.port, 80);
        assert!(nginx.files(&BTreeMap::new()).unwrap().is_empty());
        let site = catalog.get("static-site").unwrap();
        assert!(
            site.files(&BTreeMap::new())
                .unwrap_err()
                .contains("index_html")
        );
        assert_eq!(
            nginx.image.digest(),
            site.image.digest(),
            "one image serves both"
        );
        let openrc = catalog.get("nginx-openrc").unwrap();
        assert_eq!(openrc.image.init, crate::image::Init::Openrc);
        assert_eq!(catalog.nearest("ngnix").unwrap().as_str(), "nginx");
        assert!(catalog.nearest("postgresql").is_none());
    }

    #[test]
    fn parameters_are_checked() {
        let catalog = Catalog::new(&[]).unwrap();
        let nginx = catalog.get("nginx").unwrap();
        let set = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        assert_eq!(
            nginx.files(&set("index_html", "hi")).unwrap()[0].content,
            "hi"
        );
        assert!(
            nginx
                .files(&set("port", "81"))
                .unwrap_err()
                .contains("known: index_html")
        );
        assert!(
            nginx
                .files(&set("index_html", &"x".repeat(300_000)))
                .unwrap_err()
                .contains("at most")
        );
    }

    #[test]
    fn a_recipe_cannot_smuggle() {
        let base = "id: x\ntitle: x\ndescription: x\nport: 80\nlimits: {cpu_millis: 100, memory_mb: 64, pids: 50}\n";
        let check = |rest: &str, ok: bool| {
            let got = Recipe::parse(&format!("{base}{rest}"));
            assert_eq!(got.is_ok(), ok, "{rest}: {got:?}");
        };
        check("readiness: {tcp: true}\nimage: {}\n", true);
        check("readiness: {}\nimage: {}\n", false);
        check("readiness: {http: '/a b'}\nimage: {}\n", false);
        check(
            "readiness: {tcp: true}\nimage: {packages: ['--setup-hook=x']}\n",
            false,
        );
        check(
            "readiness: {tcp: true}\nimage: {}\nfiles: [{path: /../etc/x, content: a}]\n",
            false,
        );
        check(
            "readiness: {tcp: true}\nimage: {}\nenvironment: {A: \"x\\ny\"}\n",
            false,
        );
        check("readiness: {tcp: true}\nimage: {}\nbogus: 1\n", false);
    }
}
