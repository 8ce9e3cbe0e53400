//! Waiting for a condition that no file descriptor announces.

use std::time::{Duration, Instant};

const INTERVAL: Duration = Duration::from_millis(10);

/// Asks until the answer is yes, at most for `limit`; says whether it was.
#[allow(
    clippy::disallowed_methods,
    reason = "xtask has no asynchronous runtime to block"
)]
pub fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(INTERVAL);
    }
}
