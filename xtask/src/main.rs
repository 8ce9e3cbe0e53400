//! The one door to every chore of this repository: `cargo xtask <command>`.
//!
//! Each command is one file. The dependencies are few, so that the door opens within seconds on a fresh
//! clone, before anything else has been compiled.
#![allow(
    clippy::print_stdout,
    reason = "a command-line tool talks to its user on standard output"
)]
#![allow(
    unreachable_pub,
    reason = "in a program, `pub` marks what its other modules may use"
)]

mod apt;
mod bench;
mod bpf_linker;
mod cargo;
mod check;
mod containerd;
mod dependencies;
mod down;
mod image;
mod kernels;
mod layout;
mod load_image;
mod manifest;
mod notices;
mod oci;
mod outside;
mod preflight;
mod process;
mod progress;
mod rust_src;
mod sbom;
mod schema;
mod setup;
mod status;
mod summary;
mod supervise;
mod sweep;
mod test;
mod up;
mod wait;

use std::process::ExitCode;

use crate::setup::Need;

const USAGE: &str = "\
usage: cargo xtask <command>

  setup               install what is missing to build, run and test (asks for nothing, skips what is there)
  up [--nodes N] [--no-build]
                      build and start a cluster in the background, of one node unless told otherwise, wait
                      until its Nodes are Ready (--routing direct|vxlan: how pods reach pods of other nodes;
                      --ip-families ipv4,ipv6: with both, ipv6: with that alone; --load-balancer-pool NETWORKS: addresses for
                      LoadBalancers, --load-balancer-mode snat|dsr: who answers their clients; --roles pods:
                      without a network, which the DaemonSet of deploy/ then brings)
  down [--purge]      stop it and leave nothing behind (--purge: also forget its data and images)
  status              say what runs
  load-image FILE...  put OCI or docker archives into the cluster's runtime
  image [NAME...]     write OCI archives: control-plane, node-agent, echo, busybox, pause
  manifest [--write | --set KEY=VALUE...]
                      print the node agent's manifest with other values of its chart
  test [unit|datapath|kernels|clients|e2e] [-- ARGS]
                      prove it: all five suites, or one; ARGS go to the test runner (kernels [SUITE...]: the
                      datapath on the kernels of these suites of Debian)
  bench               measure what docs/promises.md promises, against the running cluster
  bench service [--quick] [--kubeconfig FILE]
                      what a Service costs: direct, iptables, nftables, IPVS and Windlass beside each other
  bench policy [--quick]
                      what the way between pods costs, and policies on it
  bench api [--quick] what the API server does a second, on the embedded store and on etcd
  check               format, lints, licences, spelling
  schema              regenerate the table of facts about the API's types
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (command, rest) = match arguments.split_first() {
        Some((command, rest)) => (command.as_str(), rest),
        None => ("help", &[][..]),
    };
    let outcome = match command {
        "setup" => setup::run(&[Need::Build, Need::Cluster, Need::Tests]),
        "up" => up::run(rest),
        "down" => down::run(rest),
        "status" => status::run(),
        "load-image" => load_image::run(rest),
        "image" => image::run(rest),
        "manifest" => manifest::run(rest),
        "test" => test::run(rest),
        "bench" => bench::run(rest),
        "check" => check::run(),
        "schema" => schema::run(),
        // Not for people: the background process that `up` starts, and what it calls before it stops the runtime.
        "supervise" => supervise::run(rest),
        "remove-pods" => containerd::remove_pods(rest),
        "help" | "--help" | "-h" => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        unknown => {
            eprintln!("unknown command `{unknown}`\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // `cargo xtask status | head`: whoever reads has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}
