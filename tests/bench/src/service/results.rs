//! What was measured, every round of it: what service.json holds.

use serde::Serialize;

use super::way::Way;
use super::world::Loaded;
use crate::machine::Machine;
use crate::rounds::Round;
use crate::statistics::Spread;

#[derive(Serialize)]
pub struct Results {
    pub machine: Machine,
    pub load_after: f64,
    pub endpoints_per_service: usize,
    /// Ways that this machine does not have, and why.
    pub absent: Vec<(Way, String)>,
    pub measured: Vec<Measured>,
}

/// One way at one size.
#[derive(Serialize)]
pub struct Measured {
    pub way: Way,
    pub services: usize,
    pub loaded: Option<Loaded>,
    /// Seconds after which loading was given up.
    pub not_loaded_within: Option<f64>,
    /// From the order to the first connection that the new endpoint answers.
    pub change_ms: Vec<f64>,
    pub rounds: Vec<Round>,
}

impl Results {
    pub fn new(machine: Machine, endpoints_per_service: usize) -> Self {
        Self {
            machine,
            load_after: 0.0,
            endpoints_per_service,
            absent: Vec::new(),
            measured: Vec::new(),
        }
    }

    pub fn sizes(&self) -> Vec<usize> {
        let mut sizes: Vec<usize> = self
            .measured
            .iter()
            .map(|measured| measured.services)
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    pub fn of(&self, way: Way, services: usize) -> Option<&Measured> {
        self.measured
            .iter()
            .find(|measured| measured.way == way && measured.services == services)
    }
}

impl Measured {
    pub fn new(way: Way, services: usize) -> Self {
        Self {
            way,
            services,
            loaded: None,
            not_loaded_within: None,
            change_ms: Vec::new(),
            rounds: Vec::new(),
        }
    }

    pub fn spread(&self, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }
}
