//! What a Service costs, in every way that there is on this machine, at sizes from one Service to 30,000.

pub mod agent;
mod cluster;
mod conclusion;
mod markdown;
mod memory_api;
mod memory_group;
mod plot;
mod results;
mod rules;
mod table;
mod way;
mod world;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use self::results::{Measured, Results};
use self::table::Table;
use self::way::Way;
use self::world::World;
use crate::machine::{self, Machine};
use crate::namespaces;
use crate::progress::Progress;
use crate::report;
use crate::rounds::{Lengths, Round};

#[derive(clap::Args)]
pub struct Options {
    /// Fewer sizes, fewer and shorter rounds: a minute or two, and a wider spread.
    #[arg(long)]
    quick: bool,
    /// Where the report goes: service.md, service.json and plots.
    #[arg(long, default_value = "docs/benchmarks/service")]
    out: PathBuf,
    /// Numbers of Services.
    #[arg(long, value_delimiter = ',')]
    sizes: Vec<usize>,
    /// Only these ways, beside direct.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Endpoints of each Service.
    #[arg(long, default_value_t = 2)]
    endpoints: usize,
    #[arg(long)]
    rounds: Option<usize>,
    /// Give up on loading a way's rules after so many seconds.
    #[arg(long)]
    load_limit: Option<u64>,
    /// Measure this cluster's own Services instead, from here: run it on one of its nodes.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// With --kubeconfig: an image that answers HTTP requests.
    #[arg(long, default_value = "windlass.dev/echo:dev")]
    image: String,
    /// ... at this port.
    #[arg(long, default_value_t = 8080)]
    image_port: u16,
}

struct Plan {
    sizes: Vec<usize>,
    rounds: usize,
    changes: usize,
    lengths: Lengths,
    load_limit: Duration,
}

impl Plan {
    fn new(options: &Options) -> Self {
        let mut plan = if options.quick {
            Self {
                sizes: vec![1, 1_000, 10_000],
                rounds: 3,
                changes: 3,
                lengths: Lengths {
                    connections: 200,
                    requests: 100,
                    bulk: 100,
                },
                load_limit: Duration::from_secs(15),
            }
        } else {
            Self {
                sizes: vec![1, 100, 1_000, 10_000, 30_000],
                rounds: 9,
                changes: 5,
                lengths: Lengths {
                    connections: 600,
                    requests: 300,
                    bulk: 300,
                },
                load_limit: Duration::from_secs(300),
            }
        };
        if !options.sizes.is_empty() {
            plan.sizes.clone_from(&options.sizes);
        }
        plan.rounds = options.rounds.unwrap_or(plan.rounds);
        plan.load_limit = options
            .load_limit
            .map_or(plan.load_limit, Duration::from_secs);
        plan
    }
}

pub fn run(options: &Options) -> Result<()> {
    let plan = Plan::new(options);
    let progress = Progress::start();
    let mut results = match &options.kubeconfig {
        Some(kubeconfig) => {
            let (image, port) = (&options.image, options.image_port);
            cluster::measure(kubeconfig, image, port, &plan, &progress)?
        }
        None => measure_ways(options, &plan, &progress)?,
    };
    results.load_after = machine::load();
    let text = markdown::report(&results);
    report::write(&options.out, "service", &results, &text)?;
    plot::draw(&results, &options.out)?;
    println!("{text}");
    progress.say(format_args!("written to {}", options.out.display()));
    Ok(())
}

/// Every way of this machine, at every size.
fn measure_ways(options: &Options, plan: &Plan, progress: &Progress) -> Result<Results> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces and loads rules into them: run it as root"
    );
    namespaces::sweep();
    let machine = Machine::describe(&["iptables", "nft", "ipvsadm"]);
    let mut results = Results::new(machine, options.endpoints);
    let mut ways = Vec::new();
    for way in Way::ALL.into_iter().filter(|way| way.is_local()) {
        if way != Way::Direct && !options.ways.is_empty() && !options.ways.contains(&way) {
            continue;
        }
        match way.missing() {
            None => ways.push(way),
            Some(reason) => {
                progress.say(format_args!("{}: {reason}", way.name()));
                results.absent.push((way, reason));
            }
        }
    }
    for size in &plan.sizes {
        measure_size(
            *size,
            &ways,
            plan,
            options.endpoints,
            &mut results,
            progress,
        )?;
    }
    Ok(results)
}

fn measure_size(
    size: usize,
    ways: &[Way],
    plan: &Plan,
    endpoints: usize,
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    let table = Table::new(size, endpoints);
    let mut worlds = Vec::new();
    for way in ways {
        let mut world = World::new(*way, table.clone(), endpoints)
            .with_context(|| format!("preparing {}", way.name()))?;
        let loaded = world
            .load(plan.load_limit)
            .with_context(|| format!("loading {size} Services, {}", way.name()))?;
        let mut measured = Measured::new(*way, size);
        match loaded {
            Some(loaded) => {
                progress.say(format_args!(
                    "{size} Services, {}: loaded in {:.2} s",
                    way.name(),
                    loaded.seconds
                ));
                measured.loaded = Some(loaded);
                worlds.push((world, measured));
            }
            None => {
                progress.say(format_args!(
                    "{size} Services, {}: not loaded within {:?}",
                    way.name(),
                    plan.load_limit
                ));
                measured.not_loaded_within = Some(plan.load_limit.as_secs_f64());
                results.measured.push(measured);
            }
        }
    }
    for round in 0..plan.rounds {
        progress.say(format_args!(
            "{size} Services: round {} of {}",
            round + 1,
            plan.rounds
        ));
        // Each round begins with another way, so that none always follows the same one.
        let count = worlds.len();
        for at in 0..count {
            let (world, measured) = &mut worlds[(at + round) % count];
            let target = world.target();
            let round = Round::of(target, &plan.lengths, true, &mut |order| {
                world.measure(order)
            });
            measured.rounds.push(round?);
        }
    }
    worlds.iter_mut().try_for_each(|(world, _)| world.check())?;
    for _ in 0..plan.changes {
        for (world, measured) in &mut worlds {
            measured.change_ms.extend(world.change()?);
        }
    }
    results
        .measured
        .extend(worlds.into_iter().map(|(_, measured)| measured));
    Ok(())
}
