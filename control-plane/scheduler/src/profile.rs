//! Profiles: several schedulers in one, each with a name that pods choose and plugins of its own. All
//! share the queue, the cache and the order of pods, so that they never overbook a node between them.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use ahash::AHashMap;
use k8s_openapi::api::core::v1::Pod;

use crate::{
    arguments::{Arguments, PreemptionArguments},
    cache::Snapshot,
    config::{
        ConfigError, DEFAULT_NAME, PluginSet, ProfileConfig, SchedulerConfig, invalid, percentage,
    },
    event::Event,
    framework::{Filter, Plugin, Score},
    node::NodeInfo,
    plugins::{Lookup, plugins},
    pod::PodInfo,
    storage::Storage,
};

/// Plugins that are no [`Plugin`]s here because there is one way to do what they do.
const SORT: &str = "PrioritySort";
const BIND: &str = "DefaultBinder";
const PREEMPTION: &str = "DefaultPreemption";

const POINTS: [&str; 13] = [
    "multiPoint",
    "preEnqueue",
    "queueSort",
    "preFilter",
    "filter",
    "postFilter",
    "preScore",
    "score",
    "reserve",
    "permit",
    "preBind",
    "bind",
    "postBind",
];

pub(crate) type Plugins = Vec<Box<dyn Plugin>>;

/// One scheduler among others.
pub(crate) struct Profile {
    pub(crate) name: String,
    pub(crate) plugins: Plugins,
    /// How many nodes in a hundred are enough; `None`: by their number.
    pub(crate) percentage: Option<u8>,
    /// Whether, and after how long a search, less important pods may be made to go.
    pub(crate) preemption: Option<PreemptionArguments>,
    /// How long a pod's volumes may take to be bound.
    pub(crate) volume_patience: Duration,
    /// Whether DynamicResources is asked, too, when no node was found.
    pub(crate) asks_claims: bool,
}

/// All of them, by name.
pub(crate) struct Profiles(AHashMap<String, Profile>);

impl Profiles {
    pub(crate) fn new(
        config: &SchedulerConfig,
        lookup: &Arc<dyn Lookup>,
        storage: &Arc<dyn Storage>,
    ) -> Result<Self, ConfigError> {
        let everywhere = config.percentage_of_nodes_to_score;
        let profile = |written: &ProfileConfig| -> Result<(String, Profile), ConfigError> {
            let profile = Profile::new(written, everywhere, lookup, storage)?;
            Ok((profile.name.clone(), profile))
        };
        let profiles: Result<AHashMap<_, _>, ConfigError> =
            config.profiles.iter().map(profile).collect();
        profiles.map(Self)
    }

    #[cfg(test)]
    pub(crate) fn single(plugins: Plugins) -> Self {
        let profile = Profile {
            name: DEFAULT_NAME.to_owned(),
            plugins,
            percentage: None,
            preemption: Some(PreemptionArguments::default()),
            volume_patience: Duration::from_secs(600),
            asks_claims: true,
        };
        Self([(profile.name.clone(), profile)].into())
    }

    /// The profile that a pod asks for; `None` if it is somebody else's.
    pub(crate) fn of(&self, pod: &Pod) -> Option<&Profile> {
        let asked = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.scheduler_name.as_deref());
        self.0.get(asked.unwrap_or(DEFAULT_NAME))
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.0.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn plugins_of(&self, pod: &PodInfo) -> &[Box<dyn Plugin>] {
        self.of(&pod.pod)
            .map(|profile| profile.plugins.as_slice())
            .unwrap_or_default()
    }
}

