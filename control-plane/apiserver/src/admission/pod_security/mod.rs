//! Pod Security Standards (KEP-2579): namespaces say by label which pods they take.
//!
//! [`checks`] holds the standards themselves, one function a control; this file knows the labels, the levels
//! and the words. Pure: the admission plugin hands in the namespace's labels and the pod.

mod checks;
mod plugin;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value};

pub(crate) use plugin::PodSecurity;

/// A level of the Pod Security Standards; each includes the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Level {
    Privileged,
    Baseline,
    Restricted,
}

impl Level {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Privileged, Self::Baseline, Self::Restricted]
            .into_iter()
            .find(|l| l.name() == text)
    }
}

/// A level with the version label's text, `latest` where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LevelVersion {
    pub(super) level: Level,
    pub(super) version: String,
}

impl fmt::Display for LevelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.level.name(), self.version)
    }
}

/// What a namespace asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) enforce: LevelVersion,
    pub(super) audit: LevelVersion,
    pub(super) warn: LevelVersion,
}

const PREFIX: &str = "pod-security.kubernetes.io/";

impl Policy {
    /// Reads a namespace's labels. A level that does not parse counts as restricted (upstream: fail closed
    /// to the strictest), a missing one as privileged.
    pub(super) fn from_labels(labels: Option<&Map<String, Value>>) -> Self {
        let text = |key: String| labels.and_then(|l| l.get(&key)).and_then(Value::as_str);
        let mode = |mode: &str| LevelVersion {
            level: text(format!("{PREFIX}{mode}")).map_or(Level::Privileged, |l| {
                Level::parse(l).unwrap_or(Level::Restricted)
            }),
            version: text(format!("{PREFIX}{mode}-version"))
                .unwrap_or("latest")
                .to_owned(),
        };
        let enforce = mode("enforce");
        Self {
            audit: mode("audit"),
            warn: mode("warn"),
            enforce,
        }
    }
}

/// One control that a pod breaks: a short reason, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) reason: &'static str,
    pub(super) detail: String,
}

/// What of `level` the pod breaks, as `reason (detail), …`; `None` when it is allowed.
pub(super) fn violations(level: &LevelVersion, metadata: &Value, spec: &Value) -> Option<String> {
    let found = evaluate(level.level, metadata, spec);
    if found.is_empty() {
        return None;
    }
    let texts: Vec<String> = found
        .into_iter()
        .map(|v| {
            if v.detail.is_empty() {
                v.reason.to_owned()
            } else {
                format!("{} ({})", v.reason, v.detail)
            }
        })
        .collect();
    Some(texts.join(", "))
}

fn evaluate(level: Level, metadata: &Value, spec: &Value) -> Vec<Violation> {
    let mut found: BTreeMap<usize, Violation> = BTreeMap::new();
    for (order, check) in checks::ALL.iter().enumerate() {
        if level < check.level {
            continue;
        }
        // A restricted control that replaces a baseline one says the same more strictly.
        if level == Level::Restricted && check.overridden {
            continue;
        }
        if let Some(detail) = (check.run)(metadata, spec) {
            found.insert(
                order,
                Violation {
                    reason: check.reason,
                    detail,
                },
            );
        }
    }
    found.into_values().collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(level: Level, spec: Value) -> Option<String> {
        violations(
            &LevelVersion {
                level,
                version: "latest".into(),
            },
            &json!({}),
            &spec,
        )
    }

    #[test]
    fn a_plain_pod_passes_baseline_and_breaks_restricted_in_upstreams_words() {
        let spec = json!({"containers": [{"name": "c"}]});
        assert_eq!(text(Level::Baseline, spec.clone()), None);
        assert_eq!(
            text(Level::Restricted, spec).unwrap(),
            "allowPrivilegeEscalation != false (container \"c\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" \
             must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \
             \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must \
             set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
    }

    #[test]
    fn a_hardened_pod_passes_restricted() {
        let spec = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
            "volumes": [{"name": "v", "emptyDir": {}}],
        });
        assert_eq!(text(Level::Restricted, spec), None);
    }

    #[test]
    fn each_baseline_control_is_found() {
        let table = [
            (
                json!({"hostNetwork": true, "containers": []}),
                "host namespaces (hostNetwork=true)",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
                "privileged (container \"c\" must not set securityContext.privileged=true)",
            ),
            (
                json!({"containers": [], "volumes": [{"name": "h", "hostPath": {"path": "/"}}]}),
                "hostPath volumes (volume \"h\")",
            ),
            (
                json!({"containers": [{"name": "c", "ports": [{"containerPort": 1, "hostPort": 80}]}]}),
                "hostPort (container \"c\" uses hostPort 80)",
            ),
            (
                json!({"containers": [{"name": "c", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}}]}),
                "non-default capabilities (container \"c\" must not include \"NET_ADMIN\" in securityContext.capabilities.add)",
            ),
            (
                json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}, "containers": []}),
                "forbidden sysctls (kernel.msgmax)",
            ),
            (
                json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}, "containers": []}),
                "seccompProfile (pod must not set securityContext.seccompProfile.type to \"Unconfined\")",
            ),
        ];
        for (spec, expected) in table {
            assert_eq!(text(Level::Baseline, spec).as_deref(), Some(expected));
        }
    }

    #[test]
    fn labels_say_the_levels_and_a_wrong_one_fails_closed() {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": "v1.30",
            "pod-security.kubernetes.io/warn": "nonsense"});
        let policy = Policy::from_labels(labels.as_object());
        assert_eq!(policy.enforce.to_string(), "baseline:v1.30");
        assert_eq!(policy.warn.level, Level::Restricted);
        assert_eq!(policy.audit.level, Level::Privileged);
    }
}
