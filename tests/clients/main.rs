//! The API as official clients of other languages see it: nobody here wrote those, so what they expect is what
//! Kubernetes' users expect.
//!
//! Each test starts a control plane of its own, without nodes. kubectl plays transcripts against it; a client of another
//! language is installed from its package registry into a temporary folder, and runs a script that does with it what
//! programs do. Where the language, its installer or the registry is not there, the test says so and passes: it would
//! say nothing about the product.

#![allow(
    clippy::unwrap_used,
    reason = "clippy does not know helpers of tests as tests"
)]
#![allow(
    clippy::print_stdout,
    reason = "what is left out is told beside the tests' results"
)]
#![allow(
    unreachable_pub,
    reason = "a test binary has no outside to be reached from"
)]

mod control_plane;
mod javascript;
mod kubectl;
mod python;

use std::path::PathBuf;
use std::process::{Command, Output};

/// A script of this folder.
fn script(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(path)
}

/// Runs an installer; `None`, with the reason told, where it cannot install.
fn installed(what: &str, command: &mut Command) -> Option<()> {
    match command.output() {
        Ok(output) if output.status.success() => Some(()),
        Ok(output) => {
            let why = String::from_utf8_lossy(&output.stderr).into_owned();
            println!("left out: {what} could not be installed: {}", why.trim());
            None
        }
        Err(error) => {
            println!("left out: {what} is not available here: {error}");
            None
        }
    }
}

/// The script's checks all held.
fn assert_passed(output: &Output) {
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
