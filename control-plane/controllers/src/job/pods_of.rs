//! Makes and removes the pods of a Job that goes on.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::{
    batch::v1::{Job, JobSpec},
    core::v1::{EnvVar, EnvVarSource, ObjectFieldSelector, Pod},
};
use kube::ResourceExt;
use windlass_informers::{Key, recorder::EventType};

use super::{
    Jobs,
    account::{Account, FINALIZER, INDEX, INDEX_FAILURES, index_of, indexed, replaces_only_failed},
    backoff,
    indexes::Indexes,
    outcome::is_suspended,
};
use crate::{
    pods,
    runtime::{Maker, Result, controller_ref, delete, slow_start},
};

const BURST: usize = 500;
const INDEX_ENV: &str = "JOB_COMPLETION_INDEX";

/// How many pods are to run at once.
fn wanted(job: &Job, books: &Account) -> usize {
    let spec = job.spec.as_ref();
    let parallelism = spec.and_then(|spec| spec.parallelism).unwrap_or(1).max(0);
    let number = match spec.and_then(|spec| spec.completions) {
        // The work queue is empty when one has succeeded: nothing new, nothing stopped.
        None if books.succeeded > 0 => {
            return books
                .active
                .len()
                .min(usize::try_from(parallelism).unwrap_or(0));
        }
        None => parallelism,
        Some(completions) => {
            let failed = i32::try_from(books.failed_indexes.len()).unwrap_or(0);
            parallelism.min(completions - books.succeeded - failed)
        }
    };
    usize::try_from(number).unwrap_or(0)
}

/// The lowest indexes that are neither done, failed, nor running.
fn free_indexes(completions: i32, books: &Account, running: &Indexes, count: usize) -> Vec<i32> {
    (0..completions)
        .filter(|index| {
            !books.done.contains(index)
                && !books.failed_indexes.contains(index)
                && !running.contains(index)
        })
        .take(count)
        .collect()
}

impl Jobs {
    pub(super) async fn manage(
        &self,
        key: &Key,
        job: &Arc<Job>,
        books: &Account,
        pause: Option<Duration>,
    ) -> Result<()> {
        if is_suspended(job) {
            return self.remove(key, job, &books.active).await;
        }
        let wanted = wanted(job, books);
        let ending = books.status.terminating.unwrap_or(0);
        let occupied = books.active.len()
            + if replaces_only_failed(job) {
                usize::try_from(ending).unwrap_or(0)
            } else {
                0
            };
        if books.active.len() > wanted {
            let mut ranked = books.active.clone();
            pods::rank_for_deletion(&mut ranked, &books.active, jiff::Timestamp::now());
            ranked.truncate(books.active.len() - wanted);
            return self.remove(key, job, &ranked).await;
        }
        let missing = wanted.saturating_sub(occupied).min(BURST);
        if missing == 0 || pause.is_some_and(|pause| !pause.is_zero()) {
            return Ok(());
        }
        let running: Indexes = books
            .active
            .iter()
            .filter_map(|pod| index_of(pod))
            .collect();
        let indexes: Vec<Option<i32>> = match indexed(job) {
            // An index that failed keeps its place while it waits.
            Some(completions) => free_indexes(completions, books, &running, missing)
                .into_iter()
                .filter(|index| backoff::of_index(books, *index, Timestamp::now()).is_none())
                .map(Some)
                .collect(),
            None => vec![None; missing],
        };
        let Some(spec) = job.spec.as_ref() else {
            return Ok(());
        };
        let maker = Maker {
            context: &self.context,
            freshness: &self.freshness,
            recorder: &self.recorder,
            key,
            owner: job.as_ref(),
        };
        let pods: Vec<Pod> = indexes
            .into_iter()
            .map(|index| pod_for(key, job, spec, index, &books.index_failures))
            .collect();
        slow_start(&pods, |pod| maker.make(pod)).await
    }

