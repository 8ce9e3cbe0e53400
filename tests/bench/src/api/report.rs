//! The figures, as JSON, as Markdown and as a plot.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, anyhow};
use plotters::prelude::*;
use serde::Serialize;

use super::Plan;
use crate::machine::Machine;
use crate::quantiles::{Latencies, Quantiles};
use crate::statistics::{Comparison, Spread};

#[derive(Serialize)]
pub struct Results {
    pub machine: Machine,
    pub load_after: f64,
    pub listed_pods: usize,
    pub stored_pods: usize,
    pub start_empty_seconds: f64,
    pub idle_mib: Option<f64>,
    pub creates: Vec<Rounds>,
    pub pod_creates_per_second: f64,
    pub lists: Vec<List>,
    pub gets: Option<Gets>,
    pub watches: Option<Watches>,
    pub schedules: Vec<Schedule>,
    pub loaded_mib: Option<f64>,
    pub start_loaded_seconds: f64,
    pub loaded_after_start_mib: Option<f64>,
}

/// Creations by so many clients, in alternating rounds.
#[derive(Serialize)]
pub struct Rounds {
    pub clients: usize,
    pub disk: Vec<Rate>,
    pub etcd: Vec<Rate>,
    pub embedded: Vec<Rate>,
    pub over_etcd: Vec<Rate>,
}

#[derive(Clone, Copy, Serialize)]
pub struct Rate {
    pub per_second: f64,
    pub latency: Quantiles,
}

/// At one pace, round by round.
#[derive(Default, Serialize)]
pub struct Gets {
    /// Of a server that only says the same bytes.
    pub baseline: Vec<Rate>,
    pub server: Vec<Rate>,
}

#[derive(Clone, Copy, Serialize)]
pub struct List {
    pub bytes: usize,
    pub seconds: f64,
    pub first_byte_ms: f64,
    /// Above what the server held before, at most.
    pub extra_mib: f64,
}

#[derive(Clone, Copy, Serialize)]
pub struct Watches {
    pub watchers: usize,
    pub events_per_second: f64,
    pub writes_per_second: f64,
    /// Under which `latency` was measured, from before the request to the watcher.
    pub steady_writes_per_second: u64,
    pub latency: Quantiles,
}

/// Pods of one kind, from the first one's creation until the last one is bound.
#[derive(Clone, Copy, Serialize)]
pub struct Schedule {
    pub wish: &'static str,
    pub nodes: usize,
    pub pods: usize,
    pub seconds: f64,
}

impl Results {
    pub fn new(machine: Machine, plan: &Plan) -> Self {
        Self {
            machine,
            load_after: 0.0,
            listed_pods: plan.listed,
            stored_pods: plan.stored,
            start_empty_seconds: 0.0,
            idle_mib: None,
            creates: Vec::new(),
            pod_creates_per_second: 0.0,
            lists: Vec::new(),
            gets: None,
            watches: None,
            schedules: Vec::new(),
            loaded_mib: None,
            start_loaded_seconds: 0.0,
            loaded_after_start_mib: None,
        }
    }
}

impl Rounds {
    pub fn new(clients: usize) -> Self {
        Self {
            clients,
            disk: Vec::new(),
            etcd: Vec::new(),
            embedded: Vec::new(),
            over_etcd: Vec::new(),
        }
    }

