//! What follows from the rounds; where they contradict each other, that nothing follows.

use super::results::Results;
use super::way::Way;
use crate::rounds::{comparisons_head, comparisons_row};

/// Ours against each other way, at each size.
pub fn table(results: &Results) -> String {
    let mut text = comparisons_head(&["Services", "", "against"]);
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
                let of = [&size.to_string(), ours.name(), theirs.name()];
                text.push_str(&comparisons_row(
                    &of,
                    &our_rounds.rounds,
                    &their_rounds.rounds,
                ));
            }
        }
    }
    text
}