    /// Pods that go because fewer are wanted have not failed: they leave the books first.
    async fn remove(&self, key: &Key, job: &Arc<Job>, surplus: &[Arc<Pod>]) -> Result<()> {
        let api = self.context.api::<Pod>(&key.namespace);
        for pod in surplus {
            self.release_one(key, pod).await?;
            delete(&api, pod.as_ref()).await?;
            let message = format!("Deleted pod: {}", pod.name_any());
            self.recorder
                .record(job.as_ref(), EventType::Normal, "SuccessfulDelete", message);
        }
        Ok(())
    }
}

fn pod_for(
    key: &Key,
    job: &Job,
    spec: &JobSpec,
    index: Option<i32>,
    failures: &BTreeMap<i32, i32>,
) -> Pod {
    let prefix = match index {
        Some(index) => format!("{}-{index}-", key.name),
        None => format!("{}-", key.name),
    };
    let mut pod = pods::from_template(&spec.template, &key.namespace, prefix, controller_ref(job));
    pod.metadata
        .finalizers
        .get_or_insert_default()
        .push(FINALIZER.to_owned());
    if let Some(index) = index {
        let failed = spec
            .backoff_limit_per_index
            .map(|_| failures.get(&index).copied().unwrap_or(0));
        give_index(&mut pod, &key.name, index, failed);
    }
    pod
}

/// Tells a pod its index: by label, annotation, environment and hostname.
fn give_index(pod: &mut Pod, job: &str, index: i32, failures: Option<i32>) {
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(INDEX.to_owned(), index.to_string());
    if let Some(failures) = failures {
        annotations.insert(INDEX_FAILURES.to_owned(), failures.to_string());
    }
    let labels = pod.metadata.labels.get_or_insert_default();
    labels.insert(INDEX.to_owned(), index.to_string());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname
        .get_or_insert_with(|| format!("{job}-{index}"));
    let variable = EnvVar {
        name: INDEX_ENV.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            field_ref: Some(ObjectFieldSelector {
                api_version: None,
                field_path: format!("metadata.labels['{INDEX}']"),
            }),
            ..Default::default()
        }),
    };
    let init = spec.init_containers.iter_mut().flatten();
    for container in spec.containers.iter_mut().chain(init) {
        let env = container.env.get_or_insert_default();
        if !env.iter().any(|known| known.name == INDEX_ENV) {
            env.push(variable.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{super::account::account, *};

    fn job(mut spec: Value) -> Job {
        spec["template"] = json!({});
        serde_json::from_value(json!({ "spec": spec })).unwrap()
    }

    #[test]
    fn never_more_than_parallelism_nor_than_is_left_to_do() {
        let cases = [
            (json!({"parallelism": 3, "completions": 10}), 0, 3),
            (json!({"parallelism": 3, "completions": 10}), 8, 2),
            (json!({"parallelism": 3, "completions": 10}), 10, 0),
            (json!({"parallelism": 3}), 0, 3),
            (json!({"parallelism": 0, "completions": 1}), 0, 0),
        ];
        for (spec, succeeded, expected) in cases {
            let job = job(spec.clone());
            let mut books = account(&job, &[]);
            books.succeeded = succeeded;
            assert_eq!(wanted(&job, &books), expected, "{spec} {succeeded}");
        }
    }

    #[test]
    fn the_lowest_free_indexes_come_first() {
        let books = Account {
            done: [0, 2].into(),
            failed_indexes: [3].into(),
            ..Account::default()
        };
        assert_eq!(free_indexes(8, &books, &[4].into(), 3), [1, 5, 6]);
    }

    #[test]
    fn a_pod_learns_its_index_in_every_container() {
        let mut pod: Pod =
            serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}}))
                .unwrap();
        give_index(&mut pod, "sum", 7, None);
        assert_eq!(index_of(&pod), Some(7));
        let spec = pod.spec.unwrap();
        assert_eq!(spec.hostname.as_deref(), Some("sum-7"));
        assert!(
            spec.containers
                .iter()
                .all(|container| container.env.is_some())
        );
    }
}
