//! Who reaches whom under NetworkPolicies: every pod asks every pod, by its address and by those of its Services,
//! over TCP, UDP and SCTP, in each family that the cluster has, after every change, and a model says what must
//! come of it.

mod asking;
mod cases;
mod change_cases;
mod objects;
mod probe;
mod programming;
mod question;
mod random;
mod sctp;
mod service_cases;
mod tier_cases;
mod world;

use std::time::Duration;

use anyhow::{Context, Result};

use cases::Case;
pub(crate) use objects::namespace_of;
use windlass_tests::policy_model as model;
pub(crate) use windlass_tests::policy_model::Kind;
use world::World;

/// What a user notices first, in seconds; `nodes` runs it over several. The rest is in the test after this one.
pub(crate) fn run_first() -> Result<()> {
    let mut world = World::set_up("part")?;
    let cases = cases::all(&world);
    run(&mut world, cases.into_iter().filter(|case| case.first))
}

#[test]
#[ignore = "some minutes: every case of the policy suites, and a hundred random steps, on one node or several"]
fn every_case_of_the_policy_suites_is_what_the_documentation_says() -> Result<()> {
    let mut world = World::set_up("all")?;
    let mut cases = cases::all(&world);
    cases.extend(random::cases(&world));
    // By parts of their names, with `|` between them.
    if let Ok(some) = std::env::var("WINDLASS_CASES") {
        cases.retain(|case| some.split('|').any(|part| case.name.contains(part)));
    }
    run(&mut world, cases)
}

fn run(world: &mut World, cases: impl IntoIterator<Item = Case>) -> Result<()> {
    world.check().context("without policies")?;
    let mut late: Vec<(Duration, String)> = Vec::new();
    let mut failed = Vec::new();
    let mut steps = 0;
    for case in cases {
        eprintln!("{}", case.name);
        let mut outcome = Ok(());
        for (number, actions) in case.steps.iter().enumerate() {
            steps += 1;
            outcome = actions
                .iter()
                .try_for_each(|action| world.act(action))
                .and_then(|()| world.check())
                .map(|took| {
                    if !took.is_zero() && took > Duration::from_millis(1) {
                        late.push((took, format!("{}, step {number}", case.name)));
                    }
                })
                .with_context(|| format!("{}, step {number}", case.name));
            if outcome.is_err() {
                break;
            }
        }
        if let Err(error) = outcome {
            eprintln!("--- {error:?}");
            failed.push(case.name);
        }
        world.restore()?;
    }
    late.sort();
    for (took, step) in late.iter().rev().take(10) {
        eprintln!("needed a second look, {took:?}: {step}");
    }
    eprintln!("{steps} steps, {} needed a second look", late.len());
    anyhow::ensure!(
        failed.is_empty(),
        "{} cases failed: {failed:?}",
        failed.len()
    );
    Ok(())
}
