//! The types of `metrics.k8s.io/v1beta1`, which `k8s-openapi` does not have: descriptions only, nothing is ever made of them.
//! Their comments are what `kubectl explain` shows.

#![allow(dead_code)]

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use schemars::JsonSchema;

/// What a container uses.
#[derive(JsonSchema)]
#[schemars(rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.ContainerMetrics")]
pub(super) struct ContainerMetrics {
    /// The container's name in its pod.
    name: String,
    /// The working set of memory at the timestamp, and the processor time of the window for each second of it.
    usage: BTreeMap<String, Quantity>,
}

/// What a node uses.
#[derive(JsonSchema)]
#[schemars(
    rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.NodeMetrics",
    rename_all = "camelCase"
)]
pub(super) struct NodeMetrics {
    /// The version of this representation of the object.
    api_version: Option<String>,
    /// The REST resource that this object represents.
    kind: Option<String>,
    /// Name and labels are the Node's.
    metadata: ObjectMeta,
    /// When the window ended.
    timestamp: Time,
    /// Over which time usage was measured.
    window: String,
    /// The working set of memory at the timestamp, and the processor time of the window for each second of it.
    usage: BTreeMap<String, Quantity>,
}

/// What the containers of a pod use.
#[derive(JsonSchema)]
#[schemars(
    rename = "io.k8s.metrics.pkg.apis.metrics.v1beta1.PodMetrics",
    rename_all = "camelCase"
)]
pub(super) struct PodMetrics {
    /// The version of this representation of the object.
    api_version: Option<String>,
    /// The REST resource that this object represents.
    kind: Option<String>,
    /// Name, namespace and labels are the Pod's.
    metadata: ObjectMeta,
    /// When the window ended.
    timestamp: Time,
    /// Over which time usage was measured.
    window: String,
    /// Each container that runs.
    containers: Vec<ContainerMetrics>,
}
