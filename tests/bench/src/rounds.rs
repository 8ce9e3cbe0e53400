//! One round of every kind of load on one path, and what may be said of two paths whose rounds alternated.

use std::net::SocketAddr;

use anyhow::Result;
use serde::Serialize;

use crate::quantiles::Quantiles;
use crate::statistics::{Comparison, Spread, Verdict};
use crate::traffic::client::{Answer, Order};

/// How long each kind of load lasts, in milliseconds.
pub struct Lengths {
    pub connections: u64,
    pub requests: u64,
    pub bulk: u64,
}

#[derive(Clone, Copy, Serialize)]
pub struct Round {
    pub connections_per_second: f64,
    pub connect: Quantiles,
    pub cpu_us_per_connection: f64,
    pub requests_per_second: f64,
    pub request: Quantiles,
    /// Not known of a cluster's image.
    pub bulk_gbit_per_second: Option<f64>,
}

impl Round {
    /// What measures answers with the server's processor time in microseconds.
    pub fn of(
        target: SocketAddr,
        lengths: &Lengths,
        has_bulk: bool,
        measure: &mut dyn FnMut(&Order) -> Result<(Answer, u64)>,
    ) -> Result<Self> {
        let millis = lengths.connections;
        let (connections, server_cpu) = measure(&Order::Connections { target, millis })?;
        let millis = lengths.requests;
        let (requests, _) = measure(&Order::Requests { target, millis })?;
        let millis = lengths.bulk;
        let bulk = has_bulk
            .then(|| measure(&Order::Bulk { target, millis }))
            .transpose()?;
        let count = connections.count.max(1) as f64;
        Ok(Self {
            connections_per_second: count / connections.seconds,
            connect: connections.connect,
            cpu_us_per_connection: (connections.cpu_us + server_cpu) as f64 / count,
            requests_per_second: requests.count as f64 / requests.seconds,
            request: requests.request,
            bulk_gbit_per_second: bulk
                .map(|(bulk, _)| bulk.bytes as f64 * 8.0 / bulk.seconds / 1e9),
        })
    }
}

pub type Figure = fn(&Round) -> Option<f64>;

pub const CONNECTIONS: Figure = |round| Some(round.connections_per_second);

/// What two paths are compared by.
const FIGURES: [(&str, Figure); 5] = [
    ("connections/s", CONNECTIONS),
    ("connect p50", |round| Some(round.connect.p50_us)),
    // Others on the machine disturb it the least.
    ("CPU/connection", |round| Some(round.cpu_us_per_connection)),
    ("requests/s", |round| Some(round.requests_per_second)),
    ("bulk", |round| round.bulk_gbit_per_second),
];

/// One path against another, round by round.
pub fn compare(ours: &[Round], theirs: &[Round], figure: Figure) -> Option<Comparison> {
    let values = |rounds: &[Round]| rounds.iter().filter_map(figure).collect::<Vec<_>>();
    Comparison::of(values(ours), values(theirs))
}

/// The head of a table of comparisons, behind the columns that say of what.
pub fn comparisons_head(of: &[&str]) -> String {
    let columns = of.iter().copied().chain(FIGURES.map(|(name, _)| name));
    let columns: Vec<_> = columns.collect();
    let rule = "---|".repeat(columns.len());
    format!("| {} |\n|{rule}\n", columns.join(" | "))
}

/// One path against another by each figure: a row of that table.
pub fn comparisons_row(of: &[&str], ours: &[Round], theirs: &[Round]) -> String {
    let compared = FIGURES
        .map(|(_, figure)| compare(ours, theirs, figure).map_or(String::new(), |it| say(&it)));
    format!("| {} | {} |\n", of.join(" | "), compared.join(" | "))
}

/// A comparison as a report has it.
fn say(comparison: &Comparison) -> String {
    let ratio = comparison.ratio;
    match comparison.verdict {
        Verdict::WithinTheSpread => format!("same ({:.2} to {:.2})", ratio.low, ratio.high),
        Verdict::More | Verdict::Less => {
            format!(
                "**{:.2}** ({:.2} to {:.2})",
                ratio.median, ratio.low, ratio.high
            )
        }
    }
}

/// A figure with its spread.
pub fn cell(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or(String::new(), |spread| {
        format!(
            "{:.digits$} ± {:.0} %",
            spread.median,
            spread.relative() * 100.0
        )
    })
}

/// Half of the times, and 99 of 100.
pub fn pair(p50: Option<Spread>, p99: Option<Spread>) -> String {
    match (p50, p99) {
        (Some(p50), Some(p99)) => format!("{:.1} / {:.1}", p50.median, p99.median),
        _ => String::new(),
    }
}
