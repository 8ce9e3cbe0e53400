//! When a container that ended is started again.

use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use super::{Role, Slot, spec};

/// The three policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartPolicy {
    /// In any case.
    Always,
    /// If it failed.
    OnFailure,
    /// Not at all.
    Never,
}

impl RestartPolicy {
    fn parse(text: &str) -> Self {
        match text {
            "Never" => Self::Never,
            "OnFailure" => Self::OnFailure,
            _ => Self::Always,
        }
    }

    fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// The pod's policy, for containers without one of their own.
pub fn restart_policy(pod: &Pod) -> RestartPolicy {
    RestartPolicy::parse(spec(pod).restart_policy.as_deref().unwrap_or("Always"))
}

/// Whether a container that ended with this code is started again at some time.
pub fn restarts(pod: &Pod, slot: &Slot<'_>, exit_code: i32) -> bool {
    match slot.role {
        Role::Sidecar => true,
        // Whoever debugs starts another one.
        Role::Ephemeral => false,
        // An init container that succeeded has done its work.
        Role::Init if exit_code == 0 => false,
        Role::Init | Role::Main => own_decision(&slot.container, exit_code)
            .unwrap_or_else(|| restart_policy(pod).restarts(exit_code)),
    }
}

/// What the container itself says (KEP-5307): its rules, then its policy.
fn own_decision(container: &Container, exit_code: i32) -> Option<bool> {
    let policy = container.restart_policy.as_deref()?;
    let rules = container.restart_policy_rules.iter().flatten();
    if rules.into_iter().any(|rule| applies(rule, exit_code)) {
        return Some(true);
    }
    Some(RestartPolicy::parse(policy).restarts(exit_code))
}

fn applies(rule: &ContainerRestartRule, exit_code: i32) -> bool {
    let Some(codes) = rule
        .exit_codes
        .as_ref()
        .filter(|_| rule.action == "Restart")
    else {
        return false;
    };
    let listed = codes.values.iter().flatten().any(|code| *code == exit_code);
    match codes.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::slots;

    #[test]
    fn a_containers_own_rules_go_before_its_policy_and_that_before_the_pods() {
        let decides = |pod_wide: &str, own: serde_json::Value, code: i32| {
            let mut container = json!({"name": "c"});
            for (key, value) in own.as_object().unwrap() {
                container[key] = value.clone();
            }
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {}, "spec": {"restartPolicy": pod_wide, "containers": [container]},
            }))
            .unwrap();
            let slot = slots(&pod).next().unwrap();
            restarts(&pod, &slot, code)
        };
        let rule = |operator: &str, codes: &[i32]| {
            json!({"restartPolicy": "Never", "restartPolicyRules": [
                {"action": "Restart", "exitCodes": {"operator": operator, "values": codes}},
            ]})
        };
        for (pod_wide, own, code, expected) in [
            ("Always", json!({}), 0, true),
            ("OnFailure", json!({}), 0, false),
            ("OnFailure", json!({}), 1, true),
            ("Never", json!({}), 1, false),
            ("Always", json!({"restartPolicy": "Never"}), 1, false),
            ("Never", json!({"restartPolicy": "OnFailure"}), 1, true),
            ("Always", rule("In", &[42]), 42, true),
            ("Always", rule("In", &[42]), 1, false),
            ("Never", rule("NotIn", &[42]), 42, false),
            ("Never", rule("NotIn", &[42]), 1, true),
        ] {
            assert_eq!(
                decides(pod_wide, own.clone(), code),
                expected,
                "{own} {code}"
            );
        }
    }
}