    fn lines(&self) -> [(&'static str, &[Rate]); 4] {
        [
            ("the disk: write, fdatasync", &self.disk),
            ("etcd itself, no TLS", &self.etcd),
            ("windlass, embedded store", &self.embedded),
            ("windlass over that etcd", &self.over_etcd),
        ]
    }
}

impl Rate {
    pub fn of(latencies: Latencies, time: Duration) -> Self {
        Self {
            per_second: latencies.len() as f64 / time.as_secs_f64(),
            latency: latencies.quantiles(),
        }
    }
}

pub fn write(results: &Results, folder: &Path) -> Result<()> {
    crate::report::write(folder, "api", results, &markdown(results))?;
    plot(results, &folder.join("creates.svg"))
}

pub fn markdown(results: &Results) -> String {
    let machine = &results.machine;
    let mut text = String::from("# What the API server does in a second\n\n");
    let _ = writeln!(
        text,
        "`cargo xtask bench api` on {}. Clients and server share the machine; \
         one server process, TLS, HTTP/1.1.\n",
        machine.description()
    );
    let _ = writeln!(text, "{}\n", machine.load_note(results.load_after));
    creates(&mut text, results);
    text.push_str("\n![creations per second](creates.svg)\n\n## Everything else\n\n| | measured | aim |\n|---|---|---|\n");
    let mut row = |what: String, measured: String, aim: &str| {
        let _ = writeln!(text, "| {what} | {measured} | {aim} |");
    };
    row(
        "create Pods of 2 KB, 32 clients".into(),
        format!("{:.0} a second", results.pod_creates_per_second),
        "",
    );
    let median = |rates: &[Rate], figure: fn(&Rate) -> f64| {
        Spread::of(rates.iter().map(figure)).map_or(0.0, |spread| spread.median)
    };
    let list = |figure: fn(&List) -> f64| {
        Spread::of(results.lists.iter().map(figure)).map_or(0.0, |spread| spread.median)
    };
    let megabytes = list(|list| list.bytes as f64) / 1e6;
    row(
        format!("LIST of {} pods, {megabytes:.1} MB", results.listed_pods),
        format!(
            "{:.0} MB/s, {:.0} ms",
            list(|list| list.bytes as f64 / 1e6 / list.seconds),
            list(|list| list.seconds * 1e3)
        ),
        "over 500 MB/s",
    );
    row(
        "... first byte".into(),
        format!("{:.1} ms", list(|list| list.first_byte_ms)),
        "under 5 ms",
    );
    row(
        "... extra memory of the server".into(),
        format!(
            "{:.1} MiB ({:.2} of the response)",
            list(|list| list.extra_mib),
            list(|list| list.extra_mib * f64::from(1 << 20) / list.bytes as f64)
        ),
        "at most 1.0 of the response",
    );
    if let Some(gets) = &results.gets {
        let quantiles = |rates: &[Rate]| {
            format!(
                "p50 {:.2} ms, p99 {:.2} ms",
                median(rates, |rate| rate.latency.p50_us / 1e3),
                median(rates, |rate| rate.latency.p99_us / 1e3)
            )
        };
        row(
            format!(
                "GET of a pod at {:.0} a second",
                median(&gets.server, |rate| rate.per_second)
            ),
            quantiles(&gets.server),
            "p99 under 1 ms",
        );
        row(
            "... of a server that only says the same bytes".into(),
            quantiles(&gets.baseline),
            "",
        );
    }
    if let Some(watches) = &results.watches {
        row(
            format!(
                "events to {} watchers ({:.0} writes a second)",
                watches.watchers, watches.writes_per_second
            ),
            format!("{:.0} a second", watches.events_per_second),
            "over 300,000 a second",
        );
        row(
            format!(
                "... from request to watcher, at {} writes a second",
                watches.steady_writes_per_second
            ),
            format!(
                "p50 {:.1} ms, p99 {:.1} ms",
                watches.latency.p50_us / 1e3,
                watches.latency.p99_us / 1e3
            ),
            "p99 under 20 ms",
        );
    }
    for schedule in &results.schedules {
        row(
            format!(
                "{} pods created by 32 clients and bound to {} nodes: {}",
                schedule.pods, schedule.nodes, schedule.wish
            ),
            format!("{:.0} a second", schedule.pods as f64 / schedule.seconds),
            "",
        );
    }
    let mib = |value: Option<f64>| value.map_or("unknown".into(), |mib| format!("{mib:.0} MiB"));
    row(
        "resident memory, new and idle".into(),
        mib(results.idle_mib),
        "under 60 MB",
    );
    row(
        format!("... with {} pods", results.stored_pods),
        mib(results.loaded_mib),
        "under 400 MB",
    );
    row(
        "... the same after a restart".into(),
        mib(results.loaded_after_start_mib),
        "under 400 MB",
    );
    row(
        "start to `/readyz`, empty".into(),
        format!("{:.2} s", results.start_empty_seconds),
        "",
    );
    row(
        format!("... with {} pods", results.stored_pods),
        format!("{:.2} s", results.start_loaded_seconds),
        "under 2 s",
    );
    text
}

fn creates(text: &mut String, results: &Results) {
    text.push_str("## Creations of 1.5 KB ConfigMaps a second\n\nMedian of alternating rounds ± half of their spread.\n\n");
    text.push_str("| clients | | a second | p50, ms | p99, ms | windlass (embedded) against it |\n|---|---|---|---|---|---|\n");
    for rounds in &results.creates {
        for (name, rates) in rounds.lines() {
            let Some(spread) = Spread::of(rates.iter().map(|rate| rate.per_second)) else {
                continue;
            };
            let latency = |figure: fn(&Rate) -> f64| {
                Spread::of(rates.iter().map(figure)).map_or(0.0, |s| s.median / 1e3)
            };
            let ours = rounds.embedded.iter().map(|rate| rate.per_second);
            let against = Comparison::of(ours, rates.iter().map(|rate| rate.per_second));
            let _ = writeln!(
                text,
                "| {} | {name} | {:.0} ± {:.0} % | {:.2} | {:.2} | {} |",
                rounds.clients,
                spread.median,
                spread.relative() * 100.0,
                latency(|rate| rate.latency.p50_us),
                latency(|rate| rate.latency.p99_us),
                against.map_or(String::new(), |c| format!(
                    "{:.2} ({:.2} to {:.2})",
                    c.ratio.median, c.ratio.low, c.ratio.high
                )),
            );
        }
    }
}

fn plot(results: &Results, path: &Path) -> Result<()> {
    let failed = |error: &dyn std::fmt::Display| anyhow!("drawing a plot: {error}");
    let mut bars = Vec::new();
    for rounds in &results.creates {
        for (name, rates) in rounds.lines() {
            if let Some(spread) = Spread::of(rates.iter().map(|rate| rate.per_second)) {
                bars.push((format!("{name}, {} clients", rounds.clients), spread.median));
            }
        }
    }
    let most = bars.iter().map(|(_, value)| *value).fold(1.0, f64::max);
    let area = SVGBackend::new(path, (860, 60 + 34 * bars.len() as u32)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let text = |content: String, at: (i32, i32), size: i32| {
        area.draw(&Text::new(content, at, ("sans-serif", size).into_font()))
            .map_err(|error| failed(&error))
    };
    text("creations a second".into(), (20, 14), 20)?;
    for (index, (name, value)) in bars.iter().enumerate() {
        let top = 50 + 34 * index as i32;
        let width = (400.0 * value / most) as i32;
        let colour = if name.starts_with("windlass") {
            RGBColor(27, 120, 55)
        } else {
            RGBColor(150, 150, 150)
        };
        area.draw(&Rectangle::new(
            [(330, top), (330 + width, top + 22)],
            colour.filled(),
        ))
        .map_err(|error| failed(&error))?;
        text(name.clone(), (20, top + 4), 14)?;
        text(format!("{value:.0}"), (338 + width, top + 4), 14)?;
    }
    area.present().map_err(|error| failed(&error))
}
