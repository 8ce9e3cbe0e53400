//! `windlass-bench`: the measurements, one subcommand each. `cargo xtask bench` builds and calls it.
//!
//! A crate of its own, because what it needs (plots, TLS, the datapath) would make `cargo xtask` slow to
//! compile. Beside the commands for people there are roles: the same program, started again in another
//! network namespace and cgroup, so that each part of a measurement has a process time of its own.
#![allow(
    clippy::print_stdout,
    reason = "a command-line tool talks to its user on standard output"
)]
#![allow(
    unreachable_pub,
    reason = "in a program, `pub` marks what its other modules may use"
)]

mod api;
mod machine;
mod namespaces;
mod pause;
mod plot;
mod policy;
mod progress;
mod quantiles;
mod report;
mod rounds;
mod service;
mod statistics;
mod traffic;
mod worker;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "windlass-bench", about = "Windlass's measurements")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// What a Service costs: nothing, iptables, nftables, IPVS and Windlass beside each other.
    Service(service::Options),
    /// What the way between pods costs, and policies on them: plain routing and Windlass beside each other.
    Policy(policy::Options),
    /// What the API server does in a second, on the embedded store and on etcd.
    Api(api::Options),
    /// Not for people: answers requests in a namespace.
    #[command(hide = true)]
    Server(traffic::server::Options),
    /// Not for people: makes requests in a namespace.
    #[command(hide = true)]
    Client(traffic::client::Options),
    /// Not for people: a datapath and its service controller in a namespace.
    #[command(hide = true)]
    Agent(service::agent::Options),
    /// Not for people: a datapath and its policy tables in a namespace.
    #[command(hide = true)]
    PolicyAgent(policy::agent::Options),
}

fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .init();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok()
        .context("a TLS provider is already installed")?;
    match Cli::parse().command {
        Command::Service(options) => service::run(&options),
        Command::Policy(options) => policy::run(&options),
        Command::Api(options) => api::run(&options),
        Command::Server(options) => traffic::server::run(&options),
        Command::Client(options) => traffic::client::run(&options),
        Command::Agent(options) => service::agent::run(&options),
        Command::PolicyAgent(options) => policy::agent::run(&options),
    }
}
