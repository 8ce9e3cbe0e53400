//! KubeSchedulerConfiguration (`kubescheduler.config.k8s.io/v1`), as kube-scheduler reads it from
//! `--config`: profiles under names of their own, plugins switched on, off and weighed at each extension
//! point, and the arguments of plugins.
//!
//! A field that this scheduler does not know, and an argument that it would not obey, is an error: a
//! cluster that silently schedules otherwise than it was told is worse than one that does not start.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::Value;

const API_VERSION: &str = "kubescheduler.config.k8s.io/v1";
const KIND: &str = "KubeSchedulerConfiguration";
pub(crate) const DEFAULT_NAME: &str = "default-scheduler";

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Neither YAML nor JSON.
    #[error("not readable as YAML or JSON: {0}")]
    Syntax(String),
    /// Another document than a KubeSchedulerConfiguration.
    #[error("expected {KIND} of {API_VERSION}, found {kind:?} of {api_version:?}")]
    Kind {
        /// What the document says it is.
        kind: String,
        /// In which version.
        api_version: String,
    },
    /// A field is unknown or of another type.
    #[error("{0}")]
    Field(#[from] serde_json::Error),
    /// A value that makes no sense.
    #[error("{field}: {problem}")]
    Value {
        /// Where in the document.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
}

pub(crate) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        field: field.into(),
        problem: problem.into(),
    }
}

/// What the scheduler can be told.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Pods name one of these; pods of others are left alone.
    pub profiles: Vec<ProfileConfig>,
    /// How many nodes in a hundred are enough to choose from; `None` or 0: by the size of the cluster.
    pub percentage_of_nodes_to_score: Option<u8>,
    /// How long a pod rests after its first failure; doubled with each further one.
    pub initial_backoff: Duration,
    /// The longest rest.
    pub max_backoff: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            profiles: vec![ProfileConfig::default()],
            percentage_of_nodes_to_score: None,
            initial_backoff: Duration::from_secs(1),
            max_backoff: Duration::from_secs(10),
        }
    }
}

impl SchedulerConfig {
    /// Reads a document, YAML or JSON.
    pub fn parse(document: &[u8]) -> Result<Self, ConfigError> {
        let decoded = windlass_machinery::yaml::decode(document)
            .map_err(|error| ConfigError::Syntax(error.to_string()))?;
        let said = |field: &str| {
            let value = decoded.value.get(field).and_then(Value::as_str);
            value.unwrap_or_default().to_owned()
        };
        let (kind, api_version) = (said("kind"), said("apiVersion"));
        if (kind.as_str(), api_version.as_str()) != (KIND, API_VERSION) {
            return Err(ConfigError::Kind { kind, api_version });
        }
        let document: Document = serde_json::from_value(decoded.value)?;
        document.try_into()
    }
}

/// The document as written. What other parts of kube-scheduler need (its client, its lease, its
/// profiling) is accepted, because files that were made for it have it, and has no meaning here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    #[serde(rename = "apiVersion")]
    _api_version: String,
    #[serde(rename = "kind")]
    _kind: String,
    #[serde(default)]
    profiles: Vec<ProfileConfig>,
    percentage_of_nodes_to_score: Option<i64>,
    pod_initial_backoff_seconds: Option<u64>,
    pod_max_backoff_seconds: Option<u64>,
    #[serde(default)]
    extenders: Vec<Value>,
    #[serde(rename = "parallelism")]
    _parallelism: Option<i32>,
    #[serde(rename = "leaderElection")]
    _leader_election: Option<Value>,
    #[serde(rename = "clientConnection")]
    _client_connection: Option<Value>,
    #[serde(rename = "enableProfiling")]
    _enable_profiling: Option<bool>,
    #[serde(rename = "enableContentionProfiling")]
    _enable_contention_profiling: Option<bool>,
    #[serde(rename = "delayCacheUntilActive")]
    _delay_cache_until_active: Option<bool>,
}

/// One profile, as written.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProfileConfig {
    /// What pods write into `spec.schedulerName`.
    #[serde(default = "default_name")]
    pub scheduler_name: String,
    pub(crate) percentage_of_nodes_to_score: Option<i64>,
    /// By extension point.
    #[serde(default)]
    pub(crate) plugins: BTreeMap<String, PluginSet>,
    #[serde(default)]
    pub(crate) plugin_config: Vec<PluginConfig>,
}

fn default_name() -> String {
    DEFAULT_NAME.to_owned()
}

impl Default for ProfileConfig {
    fn default() -> Self {
        Self {
            scheduler_name: default_name(),
            percentage_of_nodes_to_score: None,
            plugins: BTreeMap::new(),
            plugin_config: Vec::new(),
        }
    }
}

