//! `cargo xtask check`: what a reviewer should not have to look for.
//!
//! Lints run in the same profile as everything else, so that build scripts and macros are compiled once. The
//! eBPF programs are linted for their own target by the build of `windlass-datapath`.

use std::process::Command;

use anyhow::{Result, bail};

use crate::{cargo, layout, process};

const SYSTEM_TESTS: [&str; 6] = ["--test", "datapath", "--test", "e2e", "--test", "clients"];

pub fn run() -> Result<()> {
    let mut failed = Vec::new();
    let mut step = |name: &'static str, command: &mut Command| {
        println!("check: {name}");
        if let Err(error) = process::run(command) {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    };
    step("format", cargo::command().args(["fmt", "--all", "--check"]));
    step(
        "lints",
        cargo::workspace("clippy").args(["--all-targets", "--", "-D", "warnings"]),
    );
    // Left out of `--all-targets`, because they do not run without a cluster or a kernel of their own.
    step(
        "lints of the system tests",
        cargo::workspace("clippy")
            .args(SYSTEM_TESTS)
            .args(["--", "-D", "warnings"]),
    );
    match process::find_program("cargo-deny") {
        Some(_) => step(
            "dependencies",
            cargo::command().args(["deny", "--offline", "check", "licenses", "bans", "sources"]),
        ),
        None => println!("check: dependencies skipped, cargo-deny is not installed"),
    }
    match process::find_program("typos") {
        Some(typos) => step(
            "spelling",
            Command::new(typos).current_dir(layout::repository()),
        ),
        None => println!("check: spelling skipped, typos is not installed"),
    }
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    println!("check: all is well");
    Ok(())
}
