//! The seam between the streaming server and the pods.

use futures::future::BoxFuture;
use windlass_pods::snapshot::Container;
use windlass_pods::{PodView, Pods};
use windlass_streaming::{
    ContainerInstance, ContainerInstances, LookupError, PodLookup, Sandbox, VolumeRoom, VolumeUsage,
};

pub(crate) struct PodsLookup(pub(crate) Pods);

impl PodsLookup {
    fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Result<PodView, LookupError> {
        self.0
            .find(namespace, name)
            .filter(|view| uid.is_none_or(|uid| view.pod.metadata.uid.as_deref() == Some(uid)))
            .ok_or_else(|| LookupError::NoPod {
                namespace: namespace.to_owned(),
                pod: name.to_owned(),
            })
    }
}

impl PodLookup for PodsLookup {
    fn container(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
        container: &str,
    ) -> Result<ContainerInstances, LookupError> {
        let view = self.find(namespace, pod, uid)?;
        let known = windlass_pods::model::slot(&view.pod, container).is_some();
        if !known {
            return Err(LookupError::NoContainer {
                pod: pod.to_owned(),
                container: container.to_owned(),
            });
        }
        let mut of_name = view.snapshot.of_name(container).map(instance);
        let (current, previous) = (of_name.next(), of_name.next());
        let waiting_reason = view.waiting_reason(container).map(str::to_owned);
        Ok(ContainerInstances {
            current,
            previous,
            waiting_reason,
        })
    }

    fn sandbox(
        &self,
        namespace: &str,
        pod: &str,
        uid: Option<&str>,
    ) -> Result<Sandbox, LookupError> {
        let view = self.find(namespace, pod, uid)?;
        let newest = view.snapshot.sandboxes.first();
        let newest = newest.map(|sandbox| Sandbox {
            id: sandbox.id.clone(),
            ready: sandbox.ready,
        });
        newest.ok_or_else(|| LookupError::NoPod {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
        })
    }

    fn finished(&self, container_id: &str) -> BoxFuture<'static, ()> {
        let (pods, id) = (self.0.clone(), container_id.to_owned());
        Box::pin(async move { pods.finished(&id).await })
    }

    fn pods(&self) -> Vec<serde_json::Value> {
        let views = self.0.list();
        // An object that came as JSON goes back to it.
        views
            .iter()
            .filter_map(|view| serde_json::to_value(&*view.pod).ok())
            .collect()
    }

    fn volumes(&self) -> BoxFuture<'static, Vec<VolumeUsage>> {
        let pods = self.0.clone();
        Box::pin(async move {
            let volumes = pods.volumes().await.into_iter();
            volumes.map(volume).collect()
        })
    }

    fn probe_metrics(&self) -> String {
        self.0.probe_metrics()
    }
}

fn volume(told: windlass_pods::VolumeUsage) -> VolumeUsage {
    let room = |room: windlass_pods::Room| VolumeRoom {
        total: room.total,
        available: room.available,
        used: room.used,
    };
    VolumeUsage {
        namespace: told.pod.metadata.namespace.clone().unwrap_or_default(),
        uid: told.pod.metadata.uid.clone().unwrap_or_default(),
        name: told.name,
        claim: told.claim,
        bytes: room(told.usage.bytes),
        inodes: room(told.usage.inodes),
    }
}

fn instance(container: &Container) -> ContainerInstance {
    ContainerInstance {
        id: container.id.clone(),
        log_path: container.log_path.clone().into(),
        running: container.is_running(),
    }
}
