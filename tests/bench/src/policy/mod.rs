//! What the way between two pods costs, and policies on them: plain routing and Windlass beside each other, on one node
//! and across two, at up to 1,000 policies.

pub mod agent;
mod report;
mod results;
mod tables;
mod world;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use self::results::{Measured, Place, Results};
use self::world::World;
use crate::machine::{self, Machine};
use crate::namespaces;
use crate::progress::Progress;
use crate::rounds::{Lengths, Round};

#[derive(clap::Args)]
pub struct Options {
    /// Fewer, shorter rounds and fewer pods: half a minute, and a wider spread.
    #[arg(long)]
    quick: bool,
    /// Where the report goes: policy.md, policy.json and plots.
    #[arg(long, default_value = "docs/benchmarks/policy")]
    out: PathBuf,
    /// Numbers of policies on both pods.
    #[arg(long, value_delimiter = ',', default_value = "0,1,100,1000")]
    policies: Vec<usize>,
    #[arg(long)]
    rounds: Option<usize>,
    /// Pods of the cluster, for the time that a change takes.
    #[arg(long)]
    pods: Option<usize>,
}

pub fn run(options: &Options) -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "the benchmark makes network namespaces and loads programs: run it as root"
    );
    let (rounds, changes, pods, length) = if options.quick {
        (3, 3, 1_000, 100)
    } else {
        (9, 9, 10_000, 200)
    };
    let rounds = options.rounds.unwrap_or(rounds);
    let pods = options.pods.unwrap_or(pods);
    let lengths = Lengths {
        connections: length * 2,
        requests: length,
        bulk: length,
    };
    let progress = Progress::start();
    namespaces::sweep();
    let mut results = Results::new(Machine::describe(&["ip"]), pods);
    for place in Place::ALL {
        measure(
            place,
            options,
            rounds,
            changes,
            &lengths,
            &mut results,
            &progress,
        )
        .with_context(|| format!("measuring {}", place.name()))?;
    }
    results.load_after = machine::load();
    let text = report::markdown(&results);
    crate::report::write(&options.out, "policy", &results, &text)?;
    report::draw(&results, &options.out)?;
    println!("{text}");
    progress.say(format_args!("written to {}", options.out.display()));
    Ok(())
}

/// Plain routing and every number of policies in alternating rounds; then changes.
fn measure(
    place: Place,
    options: &Options,
    rounds: usize,
    changes: usize,
    lengths: &Lengths,
    results: &mut Results,
    progress: &Progress,
) -> Result<()> {
    let mut plain = World::new(place, None)?;
    let mut ours = World::new(place, Some(results.pods))?;
    let mut measured = vec![Measured::new(place, None)];
    measured.extend(
        options
            .policies
            .iter()
            .map(|count| Measured::new(place, Some(*count))),
    );
    for round in 0..rounds {
        progress.say(format_args!(
            "{}: round {} of {rounds}",
            place.name(),
            round + 1
        ));
        // Each round begins with another one, so that none always follows the same.
        let count = measured.len();
        for at in 0..count {
            let one = &mut measured[(at + round) % count];
            let world = match one.policies {
                None => &mut plain,
                Some(policies) => {
                    ours.set_policies(policies)?;
                    &mut ours
                }
            };
            let target = world.target();
            let round = Round::of(target, lengths, true, &mut |order| world.measure(order));
            one.rounds.push(round?);
        }
    }
    for one in &mut measured {
        let Some(policies) = one.policies.filter(|policies| *policies > 0) else {
            continue;
        };
        for _ in 0..changes {
            one.change_ms.push(ours.change(policies)?);
        }
    }
    results.measured.extend(measured);
    Ok(())
}
