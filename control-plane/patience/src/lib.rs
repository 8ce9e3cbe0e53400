//! How soon something that failed is tried again: a broken watch, a write to the kernel.
//!
//! A crate of its own, because controllers and every part of the node agent wait for the same servers and none of
//! them depends on all others. It depends on `kube` alone, for the trait.

use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);
/// What has gone well for so long has not only begun.
const SETTLED: Duration = Duration::from_secs(1);

/// A node catches up within seconds of the API server's return, however long it was away:
/// the usual half minute would be half a minute in which deleted pods run on. With jitter,
/// so that a thousand nodes do not come back in the same instant.
#[derive(Debug, Clone)]
pub struct Patience {
    next: Duration,
    /// From when on a success of what is tried again is one.
    settled: Option<Instant>,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            next: FIRST,
            settled: None,
        }
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next.mul_f64(rand::random_range(0.8..1.2));
        self.next = (self.next * 2).min(MOST);
        self.settled = Some(Instant::now() + pause + SETTLED);
        Some(pause)
    }
}

impl Patience {
    fn reset_at(&mut self, now: Instant) {
        if self.settled.is_some_and(|settled| now >= settled) {
            *self = Self::default();
        }
    }
}

impl Backoff for Patience {
    /// A watch says that it begins before each list, also before one that is refused: that is no success yet.
    fn reset(&mut self) {
        self.reset_at(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_seconds_and_begin_anew_after_success() {
        let mut patience = Patience::default();
        let pauses: Vec<Duration> = patience.by_ref().take(9).collect();
        assert!(pauses[0] < Duration::from_millis(121));
        assert!(pauses[8] > Duration::from_secs(3) && pauses[8] < Duration::from_secs(7));
        // As a watch does when it begins again.
        patience.reset();
        assert!(
            patience
                .next()
                .is_some_and(|pause| pause > Duration::from_secs(3))
        );
        patience.reset_at(Instant::now() + MOST * 3);
        assert!(
            patience
                .next()
                .is_some_and(|pause| pause < Duration::from_millis(121))
        );
    }
}
