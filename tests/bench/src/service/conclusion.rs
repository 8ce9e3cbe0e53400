//! What follows from the rounds; where they contradict each other, that nothing follows.

use std::fmt::Write as _;

use super::results::Results;
use super::way::Way;
use crate::rounds::{FIGURES, compare, say};

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
                    let comparison = compare(&our_rounds.rounds, &their_rounds.rounds, figure);
                    let _ = write!(text, " {} |", comparison.map_or(String::new(), |c| say(&c)));
                }
                text.push('\n');
            }
        }
    }
    text
}
