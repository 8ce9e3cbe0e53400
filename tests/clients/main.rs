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
mod kube_rs;
mod kubectl;
mod python;

use std::path::PathBuf;

/// A script of this folder.
fn script(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("clients")
        .join(path)
}
