//! `cargo xtask schema`: regenerates the table of facts about the API's types.
//!
//! Two published descriptions of the same types are joined. The `generated.proto` files of the crate
//! `k8s-rs-pb` know protobuf tags, list types, merge keys and defaults; the crate `k8s-openapi` knows the
//! JSON names (which differ where a Go struct is embedded or a tag is spelled differently) and what is
//! required. Neither is a dependency of the product: this command asks cargo to fetch them into a
//! throw-away project and keeps nothing but the facts, which are checked in. A field that cannot be matched
//! fails the command, so a new API version cannot slip through half understood.

mod join;
mod openapi;
mod proto;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

/// The API version whose types are described; a folder name in both crates.
const VERSION: &str = "v1_35";
/// The types of the resource metrics API, which neither source has. They come last in the order of names.
const METRICS: &str = include_str!("schema/metrics.txt");
const OUTPUT: &str = "control-plane/machinery/src/schema/builtin.txt";

/// A project that depends on the two crates and nothing else; never compiled.
const PROJECT: &str = "\
[package]
name = \"schema-sources\"
version = \"0.0.0\"
edition = \"2024\"

[dependencies]
k8s-rs-pb = { version = \"=0.5.0\", default-features = false }
k8s-openapi = { version = \"=0.29.0\", features = [\"v1_35\"] }

[workspace]
";

/// Rewrites the checked-in table.
pub fn run() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("xtask lies in the repository")?;
    let (protos, openapi) = sources(&root.join("target/schema-sources"))?;
    let messages = proto::read(&protos.join("src").join(VERSION))?;
    let definitions = openapi::read(&openapi.join("src").join(VERSION))?;
    let table = join::join(&messages, &definitions)? + METRICS;
    let output = root.join(OUTPUT);
    fs::write(&output, &table).with_context(|| format!("writing {}", output.display()))?;
    println!("{}: {} lines", OUTPUT, table.lines().count());
    Ok(())
}

/// The files with this extension in a folder and below it.
fn files_below(root: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![root.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|its| its == extension) {
                files.push(path);
            }
        }
    }
    Ok(files)
}

/// The folders of `k8s-rs-pb` and `k8s-openapi`, fetched by cargo.
fn sources(project: &Path) -> Result<(PathBuf, PathBuf)> {
    fs::create_dir_all(project.join("src"))?;
    fs::write(project.join("Cargo.toml"), PROJECT)?;
    fs::write(project.join("src/lib.rs"), "")?;
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version", "1", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        .output()
        .context("running cargo metadata")?;
    ensure!(
        output.status.success(),
        "cargo metadata failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let folder = |name: &str| -> Result<PathBuf> {
        metadata["packages"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|package| package["name"] == name)
            .and_then(|package| package["manifest_path"].as_str())
            .and_then(|manifest| Path::new(manifest).parent())
            .map(Path::to_owned)
            .with_context(|| format!("cargo did not fetch {name}"))
    };
    Ok((folder("k8s-rs-pb")?, folder("k8s-openapi")?))
}
