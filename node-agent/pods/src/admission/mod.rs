//! Whether this node takes a pod that the scheduler, or somebody past it, gave to it.
//!
//! The scheduler decides with what it knows; the node has the last word. A pod that does not
//! fit fails at once, with a reason by which its owner makes another one elsewhere.

mod ledger;
mod sysctl;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use windlass_informers::placement;

pub(crate) use ledger::{Ledger, Refusal};

use crate::memory::Verdict;
use crate::model::{is_static, spec};

/// What a pod is held against besides the node's resources.
pub(crate) struct Rules<'a> {
    /// As it was last seen; absent until then.
    pub(crate) node: Option<&'a Node>,
    /// Names of unsafe sysctls that pods may set, a trailing `*` standing for anything.
    pub(crate) allowed_sysctls: &'a [String],
}

/// Checks everything that does not depend on other pods.
pub(crate) fn check(pod: &Pod, rules: &Rules<'_>) -> Result<(), Verdict> {
    let predicate =
        |name: &str, why: &str| Verdict::rejected(name, format!("Predicate {name} failed: {why}"));
    if let Some(os) = spec(pod).os.as_ref().filter(|os| os.name != "linux") {
        let message = format!(
            "Failed to admit pod as the OS field doesn't match node OS: {:?}",
            os.name
        );
        return Err(Verdict::rejected("PodOSNotSupported", message));
    }
    if let Some(node) = rules.node {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let none = BTreeMap::new();
        let labels = node.metadata.labels.as_ref().unwrap_or(&none);
        if !placement::allows(spec(pod), name, labels) {
            let why = "node(s) didn't match Pod's node affinity/selector";
            return Err(predicate("NodeAffinity", why));
        }
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        let evicting = |effect: &str| effect == "NoExecute";
        let untolerated = taints
            .into_iter()
            .flatten()
            .any(|taint| evicting(&taint.effect) && !placement::tolerated(spec(pod), taint));
        if untolerated && !is_static(pod) {
            let why = "node(s) had taints that the pod didn't tolerate";
            return Err(predicate("TaintToleration", why));
        }
    }
    if let Some(node) = rules.node {
        check_groups_policy(pod, node)?;
    }
    sysctl::check(pod, rules.allowed_sysctls)
        .map_err(|message| Verdict::rejected("SysctlForbidden", message))
}

/// A runtime that does not know the policy would merge the image's groups in, which `Strict` forbids.
fn check_groups_policy(pod: &Pod, node: &Node) -> Result<(), Verdict> {
    let security = spec(pod).security_context.as_ref();
    let policy = security.and_then(|security| security.supplemental_groups_policy.as_deref());
    let features = node.status.as_ref().and_then(|it| it.features.as_ref());
    let known = features.and_then(|it| it.supplemental_groups_policy);
    if policy == Some("Strict") && known != Some(true) {
        return Err(Verdict::rejected(
            "SupplementalGroupsPolicyNotSupported",
            "SupplementalGroupsPolicy=Strict is not supported in this node",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn verdict(pod_spec: Value) -> Option<String> {
        let mut pod_spec = pod_spec;
        pod_spec["containers"] = json!([]);
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": pod_spec})).unwrap();
        let node: Node = serde_json::from_value(json!({
            "metadata": {"name": "n1", "labels": {"disk": "ssd"}},
            "spec": {"taints": [{"key": "gone", "effect": "NoExecute"},
                                {"key": "busy", "effect": "NoSchedule"}]},
        }))
        .unwrap();
        let allowed = ["net.core.*".to_owned()];
        let rules = Rules {
            node: Some(&node),
            allowed_sysctls: &allowed,
        };
        check(&pod, &rules).err().map(|verdict| verdict.reason)
    }

    #[test]
    fn pods_that_do_not_belong_here_are_told_why() {
        let tolerant = |mut spec: Value| {
            spec["tolerations"] = json!([{"key": "gone", "operator": "Exists"}]);
            verdict(spec)
        };
        assert_eq!(tolerant(json!({})), None);
        assert_eq!(verdict(json!({})).as_deref(), Some("TaintToleration"));
        let affinity = Some("NodeAffinity".to_owned());
        assert_eq!(tolerant(json!({"nodeSelector": {"disk": "hdd"}})), affinity);
        let os = Some("PodOSNotSupported".to_owned());
        assert_eq!(tolerant(json!({"os": {"name": "windows"}})), os);
        let groups = json!({"securityContext": {"supplementalGroupsPolicy": "Strict"}});
        let policy = Some("SupplementalGroupsPolicyNotSupported".to_owned());
        assert_eq!(tolerant(groups), policy);
        let sysctls = |name: &str, host_network: bool| {
            tolerant(json!({"hostNetwork": host_network,
                "securityContext": {"sysctls": [{"name": name, "value": "1"}]}}))
        };
        let forbidden = Some("SysctlForbidden".to_owned());
        assert_eq!(sysctls("kernel.shm_rmid_forced", false), None);
        assert_eq!(sysctls("net/ipv4/tcp_syncookies", false), None);
        assert_eq!(sysctls("net.core.somaxconn", false), None);
        assert_eq!(sysctls("kernel.msgmax", false), forbidden);
        assert_eq!(sysctls("net.ipv4.tcp_syncookies", true), forbidden);
    }
}
