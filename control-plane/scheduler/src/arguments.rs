//! The arguments of plugins, as a profile's `pluginConfig` has them.

use k8s_openapi::api::core::v1::{NodeAffinity, TopologySpreadConstraint};
use serde::Deserialize;
use serde_json::Value;

use crate::config::{ConfigError, ProfileConfig, invalid};

/// The arguments that change what plugins do; those of no effect here are read and dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) fit: FitArguments,
    pub(crate) affinity: AffinityArguments,
    pub(crate) spread: SpreadArguments,
    pub(crate) node_affinity: NodeAffinityArguments,
    pub(crate) balance: BalanceArguments,
    pub(crate) volumes: VolumeArguments,
    pub(crate) preemption: PreemptionArguments,
}

/// NodeAffinityArgs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct NodeAffinityArguments {
    pub(crate) added_affinity: Option<NodeAffinity>,
}

/// NodeResourcesBalancedAllocationArgs.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct BalanceArguments {
    pub(crate) resources: Vec<ResourceWeight>,
}

impl Default for BalanceArguments {
    fn default() -> Self {
        Self {
            resources: default_resources(),
        }
    }
}

/// VolumeBindingArgs; its `shape` belongs to a feature that is off by default.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct VolumeArguments {
    pub(crate) bind_timeout_seconds: u64,
}

impl Default for VolumeArguments {
    fn default() -> Self {
        Self {
            bind_timeout_seconds: 600,
        }
    }
}

/// DefaultPreemptionArgs: on how many nodes victims are found before the best of them is taken.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct PreemptionArguments {
    /// Of a hundred.
    pub(crate) min_candidate_nodes_percentage: i32,
    pub(crate) min_candidate_nodes_absolute: i32,
}

impl Default for PreemptionArguments {
    fn default() -> Self {
        Self {
            min_candidate_nodes_percentage: 10,
            min_candidate_nodes_absolute: 100,
        }
    }
}

impl PreemptionArguments {
    /// How many candidates are enough in a cluster of so many nodes.
    pub(crate) fn enough(self, nodes: usize) -> usize {
        let number = |given: i32| usize::try_from(given).unwrap_or(0);
        let share = nodes * number(self.min_candidate_nodes_percentage) / 100;
        share.max(number(self.min_candidate_nodes_absolute))
    }

    fn check(self, field: &str) -> Result<(), ConfigError> {
        let (share, least) = (
            self.min_candidate_nodes_percentage,
            self.min_candidate_nodes_absolute,
        );
        if !(0..=100).contains(&share) {
            return Err(invalid(
                field,
                "minCandidateNodesPercentage: not in 0..=100",
            ));
        }
        if least < 0 || (share, least) == (0, 0) {
            return Err(invalid(
                field,
                "minCandidateNodesAbsolute: must be positive, or 0 beside a percentage",
            ));
        }
        Ok(())
    }
}

/// NodeResourcesFitArgs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct FitArguments {
    pub(crate) ignored_resources: Vec<String>,
    pub(crate) ignored_resource_groups: Vec<String>,
    pub(crate) scoring_strategy: ScoringStrategy,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct ScoringStrategy {
    #[serde(rename = "type")]
    pub(crate) kind: StrategyKind,
    pub(crate) resources: Vec<ResourceWeight>,
    pub(crate) requested_to_capacity_ratio: Option<Ratio>,
}

impl Default for ScoringStrategy {
    fn default() -> Self {
        Self {
            kind: StrategyKind::LeastAllocated,
            resources: default_resources(),
            requested_to_capacity_ratio: None,
        }
    }
}

fn default_resources() -> Vec<ResourceWeight> {
    ["cpu", "memory"]
        .map(|name| ResourceWeight {
            name: name.to_owned(),
            weight: 1,
        })
        .into()
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub(crate) enum StrategyKind {
    LeastAllocated,
    MostAllocated,
    RequestedToCapacityRatio,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ResourceWeight {
    pub(crate) name: String,
    #[serde(default = "one")]
    pub(crate) weight: i64,
}

fn one() -> i64 {
    1
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Ratio {
    #[serde(default)]
    pub(crate) shape: Vec<ShapePoint>,
}

/// From a utilization of so many hundredths on, a node is worth so many tenths.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct ShapePoint {
    pub(crate) utilization: i64,
    pub(crate) score: i64,
}

/// InterPodAffinityArgs.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct AffinityArguments {
    /// What an existing pod's required affinity for the newcomer is worth.
    pub(crate) hard_pod_affinity_weight: i64,
    pub(crate) ignore_preferred_terms_of_existing_pods: bool,
}

impl Default for AffinityArguments {
    fn default() -> Self {
        Self {
            hard_pod_affinity_weight: 1,
            ignore_preferred_terms_of_existing_pods: false,
        }
    }
}

/// PodTopologySpreadArgs.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(crate) struct SpreadArguments {
    pub(crate) default_constraints: Vec<TopologySpreadConstraint>,
    pub(crate) defaulting_type: Defaulting,
}

