//! What follows from the rounds; where they contradict each other, that nothing follows.

use std::fmt::Write as _;

use super::results::{Measured, Results, Round};
use super::way::Way;
use crate::statistics::{Comparison, Verdict};

pub type Figure = fn(&Round) -> Option<f64>;

pub const CONNECTIONS: Figure = |round| Some(round.connections_per_second);

const FIGURES: [(&str, Figure); 4] = [
    ("connections/s", CONNECTIONS),
    ("connect p50", |round| Some(round.connect.p50_us)),
    ("requests/s", |round| Some(round.requests_per_second)),
    ("bulk", |round| round.bulk_gbit_per_second),
];

/// Ours against each other way, at each size.
pub fn table(results: &Results) -> String {
    let mut text = String::from("| Services | | against |");
    for (name, _) in FIGURES {
        let _ = write!(text, " {name} |");
    }
    text.push_str("\n|---|---|---|---|---|---|---|\n");
    for size in results.sizes() {
        for ours in [Way::SocketHook, Way::Tc, Way::Xdp, Way::Cluster] {
            for theirs in Way::ALL.into_iter().filter(|way| !way.is_windlass()) {
                let pair = results.of(ours, size).zip(results.of(theirs, size));
                let Some((our_rounds, their_rounds)) = pair.filter(|_| ours != theirs) else {
                    continue;
                };
                if our_rounds.rounds.is_empty() || their_rounds.rounds.is_empty() {
                    continue;
                }
                let _ = write!(text, "| {size} | {} | {} |", ours.name(), theirs.name());
                for (_, figure) in FIGURES {
                    let comparison = compare(our_rounds, their_rounds, figure);
                    let _ = write!(text, " {} |", comparison.map_or(String::new(), |c| say(&c)));
                }
                text.push('\n');
            }
        }
    }
    text
}

pub fn compare(ours: &Measured, theirs: &Measured, figure: Figure) -> Option<Comparison> {
    let values = |measured: &Measured| {
        measured
            .rounds
            .iter()
            .filter_map(figure)
            .collect::<Vec<_>>()
    };
    Comparison::of(values(ours), values(theirs))
}

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
