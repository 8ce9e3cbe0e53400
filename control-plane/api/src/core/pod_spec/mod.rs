//! A pod's spec: what Pods and the templates of all workloads have in common.

pub mod affinity;
pub mod annotations;
pub mod compute;
pub mod container;
pub mod defaults;
pub mod env;
pub mod kept;
pub mod network;
pub mod probe;
pub mod projected;
pub mod security;
pub mod spread;
pub mod toleration;
pub mod volume;
pub mod volume_source;
pub mod warnings;
pub mod windows;

use std::collections::HashSet;

use serde_json::{Value, json};
use windlass_machinery::names;
use windlass_machinery::validation::{Errors, Path};

pub use affinity::node_selector;
pub use compute::{qos_class, requirements};
pub use kept::Kept;
pub use toleration::tolerations;

use crate::tree::Tree;
use crate::validate::labels::labels;
use crate::validate::{named, one_of, optional_name, sentences};

/// What the rules of a spec depend on beside the spec.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    owner: Owner,
    /// The pod's name, after which the claims of its ephemeral volumes are named; `""` for templates.
    pub pod_name: &'a str,
    pub kept: Kept,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Pod,
    Template,
}

impl<'a> Context<'a> {
    pub fn pod(name: &'a str) -> Self {
        Self {
            owner: Owner::Pod,
            pod_name: name,
            kept: Kept::default(),
        }
    }

    pub fn template() -> Self {
        Self {
            owner: Owner::Template,
            pod_name: "",
            kept: Kept::default(),
        }
    }

    fn is_pod(&self) -> bool {
        self.owner == Owner::Pod
    }
}

/// In the order in which upstream lists them.
pub const RESTART_POLICIES: &[&str] = &["Always", "OnFailure", "Never"];

/// Checks a defaulted spec.
pub fn validate(spec: &Value, context: &Context<'_>, path: &Path, errors: &mut Errors) {
    let volumes = volume::volumes(spec, context, path, errors);
    resource_claims(spec, path, errors);
    container::containers(spec, context, &volumes, path, errors);
    compute::pod_level(spec, &context.kept, path, errors);
    container::host_network_ports(spec, context.is_pod(), path, errors);
    one_of(spec, "restartPolicy", RESTART_POLICIES, path, errors);
    network::dns_policy(spec, path, errors);
    labels(spec.at("nodeSelector"), &path.child("nodeSelector"), errors);
    security::pod(spec, context, path, errors);
    let affinity_path = path.child("affinity");
    affinity::affinity(spec.at("affinity"), &context.kept, &affinity_path, errors);
    network::dns_config(spec, path, errors);
    readiness_gates(spec, path, errors);
    scheduling_gates(spec, path, errors);
    spread::constraints(spec, context, path, errors);
    windows::host_process(spec, path, errors);
    security::host_users(spec, context, path, errors);
    container::visit(spec, path, |container, path| {
        env::file_volumes(container, spec.list("volumes"), path, errors);
    });
    let subdomain = names::is_dns1123_subdomain;
    optional_name(spec, "serviceAccountName", subdomain, path, errors);
    optional_name(spec, "nodeName", subdomain, path, errors);
    if let Some(seconds) = spec.int("activeDeadlineSeconds")
        && !(1..=i64::from(i32::MAX)).contains(&seconds)
    {
        let detail = names::inclusive_range(1, i32::MAX.into());
        errors.invalid(&path.child("activeDeadlineSeconds"), seconds, detail);
    }
    network::names(spec, path, errors);
    network::hostname_override(spec, path, errors);
    tolerations(spec.at("tolerations"), &path.child("tolerations"), errors);
    network::host_aliases(spec, path, errors);
    optional_name(spec, "priorityClassName", subdomain, path, errors);
    if let Some(class) = spec.at("runtimeClassName").as_str() {
        sentences(
            subdomain(class),
            &path.child("runtimeClassName"),
            class,
            errors,
        );
    }
    if spec.has("preemptionPolicy") {
        let policies = &["PreemptLowerPriority", "Never"];
        one_of(spec, "preemptionPolicy", policies, path, errors);
    }
    let overhead = json!({"limits": spec.at("overhead")});
    let overhead_path = path.child("overhead");
    compute::requirements(&overhead, &[], &context.kept, &overhead_path, errors);
    windows::for_system(spec, path, errors);
    if context.is_pod() {
        only_for_pods(spec, path, errors);
    }
}

/// What templates are not held to, since they have stood without it.
fn only_for_pods(spec: &Value, path: &Path, errors: &mut Errors) {
    if spec.text("serviceAccountName").is_empty() {
        tokens_without_account(spec, path, errors);
    }
    for list in ["containers", "initContainers"] {
        for (i, container) in spec.list(list).iter().enumerate() {
            container::trimmed_image(container, &path.child(list).index(i), errors);
        }
    }
}

fn tokens_without_account(spec: &Value, path: &Path, errors: &mut Errors) {
    for (i, volume) in spec.list("volumes").iter().enumerate() {
        let path = projected::sources(path, i);
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
        sentences(names::is_qualified_name(name), &path, name, errors);
        if !seen.insert(name) {
            errors.duplicate(&path, name);
        }
    }
}

fn resource_claims(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = HashSet::new();
    for (i, claim) in spec.list("resourceClaims").iter().enumerate() {
        let path = path.child("resourceClaims").index(i);
        let name = claim.text("name");
        if seen.contains(name) {
            errors.duplicate(&path.child("name"), name);
        } else {
            named(claim, "name", names::is_dns1123_label, &path, errors);
        }
        if !name.is_empty() {
            seen.insert(name);
        }
        let fields = ["resourceClaimName", "resourceClaimTemplateName"];
        let detail = match fields.map(|field| claim.has(field)) {
            [true, true] => {
                "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"
            }
            [false, false] => {
                "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"
            }
            _ => "",
        };
        if !detail.is_empty() {
            errors.invalid(&path, claim.clone(), detail);
        }
        for field in fields {
            if let Some(name) = claim.at(field).as_str() {
                let problems = names::is_dns1123_subdomain(name);
                sentences(problems, &path.child(field), name, errors);
            }
        }
    }
}