/// Whose constraints apply to pods without any.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) enum Defaulting {
    #[default]
    System,
    List,
}

impl Arguments {
    pub(crate) fn of(profile: &ProfileConfig) -> Result<Self, ConfigError> {
        let mut arguments = Self::default();
        for config in &profile.plugin_config {
            let field = format!("pluginConfig[{}]", config.name);
            let mut args = config.args.as_object().cloned().unwrap_or_default();
            // What kind of arguments they are, the plugin's name says already.
            args.remove("apiVersion");
            args.remove("kind");
            let args = Value::Object(args);
            match config.name.as_str() {
                "NodeResourcesFit" => {
                    arguments.fit = serde_json::from_value(args)?;
                    check_strategy(&field, &mut arguments.fit.scoring_strategy)?;
                }
                "InterPodAffinity" => {
                    arguments.affinity = serde_json::from_value(args)?;
                    if !(0..=100).contains(&arguments.affinity.hard_pod_affinity_weight) {
                        return Err(invalid(field, "hardPodAffinityWeight: not in 0..=100"));
                    }
                }
                "PodTopologySpread" => {
                    arguments.spread = serde_json::from_value(args)?;
                    let listed = !arguments.spread.default_constraints.is_empty();
                    if listed && arguments.spread.defaulting_type == Defaulting::System {
                        return Err(invalid(
                            field,
                            "defaultConstraints need defaultingType List",
                        ));
                    }
                }
                "NodeAffinity" => arguments.node_affinity = serde_json::from_value(args)?,
                "NodeResourcesBalancedAllocation" => {
                    arguments.balance = serde_json::from_value(args)?;
                    let resources = &arguments.balance.resources;
                    // Shares are compared: there is nothing to weigh.
                    if resources.iter().any(|resource| resource.weight != 1) {
                        return Err(invalid(field, "the weight of every resource must be 1"));
                    }
                    if resources.is_empty() {
                        arguments.balance = BalanceArguments::default();
                    }
                }
                "VolumeBinding" => arguments.volumes = serde_json::from_value(args)?,
                "DefaultPreemption" => {
                    arguments.preemption = serde_json::from_value(args)?;
                    arguments.preemption.check(&field)?;
                }
                // Their time limits: here a search is bounded by its tries.
                "DynamicResources" => {}
                other => return Err(invalid(field, format!("{other:?} takes no arguments"))),
            }
        }
        Ok(arguments)
    }
}

fn check_strategy(field: &str, strategy: &mut ScoringStrategy) -> Result<(), ConfigError> {
    if strategy.resources.is_empty() {
        strategy.resources = default_resources();
    }
    if let Some(wrong) = strategy
        .resources
        .iter()
        .find(|resource| !(1..=100).contains(&resource.weight))
    {
        return Err(invalid(
            field,
            format!("the weight of {:?} is not in 1..=100", wrong.name),
        ));
    }
    let shape = strategy
        .requested_to_capacity_ratio
        .as_ref()
        .map(|ratio| ratio.shape.as_slice())
        .unwrap_or_default();
    if strategy.kind == StrategyKind::RequestedToCapacityRatio && shape.is_empty() {
        return Err(invalid(field, "requestedToCapacityRatio.shape is required"));
    }
    let rises = shape
        .windows(2)
        .all(|pair| pair[0].utilization < pair[1].utilization);
    let within = shape
        .iter()
        .all(|point| (0..=100).contains(&point.utilization) && (0..=10).contains(&point.score));
    if !rises || !within {
        return Err(invalid(
            field,
            "the points of a shape must rise in utilization (0..=100) and score 0..=10",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_candidates_are_enough_as_the_arguments_say() {
        let told = |share, least| PreemptionArguments {
            min_candidate_nodes_percentage: share,
            min_candidate_nodes_absolute: least,
        };
        assert_eq!(PreemptionArguments::default().enough(50), 100);
        assert_eq!(PreemptionArguments::default().enough(5_000), 500);
        assert_eq!(told(0, 1).enough(5_000), 1);
        assert_eq!(told(100, 0).enough(7), 7);
        assert!(told(0, 1).check("x").is_ok() && told(1, 0).check("x").is_ok());
        for wrong in [told(101, 1), told(-1, 1), told(5, -1), told(0, 0)] {
            assert!(wrong.check("x").is_err(), "{wrong:?}");
        }
    }
}