impl Profile {
    fn new(
        written: &ProfileConfig,
        everywhere: Option<u8>,
        lookup: &Arc<dyn Lookup>,
        storage: &Arc<dyn Storage>,
    ) -> Result<Self, ConfigError> {
        let at = format!("profiles[{}]", written.scheduler_name);
        let arguments = Arguments::of(written)?;
        let all = plugins(Arc::clone(lookup), Arc::clone(storage), &arguments);
        let rules = Rules { written };
        rules.check(&at, &all)?;
        if !rules.active(BIND, &["bind"]) || !rules.active(SORT, &["queueSort"]) {
            return Err(invalid(
                at,
                format!("{BIND} and {SORT} cannot be replaced or disabled"),
            ));
        }
        let plugins = all
            .into_iter()
            .filter_map(|plugin| {
                let name = plugin.name();
                let configured = Configured {
                    gates: rules.active(name, &["preEnqueue"]),
                    filters: rules.active(name, &["preFilter", "filter"]),
                    scores: rules.active(name, &["preScore", "score"]),
                    weight: rules.weight(name).unwrap_or(plugin.weight()),
                    plugin,
                };
                let any = configured.gates || configured.filters || configured.scores;
                any.then(|| Box::new(configured) as Box<dyn Plugin>)
            })
            .collect();
        let own = percentage(&at, written.percentage_of_nodes_to_score)?;
        Ok(Self {
            name: written.scheduler_name.clone(),
            plugins,
            percentage: own.or(everywhere).filter(|percentage| *percentage > 0),
            preemption: rules
                .active(PREEMPTION, &["postFilter"])
                .then_some(arguments.preemption),
            volume_patience: Duration::from_secs(arguments.volumes.bind_timeout_seconds),
            asks_claims: rules.active("DynamicResources", &["postFilter"]),
        })
    }
}

/// What a profile says about each plugin. Without a word all of them do all that they can, as if they were
/// enabled at `multiPoint` (KEP-2891).
struct Rules<'a> {
    written: &'a ProfileConfig,
}

impl Rules<'_> {
    fn check(&self, at: &str, all: &[Box<dyn Plugin>]) -> Result<(), ConfigError> {
        for (point, set) in &self.written.plugins {
            if !POINTS.contains(&point.as_str()) {
                return Err(invalid(
                    at,
                    format!("there is no extension point {point:?}"),
                ));
            }
            let exists = |name: &str| {
                [SORT, BIND, PREEMPTION].contains(&name)
                    || all.iter().any(|plugin| plugin.name() == name)
            };
            if let Some(unknown) = set.enabled.iter().find(|plugin| !exists(&plugin.name)) {
                let problem = format!("plugin {:?} does not exist", unknown.name);
                return Err(invalid(format!("{at}.plugins.{point}.enabled"), problem));
            }
        }
        Ok(())
    }

    fn set(&self, point: &str) -> Option<&PluginSet> {
        self.written.plugins.get(point)
    }

    fn enabled(&self, point: &str, name: &str) -> bool {
        self.set(point)
            .is_some_and(|set| set.enabled.iter().any(|plugin| plugin.name == name))
    }

    fn disabled(&self, point: &str, name: &str) -> bool {
        self.set(point).is_some_and(|set| {
            set.disabled
                .iter()
                .any(|plugin| plugin.name == name || plugin.name == "*")
        })
    }

    /// Whether it works at these points. `enabled` beats `disabled`, the point beats `multiPoint`.
    fn active(&self, name: &str, points: &[&str]) -> bool {
        let anywhere = self.enabled("multiPoint", name) || !self.disabled("multiPoint", name);
        points.iter().all(|point| {
            // The step before (preFilter, preScore) has no life of its own here: naming the step is enough.
            let named = points.iter().any(|point| self.enabled(point, name));
            named || (anywhere && !self.disabled(point, name))
        })
    }

    fn weight(&self, name: &str) -> Option<i64> {
        ["score", "multiPoint"].into_iter().find_map(|point| {
            let plugin = self
                .set(point)?
                .enabled
                .iter()
                .find(|plugin| plugin.name == name)?;
            (plugin.weight > 0).then_some(plugin.weight)
        })
    }
}

/// A plugin that does only what its profile lets it do.
struct Configured {
    plugin: Box<dyn Plugin>,
    gates: bool,
    filters: bool,
    scores: bool,
    weight: i64,
}

