//! `cargo xtask bench`: the figures of docs/promises.md, measured against the running cluster; `bench service`,
//! `bench policy` and `bench api`: the measurements that need a program of their own, `tests/bench`.

mod connections;
mod rollout;

use anyhow::{Result, bail};

use crate::{cargo, process, status, supervise};

pub fn run(arguments: &[String]) -> Result<()> {
    match arguments.first().map(String::as_str) {
        None => promises(),
        Some("service" | "policy" | "api") => program(arguments),
        Some(_) => bail!("usage: cargo xtask bench [service|policy|api] [ARGS, or --help]"),
    }
}

/// Builds the program, and what it measures, and hands it the arguments.
fn program(arguments: &[String]) -> Result<()> {
    let binaries = ["--bin", "windlass-bench", "--bin", "windlass-control-plane"];
    process::run(cargo::workspace("build").args(binaries))?;
    process::run(std::process::Command::new(cargo::binary("windlass-bench")).args(arguments))
}

fn promises() -> Result<()> {
    if supervise::running().is_none() {
        bail!("no cluster runs: `cargo xtask up` starts one");
    }
    for (service, promise) in [("control-plane", 60.0), ("node-agent", 40.0)] {
        let resident = status::pid_of(service).and_then(status::resident_megabytes);
        let Some(resident) = resident else {
            bail!("{service} does not run")
        };
        report(
            &format!("resident memory of {service}, MB"),
            resident,
            promise,
            resident < promise,
        );
    }
    let web = rollout::Web::create()?;
    let ready = web.wait_until_ready()?.as_secs_f64();
    report(
        "kubectl apply to 3 replicas Ready, s",
        ready,
        3.0,
        ready < 3.0,
    );
    let rates = connections::measure(&web.pod_addresses()?, web.service_address()?)?;
    println!(
        "connections per second: direct {:.0}, ClusterIP {:.0}",
        rates.direct, rates.service
    );
    let ratio = rates.service / rates.direct;
    report("ClusterIP against direct", ratio, 0.97, ratio >= 0.97);
    Ok(())
}

fn report(what: &str, measured: f64, promise: f64, met: bool) {
    println!(
        "{what}: {measured:.2} (promise {promise}: {})",
        if met { "met" } else { "NOT met" }
    );
}
