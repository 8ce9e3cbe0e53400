//! `windlass-control-plane`: the API server, the controllers and the scheduler in one process.
//!
//! This crate only composes: flags, the cluster's keys, the order of start and stop. What it starts lives in
//! the crates beside it.

mod allocator;
mod api_options;
mod bootstrap;
mod credentials;
mod kubeconfig;
mod pki;
mod serve;
mod snapshot;
mod store;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(
    name = "windlass-control-plane",
    version,
    about = "The Windlass control plane"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the Kubernetes API and run the controllers and the scheduler.
    Serve(Box<serve::Options>),
    /// Sign a client certificate with the cluster's CA and write a kubeconfig that uses it.
    Kubeconfig(kubeconfig::Options),
    /// Give the cluster's CA another key, while the servers run.
    #[command(subcommand)]
    Ca(pki::Command),
    /// Give ServiceAccount tokens another key, while the servers run.
    #[command(subcommand)]
    ServiceAccountKey(pki::KeyCommand),
    /// Save the embedded store to a file, or make it from one.
    #[command(subcommand)]
    Snapshot(snapshot::Command),
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info,kube=warn")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
    allocator::purge_soon();
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow::anyhow!("a TLS provider is already installed"))?;
    match cli.command {
        Command::Serve(options) => runtime()?.block_on(serve::run(*options)),
        Command::Snapshot(command) => runtime()?.block_on(snapshot::run(command)),
        Command::Kubeconfig(options) => kubeconfig::run(&options),
        Command::Ca(command) => pki::run(&command),
        Command::ServiceAccountKey(command) => pki::run_key(&command),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .on_thread_park(allocator::collect_sometimes)
        .build()
        .context("start the async runtime")
}
