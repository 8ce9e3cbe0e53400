//! `cargo xtask test`: unit tests, datapath tests in network namespaces of their own, and the whole system.

use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::{cargo, down, preflight, process, supervise, up};

pub fn run(arguments: &[String]) -> Result<()> {
    let (suites, runner_arguments) = match arguments.iter().position(|word| word == "--") {
        Some(at) => (&arguments[..at], &arguments[at + 1..]),
        None => (arguments, &[][..]),
    };
    match suites {
        [] => {
            // Every suite runs, so that one failure does not hide another.
            let outcomes = [
                ("unit", unit(&[])),
                ("datapath", datapath(&[])),
                ("e2e", end_to_end(&[])),
            ];
            let mut failed = Vec::new();
            for (suite, outcome) in outcomes {
                if let Err(error) = outcome {
                    eprintln!("{suite}: {error:#}");
                    failed.push(suite);
                }
            }
            if !failed.is_empty() {
                bail!("failed: {}", failed.join(", "));
            }
            println!("test: unit, datapath and e2e passed");
            Ok(())
        }
        [suite] if suite == "unit" => unit(runner_arguments),
        [suite] if suite == "datapath" => datapath(runner_arguments),
        [suite] if suite == "e2e" => end_to_end(runner_arguments),
        _ => bail!("usage: cargo xtask test [unit|datapath|e2e] [-- ARGS]"),
    }
}

fn unit(arguments: &[String]) -> Result<()> {
    println!("test: unit");
    process::run(runner(&[]).args(arguments))
}

fn datapath(arguments: &[String]) -> Result<()> {
    preflight::require_root("test datapath")?;
    println!("test: datapath");
    process::run(runner(&["--test", "datapath"]).args(arguments))
}

/// Against the cluster that runs, or one that is brought up for it and taken down whatever happens.
fn end_to_end(arguments: &[String]) -> Result<()> {
    preflight::require_root("test e2e")?;
    println!("test: e2e");
    let tests = |arguments: &[String]| {
        process::run(
            runner(&["--test", "e2e"])
                .args(arguments)
                .env("WINDLASS_XTASK", cargo::own_binary()),
        )
    };
    if supervise::running().is_some() {
        return tests(arguments);
    }
    let outcome = up::run(&[]).and_then(|()| tests(arguments));
    let down = down::stop(&Progress::start());
    outcome.and(down)
}

/// `cargo test` of the whole workspace, or of the test targets named.
fn runner(targets: &[&str]) -> Command {
    let mut command = cargo::workspace("test");
    command.args(targets);
    // Arguments that follow are those of the test program.
    command.arg("--");
    command
}
