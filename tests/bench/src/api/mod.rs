//! What the API server does in a second: one process over TLS, on the embedded store and on etcd, beside what the
//! disk and etcd themselves do.

mod baseline;
mod connection;
mod creates;
mod gets;
mod lists;
mod replay;
mod report;
mod schedules;
mod server;
mod watches;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use self::report::{Results, Rounds};
use self::server::{ApiServer, Store};
use crate::machine::{self, Machine};
use crate::progress::Progress;

#[derive(clap::Args)]
#[group(id = "api-options")]
pub struct Options {
    /// Fewer and shorter rounds, fewer objects.
    #[arg(long)]
    quick: bool,
    /// Where the report goes: api.md, api.json and a plot.
    #[arg(long, default_value = "docs/benchmarks/api")]
    out: PathBuf,
    /// Where the stores lie; its disk is what is measured.
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The control plane to measure, if it is not the one beside this program.
    #[arg(long)]
    control_plane: Option<PathBuf>,
    /// Only these parts, comma-separated; the others stay empty in the report.
    #[arg(long, value_delimiter = ',')]
    only: Vec<Part>,
    /// Leaves the stores behind, to look into what was measured.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    Creates,
    Lists,
    Gets,
    Watches,
    Schedules,
    Memory,
}

impl Options {
    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

pub struct Plan {
    rounds: usize,
    round: Duration,
    listed: usize,
    stored: usize,
    watchers: usize,
    nodes: usize,
    scheduled: usize,
}

const CLIENTS: [usize; 2] = [1, 32];
const QUIET: Duration = Duration::from_secs(10);

pub fn run(options: &Options) -> Result<()> {
    let plan = if options.quick {
        Plan {
            rounds: 3,
            round: Duration::from_secs(1),
            listed: 2_000,
            stored: 10_000,
            watchers: 200,
            nodes: 100,
            scheduled: 300,
        }
    } else {
        Plan {
            rounds: 5,
            round: Duration::from_secs(2),
            listed: 10_000,
            stored: 100_000,
            watchers: 1_000,
            nodes: 1_000,
            scheduled: 3_000,
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let mut results = runtime.block_on(measure(options, &plan))?;
    results.load_after = machine::load();
    report::write(&results, &options.out)?;
    println!("{}", report::markdown(&results));
    Ok(())
}

async fn measure(options: &Options, plan: &Plan) -> Result<Results> {
    let progress = Progress::start();
    let folder = match &options.folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let mut folder = folder.context("making a folder for the stores")?;
    folder.disable_cleanup(options.keep);
    let program = match &options.control_plane {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("windlass-control-plane"),
    };
    let mut results = Results::new(Machine::describe(&["etcd"]), plan);

    let data = folder.path().join("embedded");
    let embedded = ApiServer::start(&program, &data, Store::Embedded).await?;
    results.start_empty_seconds = embedded.started_in.as_secs_f64();
    tokio::time::sleep(QUIET).await;
    results.idle_mib = machine::resident_mib(embedded.pid());

    if options.wants(Part::Creates) {
        results.creates = creations(&embedded, folder.path(), &program, plan, &progress).await?;
    }
    progress.say(format_args!("{} pods", plan.listed));
    results.pod_creates_per_second = creates::pods(&embedded, 0..plan.listed).await?;
    if options.wants(Part::Lists) {
        results.lists = lists::run(&embedded, plan.rounds).await?;
    }
    if options.wants(Part::Gets) {
        progress.say("gets at 2,000 a second");
        results.gets = Some(gets::run(&embedded, 2_000, plan).await?);
    }
    if options.wants(Part::Watches) {
        progress.say(format_args!("{} watchers", plan.watchers));
        results.watches = Some(watches::run(&embedded, plan.watchers, plan.round * 2).await?);
    }
    if options.wants(Part::Schedules) {
        progress.say(format_args!(
            "{} pods onto {} nodes",
            plan.scheduled, plan.nodes
        ));
        let data = folder.path().join("scheduled");
        let server = ApiServer::start(&program, &data, Store::Embedded).await?;
        results.schedules = schedules::run(&server, plan.nodes, plan.scheduled).await?;
    }
    if options.wants(Part::Memory) {
        progress.say(format_args!("{} pods", plan.stored));
        // A store of their own: how many objects creations have left in the other depends on their rate.
        let data = folder.path().join("stored");
        let mut server = ApiServer::start(&program, &data, Store::Embedded).await?;
        creates::pods(&server, 0..plan.stored).await?;
        tokio::time::sleep(QUIET).await;
        results.loaded_mib = machine::resident_mib(server.pid());
        progress.say("a start with all of them");
        server.stop().await?;
        server.start_again().await?;
        results.start_loaded_seconds = server.started_in.as_secs_f64();
        tokio::time::sleep(QUIET).await;
        results.loaded_after_start_mib = machine::resident_mib(server.pid());
    }
    if options.keep {
        progress.say(format_args!(
            "the stores are in {}",
            folder.path().display()
        ));
    }
    Ok(results)
}

/// Creations beside those of etcd, alone and behind a server of ours, where it is installed.
async fn creations(
    embedded: &ApiServer,
    folder: &Path,
    program: &Path,
    plan: &Plan,
    progress: &Progress,
) -> Result<Vec<Rounds>> {
    let etcd = baseline::Etcd::start(&folder.join("etcd")).await?;
    let over_etcd = match &etcd {
        Some(etcd) => {
            let store = Store::Etcd(etcd.url().to_owned());
            Some(ApiServer::start(program, &folder.join("over-etcd"), store).await?)
        }
        None => {
            progress.say("no baseline by etcd");
            None
        }
    };
    let mut all = Vec::new();
    for clients in CLIENTS {
        progress.say(format_args!("creates by {clients} clients"));
        let mut rounds = Rounds::new(clients);
        for round in 0..plan.rounds {
            let number = round * 100 + clients;
            rounds
                .disk
                .push(baseline::fdatasync(folder, clients, plan.round)?);
            if let Some(etcd) = &etcd {
                rounds.etcd.push(etcd.puts(clients, plan.round).await?);
            }
            rounds
                .embedded
                .push(creates::run(embedded, clients, plan.round, number).await?);
            if let Some(server) = &over_etcd {
                rounds
                    .over_etcd
                    .push(creates::run(server, clients, plan.round, number).await?);
            }
        }
        all.push(rounds);
    }
    Ok(all)
}
