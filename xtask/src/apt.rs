//! Debian's package manager, for machines that have it.

use std::fs;
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::process;

/// Installs packages; on a machine where that cannot be done, the error is the command to run.
pub fn install(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if process::find_program("apt-get").is_none() {
        bail!("this machine has no apt-get: install what Debian calls {list}");
    }
    if !process::is_root() {
        bail!("needs root: run `sudo apt-get install -y --no-install-recommends {list}`");
    }
    refresh_once()?;
    process::run(
        Command::new("apt-get")
            .args(["install", "-y", "-q", "--no-install-recommends"])
            .args(packages)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(std::process::Stdio::null()),
    )
    .with_context(|| format!("could not install {list}"))
}

/// The package lists of a fresh machine or image are empty or old: refreshed before the first install.
fn refresh_once() -> Result<()> {
    static REFRESHED: OnceLock<()> = OnceLock::new();
    if REFRESHED.get().is_none() {
        process::run(Command::new("apt-get").args(["update", "-q"]))?;
        REFRESHED.get_or_init(|| ());
    }
    Ok(())
}

/// The address of the Debian archive that this machine already uses.
pub fn debian_archive() -> Option<String> {
    let mut files = vec![std::path::PathBuf::from("/etc/apt/sources.list")];
    files.extend(
        fs::read_dir("/etc/apt/sources.list.d")
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path()),
    );
    files.sort();
    let texts: Vec<String> = files
        .iter()
        .filter_map(|file| fs::read_to_string(file).ok())
        .collect();
    texts
        .iter()
        .flat_map(|text| archives(text))
        .find(|uri| is_debian_archive(uri))
}

/// The addresses in a sources file, of either format: `URIs: <uri>...` or `deb [options] <uri> <suite> ...`.
fn archives(sources: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in sources.lines().map(str::trim) {
        if let Some(uris) = line.strip_prefix("URIs:") {
            found.extend(uris.split_whitespace().map(str::to_owned));
        } else if line.starts_with("deb ") {
            found.extend(
                line.split_whitespace()
                    .find(|word| word.contains("://"))
                    .map(str::to_owned),
            );
        }
    }
    found
}

/// The main archive carries every suite under `/debian`; security and other vendors' archives do not.
fn is_debian_archive(uri: &str) -> bool {
    uri.trim_end_matches('/').ends_with("/debian")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_of_sources_name_their_archives() {
        let deb822 =
            "Types: deb\n# a comment\nURIs: https://archive.example/debian\nSuites: stable\n";
        let one_line = "deb [signed-by=/k.gpg] https://archive.example/debian stable main\n";
        assert_eq!(archives(deb822), ["https://archive.example/debian"]);
        assert_eq!(archives(one_line), ["https://archive.example/debian"]);
        assert!(archives("# deb https://archive.example/debian stable main").is_empty());
    }

    #[test]
    fn only_the_main_archive_is_taken() {
        assert!(is_debian_archive("https://archive.example/debian/"));
        assert!(!is_debian_archive(
            "https://archive.example/debian-security"
        ));
        assert!(!is_debian_archive("https://archive.example/ubuntu"));
    }
}
