//! Waiting for something that another process brings about.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

const INTERVAL: Duration = Duration::from_millis(20);

/// Asks until there is a value, at most for `limit`; `what` completes the sentence "waited in vain for".
pub fn eventually<T>(
    limit: Duration,
    what: &str,
    mut question: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(value) = question()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("waited {limit:?} in vain for {what}");
        }
        pause(INTERVAL);
    }
}

/// Like `eventually`, for a condition without a value.
pub fn until(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<bool>,
) -> Result<()> {
    eventually(limit, what, || Ok(condition()?.then_some(())))
}

/// For a test that watches what happens over a span of time.
#[allow(
    clippy::disallowed_methods,
    reason = "tests have no asynchronous runtime to block"
)]
pub fn pause(time: Duration) {
    std::thread::sleep(time);
}
