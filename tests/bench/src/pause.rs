//! The one place that sleeps: no part of a measurement runs on an async runtime when it calls this.

use std::time::Duration;

#[expect(
    clippy::disallowed_methods,
    reason = "between two looks at something that announces nothing; no runtime runs here"
)]
pub fn between_looks(time: Duration) {
    std::thread::sleep(time);
}
