//! `cargo xtask test`: unit tests, datapath tests in network namespaces of their own, the datapath on other
//! kernels, clients of other languages, and the whole system.

use std::process::Command;

use anyhow::{Result, bail};

use crate::progress::Progress;
use crate::{cargo, down, kernels, preflight, process, supervise, up};

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
                ("kernels", kernels::test(&[], &[])),
                ("clients", clients(&[])),
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
            println!("test: unit, datapath, kernels, clients and e2e passed");
            Ok(())
        }
        [suite] if suite == "unit" => unit(runner_arguments),
        [suite] if suite == "datapath" => datapath(runner_arguments),
        [suite, of @ ..] if suite == "kernels" => kernels::test(of, runner_arguments),
        [suite] if suite == "clients" => clients(runner_arguments),
        [suite] if suite == "e2e" => end_to_end(runner_arguments),
        _ => bail!(
            "usage: cargo xtask test [unit|datapath|kernels [SUITE...]|clients|e2e] [-- ARGS]"
        ),
    }
}

fn unit(arguments: &[String]) -> Result<()> {
    println!("test: unit");
    let all = process::run(runner(&[]).args(arguments));
    if !arguments.is_empty() || process::find_program("etcd").is_none() {
        return all;
    }
    // What holds for the API holds on either store.
    println!("test: unit: the API on etcd");
    all.and(process::run(
        runner(&["--test", "api"]).env("WINDLASS_TEST_STORE", "etcd"),
    ))
}

fn datapath(arguments: &[String]) -> Result<()> {
    preflight::require_root("test datapath")?;
    println!("test: datapath");
    process::run(runner(&["--test", "datapath"]).args(arguments))
}

/// Clients of other languages against a control plane without nodes; needs no root.
fn clients(arguments: &[String]) -> Result<()> {
    println!("test: clients");
    process::run(&mut cargo::workspace("build --bins"))?;
    process::run(runner(&["--test", "clients"]).args(arguments))
}

/// Tests of this module need a cluster of several nodes; all others are made for one.
const OF_SEVERAL_NODES: &str = "nodes::";
const SEVERAL: usize = 3;
/// Tests of this one need a cluster that has both families as well; others use what there is.
const OF_BOTH_FAMILIES: &str = "nodes::families::";
/// These are also asked of a cluster that has neither IPv4 nor routes between its nodes.
const OF_ANY_WAY: [&str; 2] = [
    "nodes::pods_of_all_nodes",
    "nodes::every_node_answers_for_the_pods",
];

/// Against the cluster that runs, or ones that are brought up for it and taken down whatever happens: one node
/// for most tests, then several for those that need them.
fn end_to_end(arguments: &[String]) -> Result<()> {
    preflight::require_root("test e2e")?;
    println!("test: e2e");
    if supervise::running().is_some() {
        let nodes = up::running_nodes();
        if nodes < SEVERAL && arguments.is_empty() {
            println!(
                "test: e2e: leaving out {OF_SEVERAL_NODES} (one node runs; `cargo xtask up --nodes {SEVERAL}`)"
            );
            return end_to_end_tests(&without_several());
        }
        return end_to_end_tests(arguments);
    }
    let of_several = |word: &String| word.starts_with(OF_SEVERAL_NODES.trim_end_matches(':'));
    if arguments.is_empty() {
        let one = with_cluster("", &without_several());
        let mut selected = vec![OF_SEVERAL_NODES.to_owned()];
        if !preflight::has_ipv6() {
            println!("test: e2e: leaving out {OF_BOTH_FAMILIES} (this machine has no IPv6)");
            selected.extend(["--skip", OF_BOTH_FAMILIES].map(str::to_owned));
            return one.and(with_cluster(&several(), &selected));
        }
        let both = with_cluster(&several(), &selected);
        let flags = format!("--nodes {SEVERAL} --ip-families ipv6 --routing vxlan");
        let other = with_cluster(&flags, &OF_ANY_WAY.map(str::to_owned));
        return one.and(both).and(other);
    }
    match arguments.iter().any(of_several) {
        true => with_cluster(&several(), arguments),
        false => with_cluster("", arguments),
    }
}

/// The flags of a cluster of several nodes. Whatever holds for these has to hold for both families.
fn several() -> String {
    let families = match preflight::has_ipv6() {
        true => "--ip-families ipv4,ipv6",
        false => "",
    };
    format!("--nodes {SEVERAL} {families}")
}

fn without_several() -> [String; 2] {
    ["--skip", OF_SEVERAL_NODES].map(str::to_owned)
}

/// One that `up` starts with these flags.
fn with_cluster(flags: &str, arguments: &[String]) -> Result<()> {
    let flags: Vec<String> = flags.split_whitespace().map(str::to_owned).collect();
    let up = up::run(&flags);
    let outcome = up.and_then(|()| end_to_end_tests(arguments));
    let down = down::stop(&Progress::start());
    outcome.and(down)
}

fn end_to_end_tests(arguments: &[String]) -> Result<()> {
    process::run(
        runner(&["--test", "e2e"])
            .args(arguments)
            .env("WINDLASS_XTASK", cargo::own_binary()),
    )
}

/// `cargo test` of the whole workspace, or of the test targets named.
fn runner(targets: &[&str]) -> Command {
    let mut command = cargo::workspace("test");
    command.args(targets);
    // One failure must not hide another, neither here nor in CI.
    command.arg("--no-fail-fast");
    // Arguments that follow are those of the test program.
    command.arg("--");
    command
}
