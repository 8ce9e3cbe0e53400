//! The source of Rust's `core`, which cargo compiles for the eBPF target (`-Z build-std=core`).
//!
//! `rustup component add rust-src` is the ordinary way. Where rustup's server cannot be reached, Debian's
//! archive carries the same source as a package of exactly the compiler's version, for every architecture.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::apt::{self, Suite};
use crate::process;

/// Suites that carry newer compilers than a stable release does, likeliest first.
const SUITES: [&str; 3] = ["trixie-backports", "testing", "unstable"];
const RUSTUP_LIMIT: Duration = Duration::from_secs(60);

pub fn present() -> bool {
    library().is_ok_and(|library| complete(&library))
}

pub fn install() -> Result<()> {
    let by_rustup = match process::find_program("rustup") {
        Some(rustup) => process::run_within(
            Command::new(rustup).args(["component", "add", "rust-src"]),
            RUSTUP_LIMIT,
        ),
        None => Err(anyhow::anyhow!("this machine has no rustup")),
    };
    let Err(rustup_error) = by_rustup else {
        return Ok(());
    };
    println!("  rustup cannot ({rustup_error:#}): trying Debian's package");
    install_from_debian(&library()?, &cache()?).with_context(|| {
        format!(
            "rust-src is missing: `rustup component add rust-src` ({rustup_error:#}), or unpack \
             the compiler's source so that `library/core` lies in {}",
            library().unwrap_or_default().display()
        )
    })
}

/// Downloads the package, unless an earlier run left it in `cache`, and unpacks its library into `library`.
pub fn install_from_debian(library: &Path, cache: &Path) -> Result<()> {
    let version = compiler_version()?;
    fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
    let package = match cached_package(cache, &version) {
        Some(package) => package,
        None => download(cache, &version)?,
    };
    unpack(&package, &version, library)
}

/// `<sysroot>/lib/rustlib/src/rust/library`
fn library() -> Result<PathBuf> {
    let sysroot = process::output(Command::new("rustc").args(["--print", "sysroot"]))?;
    Ok(Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library"))
}

fn complete(library: &Path) -> bool {
    library.join("core/src/lib.rs").is_file() && library.join("Cargo.lock").is_file()
}

fn compiler_version() -> Result<String> {
    let verbose = process::output(Command::new("rustc").arg("-vV"))?;
    verbose
        .lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .context("`rustc -vV` names no release")
}

/// Old versions leave the archive, so a package once found is kept outside of the target folder.
fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
        .context("neither HOME nor XDG_CACHE_HOME is set")?;
    Ok(base.join("windlass/rust-src"))
}

fn cached_package(cache: &Path, version: &str) -> Option<PathBuf> {
    fs::read_dir(cache)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // apt writes `rust-src_1.2.3+dfsg1-1_all.deb`, with a colon or tilde of the version escaped or not.
            name.starts_with(&format!("rust-src_{version}+")) && name.ends_with(".deb")
        })
}

/// Asks suite after suite through an apt configuration of our own, so that the system's is left as it is.
fn download(cache: &Path, version: &str) -> Result<PathBuf> {
    let archive = apt::debian_archive()?;
    for suite in SUITES {
        let apt = match Suite::open(&cache.join("apt"), &archive, suite) {
            Ok(apt) => apt,
            Err(error) => {
                println!("  {suite}: {error:#}");
                continue;
            }
        };
        let listed = process::output(apt.cache().args(["madison", "rust-src"]))?;
        let Some(exact) = exact_version(&listed, version) else {
            println!("  {suite} does not carry rust-src {version}");
            continue;
        };
        println!("  downloading rust-src {exact} from {suite}");
        apt.download(cache, &[&format!("rust-src={exact}")])?;
        fs::remove_dir_all(cache.join("apt")).ok();
        return cached_package(cache, version)
            .with_context(|| format!("apt-get left no package in {}", cache.display()));
    }
    bail!("none of {} carries rust-src {version}", SUITES.join(", "))
}

/// From `rust-src | 1.2.3+dfsg1-1 | http://… Packages` the version that belongs to the compiler.
fn exact_version(madison: &str, version: &str) -> Option<String> {
    madison
        .lines()
        .filter_map(|line| line.split('|').nth(1))
        .map(str::trim)
        .find(|candidate| candidate.starts_with(&format!("{version}+")))
        .map(str::to_owned)
}

/// Takes `usr/src/rustc-<version>/library` out of the package. It is built beside its place and renamed,
/// so that an interrupted run leaves nothing that looks complete.
fn unpack(package: &Path, version: &str, library: &Path) -> Result<()> {
    let parent = library
        .parent()
        .context("the library's folder has a parent")?;
    let partial = parent.join("library.partial");
    fs::remove_dir_all(&partial).ok();
    fs::create_dir_all(&partial).with_context(|| format!("creating {}", partial.display()))?;
    let mut deb = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(package)
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start dpkg-deb")?;
    let stream = deb
        .stdout
        .take()
        .context("dpkg-deb has a standard output")?;
    let prefix = format!("usr/src/rustc-{version}/library");
    let mut archive = tar::Archive::new(stream);
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let path = path.strip_prefix(".").unwrap_or(&path);
        if let Ok(inside) = path.strip_prefix(&prefix)
            && inside
                .components()
                .all(|part| matches!(part, std::path::Component::Normal(_)))
        {
            let target = partial.join(inside);
            if let Some(folder) = target.parent() {
                fs::create_dir_all(folder)?;
            }
            entry
                .unpack(&target)
                .with_context(|| format!("unpacking {}", path.display()))?;
        }
    }
    let status = deb.wait()?;
    if !status.success() || !complete(&partial) {
        fs::remove_file(package).ok();
        bail!(
            "{} is damaged ({status}); it was removed, try again",
            package.display()
        );
    }
    fs::remove_dir_all(library).ok();
    fs::rename(&partial, library).with_context(|| format!("moving into {}", library.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MADISON: &str = " rust-src | 1.95.0+dfsg1-2~bpo13+1 | https://a.example all Packages\n \
                            rust-src | 1.85.0+dfsg3-1 | https://a.example all Packages\n";

    #[test]
    fn the_package_has_exactly_the_compilers_version() {
        assert_eq!(
            exact_version(MADISON, "1.95.0").as_deref(),
            Some("1.95.0+dfsg1-2~bpo13+1")
        );
        assert_eq!(exact_version(MADISON, "1.9.0"), None);
        assert_eq!(exact_version(MADISON, "1.95"), None);
    }

    /// Downloads 45 MB, so only on request: `cargo test -p xtask -- --ignored`.
    #[test]
    #[ignore = "needs Debian's archive"]
    fn debians_package_unpacks_to_a_complete_library() {
        let folder = std::env::temp_dir().join(format!("windlass-rust-src-{}", std::process::id()));
        let library = folder.join("rust/library");
        install_from_debian(&library, &folder.join("cache")).unwrap();
        assert!(complete(&library));
        install_from_debian(&library, &folder.join("cache")).unwrap();
        assert!(complete(&library));
        fs::remove_dir_all(&folder).unwrap();
    }
}
