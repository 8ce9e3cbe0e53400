//! Calls of cargo that agree with each other.
//!
//! Cargo compiles a dependency again for every different set of features or profile. So every build here
//! selects the whole workspace (one set of features) in the profile that xtask itself was built in: `release`
//! through the alias in `.cargo/config.toml`, `dev` through a plain `cargo run -p xtask`.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::layout;

/// Built for another target (bpfel-unknown-none) by the build script of `windlass-datapath`.
const EBPF_PROGRAMS: &str = "windlass-ebpf-programs";

/// `cargo <subcommand> --workspace --exclude <eBPF> [--release]`.
pub fn workspace(subcommand: &str) -> Command {
    let mut cargo = command();
    cargo
        .args(subcommand.split(' '))
        .args(["--workspace", "--exclude", EBPF_PROGRAMS]);
    cargo.args(profile_flag());
    cargo
}

/// Cargo itself, in the repository's root.
pub fn command() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(layout::repository());
    // Set by `cargo run` for xtask's own package; a nested cargo passes them on to build scripts,
    // which would see them change and run again.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(name);
        }
    }
    cargo
}

/// The flag of the profile that xtask was built in.
pub fn profile_flag() -> Option<&'static str> {
    (profile_folder() != "debug").then_some("--release")
}

/// The name of the profile that xtask was built in, as a configuration calls it.
pub fn profile() -> &'static str {
    profile_flag().map_or("dev", |_| "release")
}

/// The folder that holds xtask itself and every other binary of the same profile.
pub fn output() -> PathBuf {
    std::env::current_exe()
        .ok()
        .and_then(|exe| exe.parent().map(Path::to_path_buf))
        .unwrap_or_else(|| layout::repository().join("target/release"))
}

pub fn binary(name: &str) -> PathBuf {
    output().join(name)
}

/// xtask itself. Building the workspace may have put another file in the place of the one that runs, which the
/// kernel then calls "(deleted)": asked for by its path, it is the new one, of the same source.
pub fn own_binary() -> PathBuf {
    binary("xtask")
}

fn profile_folder() -> String {
    output()
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}
