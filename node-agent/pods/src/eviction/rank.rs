//! Who has to go when the node is short of something.

use std::cmp::Reverse;

/// From this priority on a pod is never evicted by its node.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

/// A pod, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) uid: String,
    pub(super) priority: i32,
    pub(super) is_static: bool,
    /// Of what the node is short of.
    pub(super) used: i64,
    pub(super) requested: i64,
}

/// The first to go: one that uses more than it asked for, among those the least important,
/// among those the one that is furthest above its request. None if nobody may go.
pub(super) fn first(candidates: &[Candidate]) -> Option<&Candidate> {
    candidates
        .iter()
        .filter(|pod| pod.priority < CRITICAL_PRIORITY && !pod.is_static)
        .max_by_key(|pod| {
            let above = pod.used - pod.requested;
            (above > 0, Reverse(pod.priority), above)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_greedy_and_unimportant_go_first_and_the_critical_never() {
        let pod = |uid: &str, priority, used, requested| Candidate {
            uid: uid.into(),
            priority,
            is_static: false,
            used,
            requested,
        };
        let name = |pods: &[Candidate]| first(pods).map(|pod| pod.uid.clone());
        let modest = pod("modest", 0, 50, 100);
        let greedy = pod("greedy", 0, 120, 100);
        let greedier = pod("greedier", 0, 300, 100);
        let important = pod("important", 10, 900, 100);
        let critical = pod("critical", CRITICAL_PRIORITY, 9000, 0);
        let all = [
            modest.clone(),
            greedy,
            greedier,
            important.clone(),
            critical.clone(),
        ];
        assert_eq!(name(&all).as_deref(), Some("greedier"));
        assert_eq!(
            name(&[modest.clone(), important]).as_deref(),
            Some("important")
        );
        assert_eq!(name(&[critical.clone(), modest]).as_deref(), Some("modest"));
        assert_eq!(name(&[critical]), None);
    }
}
