//! Making the pods of an owner: a few at first, more as long as it goes well, each noted and told.

use std::future::Future;

use futures::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Resource, ResourceExt, api::PostParams};
use tokio_util::sync::CancellationToken;
use windlass_informers::{
    Key,
    recorder::{EventType, Recorder},
};
use windlass_machinery::meta;
use windlass_patience::Patience;

use super::{Context, Freshness, Result, ResultExt};

/// Slow start: batches of 1, 2, 4, ... so that a template that is always refused (quota, admission) costs
/// one failed request and not five hundred. A namespace that is going is no failure.
pub(crate) async fn slow_start<'a, T, F>(items: &'a [T], make: impl Fn(&'a T) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    let mut left = items;
    let mut batch = 1;
    while !left.is_empty() {
        let (now, later) = left.split_at(batch.min(left.len()));
        for result in join_all(now.iter().map(&make)).await {
            match result {
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                other => other?,
            }
        }
        left = later;
        batch *= 2;
    }
    Ok(())
}

/// On whose behalf pods are made.
pub(crate) struct Maker<'a, O> {
    pub(crate) context: &'a Context,
    pub(crate) freshness: &'a Freshness<Pod>,
    pub(crate) recorder: &'a Recorder,
    pub(crate) key: &'a Key,
    pub(crate) owner: &'a O,
}

impl<O: Resource<DynamicType = ()>> Maker<'_, O> {
    /// Creates one pod; the owner's events tell of it either way.
    pub(crate) async fn make(&self, pod: &Pod) -> Result<()> {
        let key = self.key;
        let observer = self.freshness.observer(key);
        let api = self.context.api::<Pod>(&key.namespace);
        let created = create_once(&api, pod.clone(), &self.context.cancel)
            .await
            .doing(|| format!("create pod for {key}"));
        match created {
            Ok(created) => {
                observer.wrote(&created);
                let message = format!("Created pod: {}", created.name_any());
                self.tell(EventType::Normal, "SuccessfulCreate", message);
                Ok(())
            }
            Err(error) => {
                if !error.is_namespace_terminating() {
                    let message = format!("Error creating: {}", error.words());
                    self.tell(EventType::Warning, "FailedCreate", message);
                }
                Err(error)
            }
        }
    }

    fn tell(&self, kind: EventType, reason: &str, message: String) {
        self.recorder.record(self.owner, kind, reason, message);
    }
}

/// A request may have been heard although its answer says that nobody did. With a name that is given here it can be made
/// again, and finds the pod that it made; left to the server, each request would make another.
async fn create_once(
    api: &Api<Pod>,
    mut pod: Pod,
    cancel: &CancellationToken,
) -> kube::Result<Pod> {
    let prefix = pod.metadata.generate_name.clone().unwrap_or_default();
    let mut pauses = Patience::default();
    let mut was_in_doubt = false;
    loop {
        let name = pod
            .metadata
            .name
            .get_or_insert_with(|| meta::generate_name(&prefix, rand::random()));
        let name = name.clone();
        let mut tried = api.create(&PostParams::default(), &pod).await;
        if let Err(kube::Error::Api(status)) = &tried
            && status.is_already_exists()
        {
            match api.get_opt(&name).await {
                Ok(Some(made)) if was_in_doubt && has_owners_of(&made, &pod) => return Ok(made),
                Ok(_) if prefix.is_empty() => {}
                Ok(_) => {
                    pod.metadata.name = None;
                    continue;
                }
                Err(error) => tried = Err(error),
            }
        }
        let Err(error) = tried else { return tried };
        if !is_in_doubt(&error) {
            return Err(error);
        }
        was_in_doubt = true;
        let pause = tokio::time::sleep(pauses.next().unwrap_or_default());
        if cancel.run_until_cancelled(pause).await.is_none() {
            return Err(error);
        }
    }
}

fn has_owners_of(made: &Pod, pod: &Pod) -> bool {
    made.metadata.owner_references == pod.metadata.owner_references
}

/// The server could not reach its store in time, or we could not reach the server.
fn is_in_doubt(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => matches!(status.code, 503 | 504),
        kube::Error::HyperError(_) | kube::Error::Service(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::{super::Error, *};

    #[tokio::test]
    async fn a_refusal_costs_one_batch() {
        let tried = AtomicUsize::new(0);
        let result = slow_start(&[0; 500], |_| async {
            let number = tried.fetch_add(1, Ordering::Relaxed);
            // The second batch is refused.
            if number < 1 {
                Ok(())
            } else {
                Err(Error::Invalid("quota".to_owned()))
            }
        })
        .await;
        assert!(result.is_err());
        assert_eq!(tried.load(Ordering::Relaxed), 3);
    }
}
