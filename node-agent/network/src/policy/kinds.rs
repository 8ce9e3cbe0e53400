//! Kinds of policies that a cluster may or may not have, in the version that it serves.

use futures::{Stream, StreamExt as _, stream, stream::BoxStream};
use kube::{
    Api, Client,
    core::{ApiResource, DynamicObject},
    runtime::{utils::Backoff as _, watcher},
};
use windlass_patience::Patience;

use super::{cluster_spec, controller::of_kind, observed::Change, spec::PolicyName};

const GROUP: &str = "policy.networking.k8s.io";

#[allow(clippy::enum_variant_names, reason = "the kinds' own names")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Optional {
    ClusterNetworkPolicy,
    AdminNetworkPolicy,
    BaselineAdminNetworkPolicy,
}

impl Optional {
    pub(super) const ALL: [Self; 3] = [
        Self::ClusterNetworkPolicy,
        Self::AdminNetworkPolicy,
        Self::BaselineAdminNetworkPolicy,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::ClusterNetworkPolicy => "ClusterNetworkPolicy",
            Self::AdminNetworkPolicy => "AdminNetworkPolicy",
            Self::BaselineAdminNetworkPolicy => "BaselineAdminNetworkPolicy",
        }
    }

    /// What a policy of this kind is called where all of them are told of.
    pub(super) fn policy_name(self, name: String) -> PolicyName {
        let name = match self {
            Self::ClusterNetworkPolicy => name,
            _ => format!("{}/{name}", self.name()),
        };
        PolicyName {
            namespace: None,
            name,
        }
    }

    /// The versions that can be read, the best one first.
    fn versions(self) -> &'static [&'static str] {
        match self {
            Self::ClusterNetworkPolicy => &["v1beta1", "v1alpha2"],
            Self::AdminNetworkPolicy | Self::BaselineAdminNetworkPolicy => &["v1alpha1"],
        }
    }
}

/// What a watch of the kind tells, whenever the cluster has it.
pub(super) fn watch(client: Client, kind: Optional) -> impl Stream<Item = Change> + Send {
    let state = (
        None::<BoxStream<'static, Change>>,
        Patience::default(),
        false,
    );
    stream::unfold(state, move |(mut watched, mut pauses, mut absent)| {
        let client = client.clone();
        async move {
            loop {
                if let Some(changes) = &mut watched {
                    if let Some(change) = changes.next().await {
                        return Some((change, (watched, pauses, false)));
                    }
                    // Its definition went.
                    watched = None;
                }
                if absent {
                    tokio::time::sleep(pauses.next().unwrap_or_default()).await;
                }
                match served(&client, kind).await {
                    Ok(Some(resource)) => {
                        pauses.reset();
                        watched = Some(changes_of(client.clone(), kind, &resource).boxed());
                    }
                    Ok(None) => return Some((Change::Absent(kind), (None, pauses, true))),
                    Err(error) => {
                        tracing::warn!(%error, kind = kind.name(), "cannot ask for a kind; trying again");
                        absent = true;
                    }
                }
            }
        }
    })
}

fn changes_of(
    client: Client,
    kind: Optional,
    resource: &ApiResource,
) -> impl Stream<Item = Change> + Send + use<> {
    let api: Api<DynamicObject> = Api::all_with(client, resource);
    let told = of_kind(api, watcher::Config::default(), move |event| {
        Some(Change::Optional(kind, event?))
    });
    told.take_while(|change| std::future::ready(change.is_some()))
        .filter_map(std::future::ready)
}

/// The kind in the best version that the cluster serves.
async fn served(client: &Client, kind: Optional) -> kube::Result<Option<ApiResource>> {
    for version in kind.versions() {
        let of_version = client
            .list_api_group_resources(&format!("{GROUP}/{version}"))
            .await;
        let has = match of_version {
            Ok(resources) => resources.resources.iter().any(|it| it.kind == kind.name()),
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => return Err(error),
        };
        if has {
            return Ok(Some(cluster_spec::resource(version, kind.name())));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::Full;
    use hyper::{Request, Response, body::Bytes};
    use kube::client::Body;

    use super::*;

    #[tokio::test]
    async fn a_kind_that_a_cluster_does_not_have_is_absent_in_whatever_words_it_says_so() {
        let status = r#"{"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "reason": "NotFound", "code": 404}"#;
        // An API server says it in plain text for a group that it does not know.
        for said in ["404 page not found\n", status] {
            let server = tower::service_fn(move |_: Request<Body>| async move {
                let mut answer = Response::new(Full::<Bytes>::from(said));
                *answer.status_mut() = hyper::StatusCode::NOT_FOUND;
                Ok::<_, Infallible>(answer)
            });
            let client = Client::new(server, "default");
            let found = served(&client, Optional::ClusterNetworkPolicy).await;
            assert!(matches!(found, Ok(None)), "{said}: {found:?}");
        }
    }
}