/// What is switched on and off at an extension point.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PluginSet {
    #[serde(default)]
    pub(crate) enabled: Vec<PluginRef>,
    #[serde(default)]
    pub(crate) disabled: Vec<PluginRef>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PluginRef {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) weight: i64,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct PluginConfig {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) args: Value,
}

impl TryFrom<Document> for SchedulerConfig {
    type Error = ConfigError;

    fn try_from(document: Document) -> Result<Self, ConfigError> {
        if !document.extenders.is_empty() {
            return Err(invalid("extenders", "extenders are not supported"));
        }
        let mut profiles = document.profiles;
        if profiles.is_empty() {
            profiles.push(ProfileConfig::default());
        }
        let mut names: Vec<_> = profiles.iter().map(|p| p.scheduler_name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(invalid("profiles", format!("duplicate {:?}", twice[0])));
        }
        if names.contains(&"") {
            return Err(invalid("profiles", "a schedulerName is empty"));
        }
        let seconds = |given: Option<u64>, default| given.map_or(default, Duration::from_secs);
        let default = Self::default();
        let config = Self {
            percentage_of_nodes_to_score: percentage(
                "percentageOfNodesToScore",
                document.percentage_of_nodes_to_score,
            )?,
            initial_backoff: seconds(
                document.pod_initial_backoff_seconds,
                default.initial_backoff,
            ),
            max_backoff: seconds(document.pod_max_backoff_seconds, default.max_backoff),
            profiles,
        };
        if config.initial_backoff.is_zero() || config.max_backoff < config.initial_backoff {
            return Err(invalid(
                "podMaxBackoffSeconds",
                "must be at least podInitialBackoffSeconds, which must be positive",
            ));
        }
        Ok(config)
    }
}

pub(crate) fn percentage(field: &str, given: Option<i64>) -> Result<Option<u8>, ConfigError> {
    given
        .map(|given| {
            let valid = u8::try_from(given).ok().filter(|given| *given <= 100);
            valid.ok_or_else(|| invalid(field, "must be between 0 and 100"))
        })
        .transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arguments::{Arguments, StrategyKind};

    fn parse(rest: &str) -> Result<SchedulerConfig, ConfigError> {
        SchedulerConfig::parse(
            format!("apiVersion: {API_VERSION}\nkind: {KIND}\n{rest}").as_bytes(),
        )
    }

    #[test]
    fn an_empty_document_is_the_default() {
        let config = parse("").unwrap();
        assert_eq!(config.profiles.len(), 1);
        assert_eq!(config.profiles[0].scheduler_name, DEFAULT_NAME);
        assert_eq!(config.max_backoff, Duration::from_secs(10));
    }

    #[test]
    fn what_a_file_for_kube_scheduler_usually_has_is_read() {
        let config = parse(
            "parallelism: 16\nleaderElection: {leaderElect: true}\nclientConnection: {qps: 50}\n\
             percentageOfNodesToScore: 30\npodInitialBackoffSeconds: 2\npodMaxBackoffSeconds: 20\n\
             profiles:\n- schedulerName: packing\n  plugins:\n    score:\n      disabled: [{name: '*'}]\n      \
             enabled: [{name: NodeResourcesFit, weight: 5}]\n  pluginConfig:\n  - name: NodeResourcesFit\n    \
             args: {apiVersion: kubescheduler.config.k8s.io/v1, kind: NodeResourcesFitArgs, \
             scoringStrategy: {type: MostAllocated}}\n- {}\n",
        )
        .unwrap();
        assert_eq!(config.percentage_of_nodes_to_score, Some(30));
        assert_eq!(config.initial_backoff, Duration::from_secs(2));
        assert_eq!(config.profiles[1].scheduler_name, DEFAULT_NAME);
        let arguments = Arguments::of(&config.profiles[0]).unwrap();
        let strategy = arguments.fit.scoring_strategy;
        assert_eq!(strategy.kind, StrategyKind::MostAllocated);
        assert_eq!(strategy.resources.len(), 2);
    }

    #[test]
    fn what_would_not_be_obeyed_is_refused() {
        let refused = [
            "profils: []",
            "percentageOfNodesToScore: 101",
            "profiles: [{schedulerName: a}, {schedulerName: a}]",
            "extenders: [{urlPrefix: http://x}]",
            "podInitialBackoffSeconds: 11",
        ];
        let wrong_args =
            "profiles: [{pluginConfig: [{name: NodeResourcesFit, args: {scoring: {}}}]}]";
        assert!(Arguments::of(&parse(wrong_args).unwrap().profiles[0]).is_err());
        for rest in refused {
            assert!(parse(rest).is_err(), "{rest}");
        }
        let other = SchedulerConfig::parse(b"apiVersion: v1\nkind: ConfigMap\n");
        assert!(matches!(other, Err(ConfigError::Kind { .. })));
    }
}
