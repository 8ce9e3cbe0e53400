//! Compiles the eBPF programs with bpf-linker; `src/loader.rs` embeds the object.
//!
//! `core` for the BPF target is built from source, a `-Z` flag, hence RUSTC_BOOTSTRAP on
//! the stable compiler. It is set here, for the inner cargo alone: set for the whole
//! build, it would change what other crates' build scripts detect.
#![allow(
    unsafe_code,
    reason = "set_var, in a build script with a single thread"
)]
#![allow(clippy::disallowed_methods, reason = "as above")]

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    // Asked now: this program may have been built before the repository was moved.
    let programs = std::path::PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?)
        .ancestors()
        .nth(2)
        .context("the crate lies two folders below the workspace root")?
        .join("ebpf");
    // The types are part of the programs, but not of their folder.
    println!(
        "cargo:rerun-if-changed={}",
        programs.join("types/src").display()
    );
    // The rustup toolchain of the outer build; without rustup, aya-build uses what is on PATH.
    let toolchain = std::env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    // SAFETY: nothing else runs in this process yet.
    unsafe { std::env::set_var("RUSTC_BOOTSTRAP", "1") };
    let programs = programs.join("programs");
    let root_dir = programs
        .to_str()
        .context("the path of the programs is not UTF-8")?;
    aya_build::build_ebpf(
        [Package {
            name: "windlass-ebpf-programs",
            root_dir,
            ..Default::default()
        }],
        Toolchain::Custom(&toolchain),
    )
    .context(
        "building the eBPF programs failed; `cargo xtask setup` installs rust-src and bpf-linker",
    )
}
