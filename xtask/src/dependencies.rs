//! The crates that a binary is made of, as cargo resolved them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{cargo, layout, process};

/// A crate of the closure; ordered by name and version, so that what is written from it is the same each time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Crate {
    pub name: String,
    pub version: String,
    /// As its manifest says, an SPDX expression or the older `A/B`.
    pub license: Option<String>,
    /// SHA-256 of its archive; a crate of this repository has none.
    pub checksum: Option<String>,
    pub folder: PathBuf,
}

impl Crate {
    pub fn is_ours(&self) -> bool {
        self.folder.starts_with(layout::repository())
    }
}

pub struct Closure {
    pub crates: Vec<Crate>,
    /// Indices into `crates`: who needs whom.
    pub edges: Vec<(usize, usize)>,
}

/// Everything that is linked into the packages named `roots`, on this machine's platform. Build scripts and
/// tests are left out: nothing of them is in the binary.
pub fn closure(roots: &[&str]) -> Result<Closure> {
    let host = host_triple()?;
    let metadata = process::output(cargo::command().args([
        "metadata",
        "--format-version=1",
        "--locked",
        "--filter-platform",
        &host,
    ]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("reading cargo's metadata")?;
    let lock = fs::read_to_string(layout::repository().join("Cargo.lock"))
        .context("reading Cargo.lock")?;
    walk(&metadata, &checksums(&lock), roots)
}

fn host_triple() -> Result<String> {
    let said = process::output(std::process::Command::new("rustc").arg("-vV"))?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc names no host")
}

fn walk(
    metadata: &Value,
    checksums: &HashMap<(String, String), String>,
    roots: &[&str],
) -> Result<Closure> {
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: HashMap<String, Crate> = list(&metadata["packages"])
        .iter()
        .map(|package| {
            let (name, version) = (text(&package["name"]), text(&package["version"]));
            let manifest = PathBuf::from(text(&package["manifest_path"]));
            let known = Crate {
                checksum: checksums.get(&(name.clone(), version.clone())).cloned(),
                license: package["license"].as_str().map(str::to_owned),
                folder: manifest.parent().map(PathBuf::from).unwrap_or_default(),
                name,
                version,
            };
            (text(&package["id"]), known)
        })
        .collect();
    let needs: HashMap<String, Vec<String>> = list(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            let linked = list(&node["deps"])
                .iter()
                .filter(|dep| {
                    list(&dep["dep_kinds"])
                        .iter()
                        .any(|kind| kind["kind"].is_null())
                })
                .map(|dep| text(&dep["pkg"]))
                .collect();
            (text(&node["id"]), linked)
        })
        .collect();

    let mut wanted: Vec<String> = Vec::new();
    for root in roots {
        let id = packages
            .iter()
            .find(|(_, package)| package.name == *root && package.is_ours())
            .map(|(id, _)| id.clone())
            .with_context(|| format!("no package is called {root}"))?;
        wanted.push(id);
    }
    let mut seen = BTreeSet::new();
    while let Some(id) = wanted.pop() {
        if seen.insert(id.clone()) {
            wanted.extend(needs.get(&id).cloned().unwrap_or_default());
        }
    }
    let sorted: BTreeMap<&Crate, &String> = seen
        .iter()
        .filter_map(|id| Some((packages.get(id)?, id)))
        .collect();
    let index: HashMap<&String, usize> = sorted
        .values()
        .enumerate()
        .map(|(at, id)| (*id, at))
        .collect();
    let mut edges: Vec<(usize, usize)> = index
        .iter()
        .flat_map(|(id, from)| {
            needs
                .get(*id)
                .into_iter()
                .flatten()
                .map(move |to| (*from, to))
        })
        .filter_map(|(from, to)| Some((from, *index.get(to)?)))
        .collect();
    edges.sort_unstable();
    edges.dedup();
    Ok(Closure {
        crates: sorted.into_keys().cloned().collect(),
        edges,
    })
}

/// The archives' checksums, which cargo's metadata leaves out.
fn checksums(lock: &str) -> HashMap<(String, String), String> {
    let value = |line: &str, key: &str| {
        let rest = line.strip_prefix(key)?.strip_prefix(" = \"")?;
        Some(rest.strip_suffix('"')?.to_owned())
    };
    lock.split("[[package]]")
        .filter_map(|entry| {
            let find = |key| entry.lines().find_map(|line| value(line, key));
            Some(((find("name")?, find("version")?), find("checksum")?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_is_linked_belongs_to_a_binary() {
        let ours = layout::repository().join("agent/Cargo.toml");
        let package = |name: &str, path: &str| json!({"id": name, "name": name, "version": "1.0.0", "license": "MIT", "manifest_path": path});
        let metadata = json!({
            "packages": [
                package("agent", &ours.display().to_string()),
                package("linked", "/r/linked/Cargo.toml"),
                package("builder", "/r/builder/Cargo.toml"),
            ],
            "resolve": {"nodes": [
                {"id": "agent", "deps": [
                    {"pkg": "linked", "dep_kinds": [{"kind": null}, {"kind": "build"}]},
                    {"pkg": "builder", "dep_kinds": [{"kind": "build"}]},
                ]},
                {"id": "linked", "deps": []},
            ]},
        });
        let lock = "version = 4\n\n[[package]]\nname = \"linked\"\nversion = \"1.0.0\"\nsource = \"x\"\nchecksum = \"abc\"\n";
        let closure = walk(&metadata, &checksums(lock), &["agent"]).unwrap();
        let names: Vec<&str> = closure.crates.iter().map(|it| it.name.as_str()).collect();
        assert_eq!(names, ["agent", "linked"]);
        assert_eq!(closure.edges, [(0, 1)]);
        assert_eq!(closure.crates[1].checksum.as_deref(), Some("abc"));
        assert!(closure.crates[0].is_ours() && !closure.crates[1].is_ours());
        assert!(walk(&metadata, &HashMap::new(), &["absent"]).is_err());
    }
}
