//! This server's Lease in `kube-system` (KEP-1965): by it others know which API servers there are, and which are alive.

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;
use windlass_machinery::{meta, time};

use crate::cacher::Filter;
use crate::context::{now, now_micros};
use crate::server::ApiServer;

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases";
const LABEL: (&str, &str) = ("apiserver.kubernetes.io/identity", "kube-apiserver");
const RENEWED_EVERY: Duration = Duration::from_secs(10);
/// In seconds, as upstream.
const LASTS: i64 = 3600;

/// Keeps the Lease until the server ends, and removes those of servers that have long been gone.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let server = server.clone();
    tokio::spawn(async move {
        let holder = format!("{}_{}", name(&server), uuid::Uuid::new_v4());
        let mut ticks = tokio::time::interval(RENEWED_EVERY);
        let shutdown = server.shutdown.clone();
        let work = async {
            loop {
                ticks.tick().await;
                if let Err(error) = renew(&server, &holder).await {
                    tracing::warn!(%error, "the server's own lease was not renewed");
                }
                if let Err(error) = clean_up(&server).await {
                    tracing::warn!(%error, "leases of servers that are gone were not removed");
                }
            }
        };
        shutdown.run_until_cancelled(work).await;
    });
}

/// The same after a restart, another one for another server.
fn name(server: &ApiServer) -> String {
    let address = std::net::SocketAddr::new(server.advertise_address, server.secure_port);
    let hash = crate::openapi::hash_of(address.to_string().as_bytes()).to_lowercase();
    format!("apiserver-{}", &hash[..26])
}

async fn renew(server: &Arc<ApiServer>, holder: &str) -> Result<(), ApiError> {
    let name = name(server);
    let own = format!("{PATH}/{name}");
    match server.call_self(Method::GET, &own, None).await {
        Ok(mut lease) => {
            if lease["spec"]["holderIdentity"] != holder {
                lease["spec"]["holderIdentity"] = holder.into();
                lease["spec"]["acquireTime"] = now_micros().into();
            }
            lease["spec"]["renewTime"] = now_micros().into();
            server.call_self(Method::PUT, &own, Some(&lease)).await?;
        }
        Err(error) if error.code == 404 => {
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                "metadata": {"name": name, "labels": {LABEL.0: LABEL.1}},
                "spec": {
                    "holderIdentity": holder, "leaseDurationSeconds": LASTS,
                    "acquireTime": now_micros(), "renewTime": now_micros(),
                },
            });
            server.call_self(Method::POST, PATH, Some(&lease)).await?;
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

async fn clean_up(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(leases) = server.cacher("coordination.k8s.io", "leases") else {
        return Ok(());
    };
    let all = Filter::new(&leases.resource, None, None, None)?;
    for entry in leases.entries(&all) {
        if entry.namespace() != "kube-system" || !entry.name().starts_with("apiserver-") {
            continue;
        }
        let lease = entry.decode()?;
        if has_ended(&lease, now()) {
            let path = format!("{PATH}/{}", meta::name(&lease));
            let options = json!({"preconditions": {"uid": meta::uid(&lease)}});
            match server
                .call_self(Method::DELETE, &path, Some(&options))
                .await
            {
                Err(error) if !matches!(error.code, 404 | 409) => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

fn has_ended(lease: &Value, now: i64) -> bool {
    let renewed = lease["spec"]["renewTime"].as_str();
    let lasts = lease["spec"]["leaseDurationSeconds"].as_i64();
    let renewed = renewed.and_then(time::parse_seconds);
    lease["metadata"]["labels"][LABEL.0] == LABEL.1
        && renewed.is_some_and(|renewed| now > renewed + lasts.unwrap_or(LASTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_leases_of_servers_end() {
        let lease = |label: &str| {
            json!({
                "metadata": {"labels": {LABEL.0: label}},
                "spec": {"renewTime": "1970-01-01T00:00:10.000000Z", "leaseDurationSeconds": 5},
            })
        };
        assert!(has_ended(&lease(LABEL.1), 16));
        assert!(!has_ended(&lease(LABEL.1), 15));
        assert!(!has_ended(&lease("other"), 100));
    }
}
