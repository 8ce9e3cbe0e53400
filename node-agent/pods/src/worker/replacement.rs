//! Containers that are stopped to be started anew at once, with another image or other
//! resources.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::memory::later;

/// How long the next container may take to start before the pod is told to be without it.
const NOTICED_AFTER: Duration = Duration::from_secs(2);

/// Between the end of such a container and the start of the next one the pod's status stays
/// as it was, for a while: a kubelet, too, looks again only when both are done, and whoever
/// changes an image and then goes on from the status he read would else meet a gap that is
/// over before he can act on it.
#[derive(Debug, Default)]
pub(super) struct Replacement {
    /// Ids of those that are being stopped.
    stopped: BTreeSet<String>,
    quiet_until: Option<Timestamp>,
}

impl Replacement {
    pub(super) fn stopping(&mut self, id: &str) {
        self.stopped.insert(id.to_owned());
    }

    /// A container ended, says the first of those who tell of it.
    pub(super) fn ended(&mut self, id: &str, now: Timestamp) {
        if self.stopped.remove(id) {
            self.quiet_until = Some(later(now, NOTICED_AFTER));
        }
    }

    /// A container was started, or could not be.
    pub(super) fn over(&mut self) {
        self.quiet_until = None;
    }

    /// Until when the status stays as it is.
    pub(super) fn quiet_until(&self, now: Timestamp) -> Option<Timestamp> {
        self.quiet_until.filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_container_that_is_replaced_ends_unnoticed_and_not_for_long() {
        let now = Timestamp::UNIX_EPOCH;
        let mut replacement = Replacement::default();
        replacement.ended("crashed", now);
        assert_eq!(replacement.quiet_until(now), None);

        replacement.stopping("old");
        assert_eq!(replacement.quiet_until(now), None, "it still runs");
        replacement.ended("old", now);
        let end = later(now, NOTICED_AFTER);
        assert_eq!(replacement.quiet_until(now), Some(end));
        assert_eq!(replacement.quiet_until(end), None);

        replacement.over();
        assert_eq!(replacement.quiet_until(now), None);
    }
}
