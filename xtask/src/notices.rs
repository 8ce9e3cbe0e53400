//! The licences that an image has to carry: ours, and those of every crate in its binary.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::dependencies::Closure;
use crate::layout;

const OURS: [&str; 3] = ["LICENSE", "LICENSE-MIT", "LICENSE-GPL-2.0"];

/// The files of this repository, and one that holds everybody else's: (name, content).
pub fn collect(closure: &Closure) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in OURS {
        let path = layout::repository().join(name);
        let content = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        files.push((name.to_owned(), content));
    }
    files.push(("THIRD-PARTY".to_owned(), third_party(closure)?.into_bytes()));
    Ok(files)
}

/// Each text once, under the names of all crates that have it: most are one of a few.
fn third_party(closure: &Closure) -> Result<String> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut list = String::from(
        "This program contains the following crates, and the GNU C library (LGPL-2.1-or-later), linked\n\
         statically; its source and that of this program allow to link it anew.\n\n",
    );
    for it in closure.crates.iter().filter(|it| !it.is_ours()) {
        let license = it.license.as_deref().unwrap_or("see its text below");
        writeln!(list, "{} {}: {license}", it.name, it.version)?;
        for text in texts(&it.folder)? {
            users
                .entry(text)
                .or_default()
                .push(format!("{} {}", it.name, it.version));
        }
    }
    for (text, crates) in users {
        write!(
            list,
            "\n{:=<80}\n{}\n\n{}\n",
            "",
            crates.join(", "),
            text.trim_end()
        )?;
    }
    Ok(list)
}

fn texts(folder: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("listing {}", folder.display()))?;
    let mut files: Vec<_> = entries
        .filter_map(|entry| entry.ok())
        .filter(|entry| is_notice(&entry.file_name().to_string_lossy()))
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
        .iter()
        .map(|path| {
            let content = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            Ok(String::from_utf8_lossy(&content).into_owned())
        })
        .collect()
}

fn is_notice(name: &str) -> bool {
    let upper = name.to_ascii_uppercase();
    [
        "LICENSE",
        "LICENCE",
        "COPYING",
        "NOTICE",
        "COPYRIGHT",
        "UNLICENSE",
    ]
    .iter()
    .any(|start| upper.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn licence_files_are_known_by_their_names() {
        for name in ["LICENSE", "LICENSE-MIT", "license.md", "COPYING", "NOTICE"] {
            assert!(is_notice(name), "{name}");
        }
        for name in ["README.md", "Cargo.toml", "lib.rs"] {
            assert!(!is_notice(name), "{name}");
        }
    }
}
