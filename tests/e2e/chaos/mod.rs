//! Anything of the cluster may be killed at any moment, several things at once, while users roll out, scale and delete:
//! what was acknowledged is there, who is connected stays connected, everything is Ready again within seconds, nothing
//! runs twice and nothing is left over.
//!
//! A run is a number (the seed) and a length: the same seed injects the same faults in the same order. There are short
//! ones, of one node and of three, and `WINDLASS_CHAOS=SEED,SECONDS cargo xtask test e2e -- --ignored long_chaos`.

mod faults;
mod intruder;
mod journal;
mod ledger;
mod processes;
mod remains;
mod witnesses;
mod workload;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::{eventually, pause, until};
use windlass_tests::kubectl::try_kubectl;
use windlass_tests::namespace::Namespace;

use faults::Faults;
use journal::Journal;
use remains::Remains;
use witnesses::Witnesses;
use workload::Workload;

/// On a machine of two cores that also runs the tests.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
const GONE_WITHIN: Duration = Duration::from_secs(120);
/// Faults that hit what has not yet recovered from the ones before.
const BURST: u32 = 3;

#[test]
#[ignore = "one to two minutes: cargo xtask test e2e -- --ignored short_chaos"]
fn nobody_notices_a_short_chaos() -> Result<()> {
    run(1, 0xca05, Duration::from_secs(30))
}

#[test]
#[ignore = "runs for as long as it is told to: WINDLASS_CHAOS=SEED,SECONDS, ten minutes unless told otherwise"]
fn nobody_notices_a_long_chaos() -> Result<()> {
    let told = std::env::var("WINDLASS_CHAOS").unwrap_or_else(|_| "1,600".to_owned());
    let (seed, seconds) = told
        .split_once(',')
        .context("WINDLASS_CHAOS=SEED,SECONDS")?;
    let (seed, seconds) = (seed.parse()?, seconds.parse()?);
    run(1, seed, Duration::from_secs(seconds))
}

/// Chaos on at least so many nodes, until `time` is over and everything has recovered.
pub(crate) fn run(nodes: usize, seed: u64, time: Duration) -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let nodes = cluster.nodes(nodes)?;
    // An agent that another test has killed is asked again.
    let before = eventually(GONE_WITHIN, "every agent to answer", || {
        Ok(Remains::of(&cluster, &nodes).ok())
    })?;
    let namespace = Namespace::create("chaos")?;
    let mut workload = Workload::deploy(&namespace)?;
    let journal = Journal::deploy(&namespace)?;
    workload.wait_until_settled(SETTLED_WITHIN)?;

    let witnesses = Witnesses::start(&cluster, &nodes, &namespace)?;
    let mut faults = Faults::new(&cluster, &nodes, seed);
    let end = Instant::now() + time;
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        for _ in 0..BURST {
            let fault = faults.choose();
            eprintln!("chaos: {fault:?}");
            faults
                .inject(fault, &mut workload)
                .with_context(|| format!("{fault:?}, seed {seed}"))?;
            pause(faults.moment());
        }
        let calm = Instant::now();
        let after = || format!("seed {seed}, after {}", faults.history());
        until(SETTLED_WITHIN, "the API server to answer", || {
            Ok(try_kubectl(&["get", "--raw", "/readyz"], "")?.success)
        })
        .with_context(after)?;
        workload
            .wait_until_settled(SETTLED_WITHIN)
            .with_context(after)?;
        witnesses.wait_for_names().with_context(after)?;
        slowest = slowest.max(calm.elapsed());
    }
    workload.wait_until_the_job_is_done(SETTLED_WITHIN)?;
    let account = witnesses
        .stop()
        .with_context(|| format!("seed {seed}, after {}", faults.history()))?;
    let numbers = journal
        .read()
        .with_context(|| format!("the journal, seed {seed}, after {}", faults.history()))?;
    eprintln!(
        "chaos: settled within {slowest:?} each time; {account}, {numbers} numbers on a volume"
    );

    namespace.run(&["delete", "all,networkpolicy,job", "--all", "--timeout=90s"])?;
    let mut left = Vec::new();
    let gone = until(GONE_WITHIN, "the nodes to be as before", || {
        match Remains::of(&cluster, &nodes) {
            Ok(found) => left = found.beyond(&before),
            Err(error) => left = vec![format!("{error:#}")],
        }
        Ok(left.is_empty())
    });
    ensure!(
        gone.is_ok(),
        "seed {seed}, after {}: left over: {left:#?}",
        faults.history()
    );
    Ok(())
}
