//! Says what the program is built from, for `/version`.
//!
//! Asked once for a target folder, not at each commit: a build that is repeated while somebody works would link
//! anew each time for it. A clean build, as of a release, is right.

use std::process::Command;

fn git(arguments: &[&str]) -> Option<String> {
    output("git", arguments)
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let commit = git(&["rev-parse", "HEAD"]).unwrap_or_default();
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).unwrap_or_default();
    let tree = if changed.is_empty() { "clean" } else { "dirty" };
    let date = git(&["show", "-s", "--format=%cI", "HEAD"]);
    let date = date.unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned());
    let rustc = std::env::var("RUSTC").unwrap_or_else(|_| "rustc".to_owned());
    let compiler = output(&rustc, &["--version"]).unwrap_or_default();
    // `rustc 1.95.0 (…)`
    let compiler = compiler.split(' ').nth(1).unwrap_or_default();
    println!("cargo::rustc-env=WINDLASS_RUSTC={compiler}");
    println!("cargo::rustc-env=WINDLASS_COMMIT={commit}");
    println!("cargo::rustc-env=WINDLASS_TREE={tree}");
    println!("cargo::rustc-env=WINDLASS_DATE={date}");
}
