//! Debian's package manager, for machines that have it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

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
pub fn debian_archive() -> Result<String> {
    if process::find_program("apt-get").is_none() {
        bail!("this machine has no apt-get");
    }
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
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
        .context("this machine's apt sources name no Debian archive")
}

/// One suite of Debian's archive, through an apt configuration of its own: the system's is left as it is.
pub struct Suite {
    folder: PathBuf,
}

impl Suite {
    /// Fetches the list of what `suite` of the archive holds into `folder`, which is emptied first.
    pub fn open(folder: &Path, archive: &str, suite: &str) -> Result<Self> {
        fs::remove_dir_all(folder).ok();
        for child in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(folder.join(child))
                .with_context(|| format!("creating {}", folder.display()))?;
        }
        let signed_by = match Path::new(KEYRING).is_file() {
            true => format!("[signed-by={KEYRING}] "),
            false => String::new(),
        };
        fs::write(
            folder.join("sources.list"),
            format!("deb {signed_by}{archive} {suite} main\n"),
        )?;
        let opened = Self {
            folder: folder.to_path_buf(),
        };
        process::output(opened.command("apt-get").arg("update"))?;
        Ok(opened)
    }

    /// Puts packages, each a name or `name=version`, into a folder.
    pub fn download(&self, folder: &Path, packages: &[&str]) -> Result<()> {
        let mut get = self.command("apt-get");
        process::output(get.current_dir(folder).arg("download").args(packages)).map(drop)
    }

    /// What is asked about packages.
    pub fn cache(&self) -> Command {
        self.command("apt-cache")
    }

    fn command(&self, program: &str) -> Command {
        let option = |name: &str, path: &str| format!("{name}={}/{path}", self.folder.display());
        let mut command = Command::new(program);
        command
            .args(["-q", "-o", &option("Dir::Etc::SourceList", "sources.list")])
            .args(["-o", "Dir::Etc::SourceParts=/dev/null"])
            .args(["-o", &option("Dir::State::Lists", "lists")])
            .args(["-o", &option("Dir::Cache", "cache")])
            // apt drops to its own user for downloads, who may not be allowed into the folder.
            .args(["-o", "APT::Sandbox::User=root"]);
        command
    }
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
