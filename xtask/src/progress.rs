//! Lines that say what is being done, with the time since the start in front.

use std::time::{Duration, Instant};

pub struct Progress {
    start: Instant,
}

impl Progress {
    pub fn start() -> Self {
        Self {
            start: Instant::now(),
        }
    }

    pub fn say(&self, what: impl std::fmt::Display) {
        println!("[{:>6.1}s] {what}", self.start.elapsed().as_secs_f64());
    }

    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }
}
