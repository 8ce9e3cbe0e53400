//! What happens, for the person who waits: on standard error, so that results alone are on standard output.

use std::time::Instant;

pub struct Progress(Instant);

impl Progress {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    pub fn say(&self, what: impl std::fmt::Display) {
        eprintln!("[{:>6.1} s] {what}", self.0.elapsed().as_secs_f64());
    }
}
