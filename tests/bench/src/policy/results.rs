//! What was measured, every round of it: what policy.json holds.

use serde::Serialize;

use crate::machine::Machine;
use crate::rounds::Round;
use crate::statistics::Spread;

/// Where the two pods are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    OneNode,
    Direct,
    Vxlan,
}

impl Place {
    pub const ALL: [Self; 3] = [Self::OneNode, Self::Direct, Self::Vxlan];

    pub fn name(self) -> &'static str {
        match self {
            Self::OneNode => "one node",
            Self::Direct => "two nodes, direct routing",
            Self::Vxlan => "two nodes, VXLAN",
        }
    }
}

#[derive(Serialize)]
pub struct Results {
    pub machine: Machine,
    pub load_after: f64,
    /// Of the cluster that the tables are made for.
    pub pods: usize,
    pub measured: Vec<Measured>,
}

#[derive(Serialize)]
pub struct Measured {
    pub place: Place,
    /// On both pods; none: no program at all, the kernel routes.
    pub policies: Option<usize>,
    pub rounds: Vec<Round>,
    /// From the order to the first connection that is let in.
    pub change_ms: Vec<f64>,
}

impl Results {
    pub fn new(machine: Machine, pods: usize) -> Self {
        Self {
            machine,
            load_after: 0.0,
            pods,
            measured: Vec::new(),
        }
    }

    pub fn at(&self, place: Place) -> impl Iterator<Item = &Measured> {
        self.measured.iter().filter(move |it| it.place == place)
    }
}

impl Measured {
    pub fn new(place: Place, policies: Option<usize>) -> Self {
        Self {
            place,
            policies,
            rounds: Vec::new(),
            change_ms: Vec::new(),
        }
    }

    pub fn name(&self) -> String {
        match self.policies {
            None => "plain routing".to_owned(),
            Some(1) => "windlass, 1 policy".to_owned(),
            Some(count) => format!("windlass, {count} policies"),
        }
    }

    pub fn spread(&self, figure: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.rounds.iter().filter_map(figure))
    }
}