impl Plugin for Configured {
    fn name(&self) -> &'static str {
        self.plugin.name()
    }

    fn gate(&self, pod: &PodInfo) -> Option<String> {
        self.gates.then(|| self.plugin.gate(pod))?
    }

    fn refuse(&self, pod: &PodInfo) -> Option<String> {
        self.filters.then(|| self.plugin.refuse(pod))?
    }

    fn narrow(&self, pod: &PodInfo) -> Option<BTreeSet<String>> {
        self.filters.then(|| self.plugin.narrow(pod))?
    }

    fn prepare_filter<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
    ) -> Option<Box<dyn Filter + 'a>> {
        self.filters
            .then(|| self.plugin.prepare_filter(pod, snapshot))?
    }

    fn prepare_score<'a>(
        &'a self,
        pod: &'a PodInfo,
        snapshot: &'a Snapshot,
        feasible: &'a [Arc<NodeInfo>],
    ) -> Option<Box<dyn Score + 'a>> {
        self.scores
            .then(|| self.plugin.prepare_score(pod, snapshot, feasible))?
    }

    fn weight(&self) -> i64 {
        self.weight
    }

    fn wakes(&self, pod: &PodInfo, event: &Event) -> bool {
        self.plugin.wakes(pod, event)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::{
        cycle::{Nominated, choose},
        plugins::tests::*,
    };

    fn profiles(written: Value) -> Result<Profiles, ConfigError> {
        let document = json!({"apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration", "profiles": written});
        let config = SchedulerConfig::parse(document.to_string().as_bytes())?;
        let lookup: Arc<dyn Lookup> = Arc::new(Fixed::default());
        let storage: Arc<dyn Storage> = Arc::new(Disks::default());
        Profiles::new(&config, &lookup, &storage)
    }

    fn asking(scheduler: &str) -> Arc<PodInfo> {
        pod(
            "p",
            json!({}),
            json!({"schedulerName": scheduler, "containers":
            [{"name": "c", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}]}),
        )
    }

    fn chosen(profiles: &Profiles, pod: &PodInfo, snapshot: &Snapshot) -> Option<String> {
        choose(
            profiles.of(&pod.pod)?,
            pod,
            snapshot,
            &Nominated::new(),
            &mut 0,
        )
        .ok()
    }

    #[test]
    fn each_profile_places_by_its_own_plugins() {
        let strategy = json!([{"name": "NodeResourcesFit", "args": {"scoringStrategy": {"type": "MostAllocated"}}}]);
        let only_fit = json!({"score": {"disabled": [{"name": "*"}], "enabled": [{"name": "NodeResourcesFit"}]}});
        let profiles = profiles(json!([
            {"schedulerName": "default-scheduler"},
            {"schedulerName": "packing", "plugins": only_fit, "pluginConfig": strategy},
            {"schedulerName": "careless", "plugins": {"filter": {"disabled": [{"name": "NodeUnschedulable"}]}}},
        ]))
        .unwrap();
        let busy = pod(
            "busy",
            json!({}),
            json!({"containers":
            [{"name": "c", "resources": {"requests": {"cpu": "2", "memory": "2Gi"}}}]}),
        );
        let two = Snapshot::of([
            node("busy", json!({}), json!({}), &[busy]),
            node("empty", json!({}), json!({}), &[]),
        ]);
        let at = |name: &str| chosen(&profiles, &asking(name), &two);
        assert_eq!(at("default-scheduler").as_deref(), Some("empty"));
        assert_eq!(at("packing").as_deref(), Some("busy"));
        assert_eq!(at("somebody-else"), None);
        let cordoned = json!({"spec": {"unschedulable": true}});
        let cordoned = Snapshot::of([node("n", json!({}), cordoned, &[])]);
        assert_eq!(
            chosen(&profiles, &asking("default-scheduler"), &cordoned),
            None
        );
        assert!(chosen(&profiles, &asking("careless"), &cordoned).is_some());
    }

    #[test]
    fn multi_point_and_single_points_are_weighed_as_documented() {
        let profiles = profiles(json!([{"plugins": {
            "multiPoint": {"disabled": [{"name": "*"}],
                "enabled": [{"name": "NodeResourcesFit", "weight": 7}, {"name": "NodeAffinity", "weight": 3},
                    {"name": "PrioritySort"}, {"name": "DefaultBinder"}]},
            "score": {"enabled": [{"name": "NodeResourcesFit", "weight": 9}]},
        }}]))
        .unwrap();
        let profile = profiles.of(&Pod::default()).unwrap();
        let weights: Vec<_> = profile
            .plugins
            .iter()
            .map(|p| (p.name(), p.weight()))
            .collect();
        assert_eq!(weights, [("NodeAffinity", 3), ("NodeResourcesFit", 9)]);
        assert!(profile.preemption.is_none());
    }

    #[test]
    fn what_does_not_exist_and_what_must_stay_is_refused() {
        let with = |plugins: Value| profiles(json!([{"plugins": plugins}])).is_err();
        assert!(with(
            json!({"score": {"enabled": [{"name": "Coscheduling"}]}})
        ));
        assert!(with(json!({"scor": {}})));
        assert!(with(json!({"bind": {"disabled": [{"name": "*"}]}})));
        assert!(!with(
            json!({"score": {"disabled": [{"name": "ImageLocality"}]}})
        ));
    }
}
