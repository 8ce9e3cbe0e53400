//! The controllers of Kubernetes' controller-manager: each brings what is closer to what was asked for.
//!
//! A controller is one file or folder with a `start` function, registered in [`CONTROLLERS`]; adding the
//! next one touches one new file and one line. They know cluster state only as clients, through the shared
//! informers of `windlass-informers`, and run under a leader-election Lease that the server holds for
//! them; since a Lease cannot fence, each write carries a uid or resourceVersion precondition.
//! Nothing here may depend on the API server or the store.

mod bootstraptokens;
mod certificates;
mod clusterroleaggregation;
mod config;
mod cronjob;
mod daemonset;
mod deployment;
mod disruption;
mod endpoints;
mod endpointslice;
mod endpointslicemirroring;
mod garbagecollector;
mod history;
mod int_or_percent;
mod job;
mod legacyserviceaccounttoken;
mod loadbalancer;
mod namespace;
mod nodeipam;
mod nodelifecycle;
mod podautoscaler;
mod podgc;
mod pods;
mod replicas;
mod resourceclaim;
mod resourcequota;
mod resources;
mod rootca;
mod runtime;
mod serviceaccount;
mod serviceaccounttoken;
mod servicecidr;
mod services;
mod statefulset;
mod tainteviction;
mod template_hash;
mod ttl;
mod ttlafterfinished;
mod volumes;

use std::sync::Arc;

use anyhow::Context as _;
use futures::future::BoxFuture;
use kube::Client;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};
use windlass_informers::{Informers, recorder::Recorder};

pub use config::{ControllersConfig, SigningCa};

use crate::{resources::Resources, runtime::Context};

type Start = fn(Context) -> BoxFuture<'static, ()>;

macro_rules! controllers {
    ($($name:literal: $start:path,)+) => {
        &[$(($name, |context| Box::pin($start(context)))),+]
    };
}

/// Every controller, by the name that `--controllers` of upstream gives it.
const CONTROLLERS: &[(&str, Start)] = controllers! {
    "persistentvolume-attach-detach-controller": volumes::attachment::start,
    "bootstrap-signer-controller": bootstraptokens::start_signer,
    "certificatesigningrequest-signing-controller": certificates::start,
    "clusterrole-aggregation-controller": clusterroleaggregation::start,
    "cronjob-controller": cronjob::start,
    "daemonset-controller": daemonset::start,
    "deployment-controller": deployment::start,
    "endpointslice-controller": endpointslice::start,
    "endpointslice-mirroring-controller": endpointslicemirroring::start,
    "disruption-controller": disruption::start,
    "endpoints-controller": endpoints::start,
    "ephemeral-volume-controller": volumes::ephemeral::start,
    "garbage-collector-controller": garbagecollector::start,
    "horizontal-pod-autoscaler-controller": podautoscaler::start,
    "job-controller": job::start,
    "legacy-serviceaccount-token-cleaner-controller": legacyserviceaccounttoken::start,
    "namespace-controller": namespace::start,
    "node-ipam-controller": nodeipam::start,
    "node-lifecycle-controller": nodelifecycle::start,
    "persistentvolume-binder-controller": volumes::binder::start,
    "persistentvolume-protection-controller": volumes::protection::start_volumes,
    "persistentvolumeclaim-protection-controller": volumes::protection::start_claims,
    "pod-garbage-collector-controller": podgc::start,
    "replicaset-controller": replicas::replicaset::start,
    "replicationcontroller-controller": replicas::replicationcontroller::start,
    "resourceclaim-controller": resourceclaim::start,
    "resourcequota-controller": resourcequota::start,
    "root-ca-certificate-publisher-controller": rootca::start,
    "service-cidr-controller": servicecidr::start,
    "service-lb-controller": loadbalancer::start,
    "serviceaccount-controller": serviceaccount::start,
    "serviceaccount-token-controller": serviceaccounttoken::start,
    "statefulset-controller": statefulset::start,
    "taint-eviction-controller": tainteviction::start,
    "token-cleaner-controller": bootstraptokens::start_cleaner,
    "ttl-controller": ttl::start,
    "ttl-after-finished-controller": ttlafterfinished::start,
};

/// Runs every controller until `cancel`; to be called by the current leader only.
pub async fn run(
    client: Client,
    informers: Arc<Informers>,
    config: ControllersConfig,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let resources = Resources::new();
    let context = Context {
        recorder: Recorder::start(client.clone(), "controller-manager"),
        client: client.clone(),
        informers,
        resources: Arc::clone(&resources),
        config: Arc::new(config),
        cancel: cancel.clone(),
    };
    info!(controllers = CONTROLLERS.len(), "starting controllers");
    let mut running = JoinSet::new();
    for (name, start) in CONTROLLERS {
        let work = start(context.clone());
        let cancel = cancel.clone();
        running.spawn(async move {
            // Some wait for their informers, which a server that never answers would never fill.
            cancel.run_until_cancelled(work).await;
            debug!(controller = name, "stopped");
        });
    }
    running.spawn(async move { resources.run(client, cancel).await });
    while let Some(finished) = running.join_next().await {
        // Without one of them the others go on as if all were well: end the term instead.
        finished.context("a controller panicked")?;
    }
    Ok(())
}
