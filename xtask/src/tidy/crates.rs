//! The walls between crates, the licences of what we depend on, and a reason for each dependency.

use super::Findings;
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Which of our crates may import which: the drawing in `ARCHITECTURE.md`.
const WALLS: &[(&str, &[&str])] = &[
    ("moeba-kernels", &[]),
    ("moeba-text", &[]),
    ("moeba-model", &["moeba-kernels"]),
    // The engine's drawing stops at `model`; the pool it hands through is the kernels' type.
    ("moeba-engine", &["moeba-model", "moeba-kernels"]),
    ("moeba", &["moeba-kernels", "moeba-model", "moeba-engine", "moeba-text"]),
    ("xtask", &["moeba-kernels", "moeba-model", "moeba-engine", "moeba-text"]),
];

/// Checks imports, licences, build scripts, and that `DESIGN.md` explains every dependency.
pub(crate) fn check(root: &Path, findings: &mut Findings) -> Result<()> {
    let metadata = cargo_metadata(root)?;
    let design = std::fs::read_to_string(root.join("DESIGN.md")).context("DESIGN.md")?;
    let licences = allowed_licences(root)?;
    let members = array(&metadata["workspace_members"]);
    for package in array(&metadata["packages"]) {
        if members.contains(&package["id"]) {
            check_member(package, &design, findings);
        } else {
            check_licence(package, &licences, findings);
        }
    }
    Ok(())
}

fn check_member(package: &Value, design: &str, findings: &mut Findings) {
    let name = text(&package["name"]);
    let Some((_, may_import)) = WALLS.iter().find(|(member, _)| *member == name) else {
        findings.push(format!("{name}: a crate the layout does not know; see DESIGN.md"));
        return;
    };
    for dependency in array(&package["dependencies"]) {
        let (wanted, kind) = (text(&dependency["name"]), text(&dependency["kind"]));
        if wanted.starts_with("moeba") {
            if kind != "dev" && !may_import.contains(&wanted) {
                findings.push(format!("{name}: may not import `{wanted}`"));
            }
        } else if !design.contains(&format!("`{wanted}`")) {
            findings.push(format!("DESIGN.md:1: no sentence for the dependency `{wanted}`"));
        }
    }
    for target in array(&package["targets"]) {
        if array(&target["kind"]).iter().any(|kind| kind == "custom-build") {
            findings.push(format!("{name}: build scripts are not used here"));
        }
    }
}

/// A licence expression passes when one side of each `OR` is on the list of `deny.toml`.
fn check_licence(package: &Value, allowed: &[String], findings: &mut Findings) {
    let (name, licence) = (text(&package["name"]), text(&package["license"]));
    let passes = licence.replace(['(', ')'], "").replace('/', " OR ").split(" OR ").any(|choice| {
        choice.split(" AND ").all(|one| allowed.iter().any(|licence| licence == one.trim()))
    });
    if !passes {
        findings.push(format!("{name}: licence `{licence}` is not among those of deny.toml"));
    }
}

/// The `allow = [...]` list of `deny.toml`, so that both tools read one list.
fn allowed_licences(root: &Path) -> Result<Vec<String>> {
    let deny = std::fs::read_to_string(root.join("deny.toml")).context("deny.toml")?;
    let list = deny.split_once("allow = [").context("`allow` list in deny.toml")?.1;
    let list = list.split_once(']').context("end of the `allow` list in deny.toml")?.0;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_owned).collect())
}

fn cargo_metadata(root: &Path) -> Result<Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--locked"])
        .current_dir(root)
        .output()
        .context("could not start `cargo metadata`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
