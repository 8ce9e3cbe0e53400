//! A pod's spec: what Pods and the templates of all workloads have in common.

pub mod affinity;
pub mod compute;
pub mod container;
pub mod defaults;
pub mod env;
pub mod network;
pub mod probe;
pub mod security;
pub mod spread;
pub mod toleration;
pub mod volume;
pub mod volume_source;
pub mod warnings;

use std::collections::HashSet;

use serde_json::Value;
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

pub use affinity::node_selector;
pub use compute::{qos_class, requirements};
pub use toleration::tolerations;

use crate::tree::Tree;
use crate::validate::labels::labels;
use crate::validate::quantities::{amount, container_resource_name};
use crate::validate::{named, one_of, optional_name, sentences};

/// What a spec belongs to, where the rules differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    Pod,
    Template,
}

pub const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];

/// Checks a defaulted spec.
pub fn validate(spec: &Value, owner: Owner, path: &Path, errors: &mut Errors) {
    let volumes = volume::volumes(spec, path, errors);
    container::containers(spec, owner, &volumes, path, errors);
    one_of(spec, "restartPolicy", RESTART_POLICIES, path, errors);
    network::dns(spec, path, errors);
    labels(spec.at("nodeSelector"), &path.child("nodeSelector"), errors);
    security::pod(spec, path, errors);
    affinity::affinity(spec.at("affinity"), &path.child("affinity"), errors);
    readiness_gates(spec, path, errors);
    scheduling_gates(spec, path, errors);
    spread::constraints(spec, path, errors);
    for (field, check) in [
        (
            "serviceAccountName",
            names::is_dns1123_subdomain as fn(&str) -> Vec<String>,
        ),
        ("nodeName", names::is_dns1123_subdomain),
        ("priorityClassName", names::is_dns1123_subdomain),
        ("runtimeClassName", names::is_dns1123_subdomain),
    ] {
        optional_name(spec, field, check, path, errors);
    }
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        errors.invalid(
            &path.child("activeDeadlineSeconds"),
            seconds,
            "must be between 1 and 2147483647, inclusive",
        );
    }
    network::names(spec, path, errors);
    tolerations(spec.at("tolerations"), &path.child("tolerations"), errors);
    network::host_aliases(spec, path, errors);
    if spec.has("os") {
        one_of(
            spec.at("os"),
            "name",
            &["linux", "windows"],
            &path.child("os"),
            errors,
        );
    }
    if let Some(policy) = spec.at("preemptionPolicy").as_str()
        && !["PreemptLowerPriority", "Never"].contains(&policy)
    {
        errors.not_supported(
            &path.child("preemptionPolicy"),
            policy,
            &["PreemptLowerPriority", "Never"],
        );
    }
    compute::pod_level(spec, path, errors);
    for (name, value) in spec.entries("overhead") {
        let path = path.child("overhead").child("limits").key(name);
        container_resource_name(name, &path, errors);
        amount(name, value, &path, errors);
    }
    resource_claims(spec, path, errors);
    if owner == Owner::Pod && spec.text("serviceAccountName").is_empty() {
        tokens_without_account(spec, path, errors);
    }
}

fn tokens_without_account(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let path = path
            .child("volumes")
            .index(i)
            .child("projected")
            .child("sources");
        for (j, source) in volume.list("projected.sources").iter().enumerate() {
            if source.has("serviceAccountToken") {
                errors.forbidden(
                    &path.index(j).child("serviceAccountToken"),
                    "must not be specified when serviceAccountName is not set",
                );
            }
        }
    }
}

fn readiness_gates(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, gate) in spec.list("readinessGates").iter().enumerate() {
        let kind = gate.text("conditionType");
        let path = path.child("readinessGates").index(i).child("conditionType");
        sentences(names::is_qualified_name(kind), &path, kind, errors);
    }
}

fn scheduling_gates(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, gate) in spec.list("schedulingGates").iter().enumerate() {
        let path = path.child("schedulingGates").index(i);
        let name = gate.text("name");
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
        sentences(names::is_qualified_name(name), &path, name, errors);
    }
}

fn resource_claims(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, claim) in spec.list("resourceClaims").iter().enumerate() {
        let path = path.child("resourceClaims").index(i);
        named(claim, "name", names::is_dns1123_label, &path, errors);
        let name = claim.text("name");
        if !name.is_empty() && !seen.insert(name) {
            errors.duplicate(&path.child("name"), name);
        }
        let by_name = claim.has("resourceClaimName");
        let by_template = claim.has("resourceClaimTemplateName");
        if by_name && by_template {
            errors.invalid(
                &path,
                claim.clone(),
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified",
            );
        } else if !by_name && !by_template {
            errors.invalid(
                &path,
                claim.clone(),
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`",
            );
        }
        optional_name(
            claim,
            "resourceClaimName",
            names::is_dns1123_subdomain,
            &path,
            errors,
        );
        optional_name(
            claim,
            "resourceClaimTemplateName",
            names::is_dns1123_subdomain,
            &path,
            errors,
        );
    }
}
