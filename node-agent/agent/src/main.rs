//! `windlass-node-agent`: the node's half of Windlass in one process.
//!
//! This crate only composes: flags, the order of start and stop, and the seams between
//! roles. Pods are run by `windlass-pods`, networks decided by `windlass-network` and made
//! by `windlass-datapath`. Called as `windlass-cni`, the same binary is the CNI plugin.

mod adoption;
mod api_server;
mod ask;
mod cgroup2;
mod cleanup;
mod cli;
mod client_certificate;
mod dns;
mod drain;
mod health;
mod inspect;
mod kube_proxy;
mod kubeadm;
mod kubelet_access;
mod kubelet_conf;
mod local_pods;
mod lookup;
mod memory;
mod metrics;
mod network;
mod node;
mod nodes;
mod pid_file;
mod pod_network;
mod ports;
mod prepare;
mod proc_sys;
mod retirement;
mod routing;
mod run;
mod tasks;
mod this_node;
mod trace;

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use windlass_network::cni_conf::PLUGIN;

use crate::cli::{Cli, Command};

/// The API client logs each failed request as an error of its own; whoever asked says it
/// better.
const QUIET: &str = "info,hickory_server=warn,kube_client=off,kube_runtime=off,tower=off";

fn main() -> ExitCode {
    // The container runtime starts the plugin for every sandbox: nothing may come before it.
    let called_as = std::env::args_os().next().unwrap_or_default();
    if Path::new(&called_as)
        .file_name()
        .is_some_and(|name| name == PLUGIN)
    {
        return windlass_cni::main();
    }
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env();
    tracing_subscriber::fmt()
        .with_env_filter(filter.unwrap_or_else(|_| EnvFilter::new(QUIET)))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // The only provider in the tree; a second call could not happen in one process.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let is_question = matches!(cli.command, Command::Ask(_));
    match start(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is::<client_certificate::Renewed>() => start_again(),
        Err(error) if is_question => {
            ask::complain(&error);
            ExitCode::FAILURE
        }
        Err(error) => {
            tracing::error!(error = format!("{error:#}"), "node agent failed");
            ExitCode::FAILURE
        }
    }
}

/// As the same process, so that whoever looks after it sees nothing of it.
fn start_again() -> ExitCode {
    use std::os::unix::process::CommandExt as _;
    let mut arguments = std::env::args_os();
    let name = arguments.next().unwrap_or_default();
    let mut program = std::process::Command::new("/proc/self/exe");
    let error = program.arg0(name).args(arguments).exec();
    tracing::error!(%error, "cannot start again");
    ExitCode::FAILURE
}

fn start(cli: Cli) -> anyhow::Result<()> {
    // These change what the process sees of the file system, which threads would share.
    match &cli.command {
        Command::Prepare(options) => return prepare::prepare(&options.mount_namespace),
        Command::CleanKubeProxy(options) => return kube_proxy::clean(&options.host_root),
        _ => {}
    }
    memory::stay_small();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let result = match cli.command {
        Command::Run(options) => runtime.block_on(run::run(*options)),
        Command::Cleanup(options) => runtime.block_on(cleanup::cleanup(options)),
        Command::Dns(options) => runtime.block_on(dns::serve(options)),
        Command::Ask(question) => runtime.block_on(ask::ask(question)),
        Command::Prepare(_) | Command::CleanKubeProxy(_) => Ok(()),
    };
    // Blocking work (a bpf call, a read) is not waited for: the kernel finishes it.
    runtime.shutdown_background();
    result
}
