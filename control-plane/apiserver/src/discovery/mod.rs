//! Discovery: which groups, versions and resources are served, in the aggregated and the older form.

mod aggregated;
mod legacy;
mod remote;

use std::sync::Arc;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use windlass_api::resource::{Resource, Subresource};

pub(crate) use self::aggregated::aggregated;
pub(crate) use self::legacy::{group, groups, resources, versions};
pub(crate) use self::remote::{add_aggregated, add_groups, group as remote_group};

/// What the server calls itself; the API level is Kubernetes' own.
pub(crate) const GIT_VERSION: &str = "v1.35.0+windlass";

/// What a program was built from.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// The commit's id; empty where that is not known.
    pub commit: &'static str,
    /// `clean`, or `dirty` with changes that are in no commit.
    pub tree: &'static str,
    /// When the commit was made, so that the same sources give the same program. RFC 3339.
    pub date: &'static str,
    /// The version of rustc.
    pub compiler: &'static str,
}

impl Default for Build {
    fn default() -> Self {
        Self {
            commit: "",
            tree: "clean",
            date: "1970-01-01T00:00:00Z",
            compiler: "",
        }
    }
}

/// `/version`.
pub(crate) fn version(build: &Build) -> Value {
    json!({
        "major": "1",
        "minor": "35",
        "emulationMajor": "1",
        "emulationMinor": "35",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "34",
        "gitVersion": GIT_VERSION,
        "gitCommit": build.commit,
        "gitTreeState": build.tree,
        "buildDate": build.date,
        // Clients print it and never take it apart; it says what it is that did the compiling.
        "goVersion": format!("rustc{}", build.compiler),
        "compiler": "rustc",
        "platform": format!("linux/{}", platform()),
    })
}

/// Go's name of the architecture.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What a subresource's requests and answers are, where that is not the resource's own kind.
fn kind_of(resource: &Resource, subresource: &Subresource) -> (&'static str, &'static str, String) {
    let own = || ("", "", resource.kind.to_string());
    match subresource {
        Subresource::Scale(_) => ("autoscaling", "v1", "Scale".to_owned()),
        Subresource::Eviction => ("policy", "v1", "Eviction".to_owned()),
        Subresource::Token => ("authentication.k8s.io", "v1", "TokenRequest".to_owned()),
        Subresource::Binding => ("", "v1", "Binding".to_owned()),
        Subresource::Exec => ("", "v1", "PodExecOptions".to_owned()),
        Subresource::Attach => ("", "v1", "PodAttachOptions".to_owned()),
        Subresource::PortForward => ("", "v1", "PodPortForwardOptions".to_owned()),
        Subresource::Proxy => ("", "v1", format!("{}ProxyOptions", resource.kind)),
        _ => own(),
    }
}

/// The verbs of a subresource, in discovery's order.
fn verbs_of(subresource: &Subresource) -> &'static [&'static str] {
    match subresource {
        Subresource::Status
        | Subresource::Scale(_)
        | Subresource::EphemeralContainers
        | Subresource::Resize
        | Subresource::Approval => &["get", "patch", "update"],
        Subresource::Binding | Subresource::Eviction | Subresource::Token => &["create"],
        Subresource::Log => &["get"],
        Subresource::Exec | Subresource::Attach | Subresource::PortForward => &["create", "get"],
        Subresource::Proxy => &["create", "delete", "get", "patch", "update"],
        Subresource::Finalize => &["update"],
    }
}

/// By which clients tell that a resource is stored the same way in all its versions.
fn storage_version_hash(resource: &Resource) -> String {
    use base64::Engine;
    let version = &resource.versions[resource.storage].name;
    let text = format!("{}/{}/{}", resource.group, version, resource.kind);
    base64::engine::general_purpose::STANDARD.encode(&Sha256::digest(text)[..8])
}

/// The resources of one group version.
fn members<'a>(
    resources: &'a [Arc<Resource>],
    group: &'a str,
    version: &'a str,
) -> impl Iterator<Item = &'a Arc<Resource>> {
    resources.iter().filter(move |r| {
        r.group == group && r.versions.iter().any(|v| v.served && v.name == version)
    })
}
