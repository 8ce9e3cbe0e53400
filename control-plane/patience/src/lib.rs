//! How soon something that failed is tried again: a broken watch, a write to the kernel, a connection for which no
//! descriptor was left.
//!
//! A crate of its own, because controllers and every part of the node agent wait for the same servers and none of
//! them depends on all others.

use std::io;
use std::time::{Duration, Instant};

use kube::runtime::utils::Backoff;
use kube::runtime::watcher;

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

/// Whether a watch failed because there is no such kind (now): trying again soon is in vain.
pub fn is_not_served(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code == 404,
        _ => false,
    }
}

/// How long a server that has no descriptors left waits for connections to end.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// The next connection of a listener, whose `accept` this is: one that cannot be accepted, mostly for want of
/// descriptors, is told and tried again. As safe to cancel as `accept`.
pub async fn accepted<C, F>(mut accept: impl FnMut() -> F) -> C
where
    F: Future<Output = io::Result<C>>,
{
    loop {
        match accept().await {
            Ok(connection) => return connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_listener_goes_on_when_descriptors_are_there_again() {
        let mut refused = 3;
        let accept = || {
            let none = refused > 0;
            refused -= i32::from(none);
            std::future::ready(if none {
                Err(io::Error::from_raw_os_error(24)) // EMFILE
            } else {
                Ok("a connection")
            })
        };
        assert_eq!(accepted(accept).await, "a connection");
        assert_eq!(refused, 0);
    }

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
