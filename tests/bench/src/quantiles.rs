//! Latencies: every one is kept until the end of a round, so nothing is rounded into buckets.

use serde::{Deserialize, Serialize};
use std::time::Duration;

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50_us: f64,
    pub p99_us: f64,
    pub max_us: f64,
}

#[derive(Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency.as_nanos() as u64);
    }

    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn quantiles(mut self) -> Quantiles {
        self.0.sort_unstable();
        let at = |part: f64| {
            let index = (self.0.len() as f64 * part) as usize;
            let index = index.min(self.0.len().saturating_sub(1));
            self.0
                .get(index)
                .map_or(0.0, |nanoseconds| *nanoseconds as f64 / 1e3)
        };
        Quantiles {
            p50_us: at(0.5),
            p99_us: at(0.99),
            max_us: at(1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_that_were_measured() {
        let mut latencies = Latencies::default();
        for micros in 1..=200 {
            latencies.add(Duration::from_micros(micros));
        }
        let quantiles = latencies.quantiles();
        assert_eq!(
            (quantiles.p50_us, quantiles.p99_us, quantiles.max_us),
            (101.0, 199.0, 200.0)
        );
        assert_eq!(Latencies::default().quantiles(), Quantiles::default());
    }
}
