//! Sends a pod's status to the API server: the newest one, as soon as possible, and only
//! what changed.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Map, Value, json};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::conditions::{RESIZE_IN_PROGRESS, RESIZE_PENDING};
use crate::model::PodId;

const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MOST: Duration = Duration::from_secs(5);

/// Writes one pod's status in the background; stops when dropped.
pub(crate) struct StatusWriter {
    wanted: watch::Sender<Option<Value>>,
    sent: watch::Receiver<Option<Value>>,
    task: AbortHandle,
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StatusWriter {
    /// A writer for this pod. What the API has already is not sent again. A static pod's status is
    /// written to its mirror, whose uid is told by `mirror` and changes with it.
    pub(crate) fn new(
        client: kube::Client,
        pod: &Pod,
        mirror: Option<watch::Receiver<Option<String>>>,
    ) -> Self {
        let id = PodId::of(pod);
        let known = pod.status.as_ref().map(to_value).unwrap_or_default();
        let (wanted, wishes) = watch::channel(None);
        let (done, sent) = watch::channel(None);
        let task = tokio::spawn(write(client, id, mirror, known, wishes, done)).abort_handle();
        Self { wanted, sent, task }
    }

    /// Makes this the status to be sent, in place of any that waits.
    pub(crate) fn publish(&self, status: &PodStatus) {
        let value = to_value(status);
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted.as_ref() != Some(&value);
            if changed {
                *wanted = Some(value);
            }
            changed
        });
    }

    /// Waits until what was published last has been sent, or until `patience` ends.
    pub(crate) async fn flush(&mut self, patience: Duration) -> bool {
        let wanted = self.wanted.borrow().clone();
        let sent = self.sent.wait_for(|sent| *sent == wanted);
        matches!(tokio::time::timeout(patience, sent).await, Ok(Ok(_)))
    }
}

fn to_value(status: &PodStatus) -> Value {
    // A struct of plain fields always serialises.
    serde_json::to_value(status).unwrap_or_default()
}

async fn write(
    client: kube::Client,
    mut id: PodId,
    mut mirror: Option<watch::Receiver<Option<String>>>,
    mut known: Value,
    mut wishes: watch::Receiver<Option<Value>>,
    done: watch::Sender<Option<Value>>,
) {
    let api: Api<Pod> = Api::namespaced(client, &id.namespace);
    loop {
        tokio::select! {
            changed = wishes.changed() => if changed.is_err() { return },
            // Another mirror knows nothing yet.
            () = replaced(&mut mirror) => known = Value::Null,
        }
        if let Some(mirror) = &mut mirror {
            let Some(uid) = mirror.borrow_and_update().clone() else {
                // Nobody shows it: the next mirror is told everything.
                done.send_replace(wishes.borrow_and_update().clone());
                continue;
            };
            id.uid = uid;
        }
        let mut pause = RETRY_FIRST;
        loop {
            let Some(wanted) = wishes.borrow_and_update().clone() else {
                break;
            };
            let changes = changes(&known, &wanted);
            if changes.is_empty() {
                done.send_replace(Some(wanted));
                break;
            }
            // The uid makes sure that a later pod of the same name is never written to.
            let patch = json!({"metadata": {"uid": id.uid}, "status": changes});
            let sent = api
                .patch_status(&id.name, &PatchParams::default(), &Patch::Strategic(patch))
                .await;
            match sent {
                Ok(_) => {
                    known = wanted.clone();
                    done.send_replace(Some(wanted));
                    break;
                }
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    // The pod is gone, or another one has its name: nobody reads this status.
                    done.send_replace(Some(wanted));
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        namespace = id.namespace, name = id.name, uid = id.uid, %error,
                        "status not sent, trying again"
                    );
                }
            }
            // A newer status is sent at once, whatever the pause.
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_MOST),
                changed = wishes.changed() => if changed.is_err() { return },
            }
        }
    }
}

/// Waits for another mirror pod; for ever if there is no mirror to wait for.
async fn replaced(mirror: &mut Option<watch::Receiver<Option<String>>>) {
    let changed = match mirror {
        Some(mirror) => mirror.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// The fields of `wanted` that differ, in the form of a strategic merge patch.
fn changes(known: &Value, wanted: &Value) -> Map<String, Value> {
    let empty = Map::new();
    let known = known.as_object().unwrap_or(&empty);
    let wanted = wanted.as_object().unwrap_or(&empty);
    let mut changes = Map::new();
    for (field, value) in wanted {
        let before = known.get(field);
        if before == Some(value) {
            continue;
        }
        let value = match (field.as_str(), value.as_array()) {
            ("conditions", Some(list)) => match changed_conditions(before, list) {
                list if list.is_empty() => continue,
                list => Value::Array(list),
            },
            // Their merge key is the address itself: without this, old ones would stay.
            ("podIPs" | "hostIPs", Some(list)) if before.is_some() => {
                let replace = json!({"$patch": "replace"});
                Value::Array(
                    std::iter::once(replace)
                        .chain(list.iter().cloned())
                        .collect(),
                )
            }
            _ => value.clone(),
        };
        changes.insert(field.clone(), value);
    }
    changes
}

/// Only ours, and only the changed ones: conditions of others are left alone.
fn changed_conditions(before: Option<&Value>, list: &[Value]) -> Vec<Value> {
    let before = before
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let ended = before.iter().filter(|old| {
        let type_ = old["type"].as_str().unwrap_or_default();
        let passing = matches!(type_, RESIZE_PENDING | RESIZE_IN_PROGRESS);
        passing
            && !list
                .iter()
                .any(|condition| condition["type"] == old["type"])
    });
    let ended = ended.map(|old| json!({"type": old["type"], "$patch": "delete"}));
    let changed = list
        .iter()
        .filter(|condition| !before.contains(condition))
        .map(|condition| {
            // A message that ended must be taken away: a merge keeps what is not named.
            let mut condition = condition.clone();
            let type_ = condition["type"].clone();
            let old = before.iter().find(|old| old["type"] == type_);
            if let (Some(fields), Some(old)) = (condition.as_object_mut(), old) {
                for field in ["reason", "message"] {
                    if old.get(field).is_some() {
                        fields.entry(field).or_insert(Value::Null);
                    }
                }
            }
            condition
        });
    changed.chain(ended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_sent() {
        let known = json!({
            "phase": "Pending",
            "hostIP": "192.0.2.1",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"},
                {"type": "example.org/other", "status": "True"},
            ],
        });
        let wanted = json!({
            "phase": "Running",
            "hostIP": "192.0.2.1",
            "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [
                {"type": "PodScheduled", "status": "True"},
                {"type": "Ready", "status": "True"},
            ],
        });
        assert_eq!(
            Value::Object(changes(&known, &wanted)),
            json!({
                "phase": "Running",
                "podIPs": [{"$patch": "replace"}, {"ip": "10.0.0.2"}],
                "conditions": [
                    {"type": "Ready", "status": "True", "reason": null, "message": null},
                ],
            })
        );
        assert!(changes(&wanted, &wanted).is_empty());
        let resizing = json!({"conditions": [{"type": "PodResizeInProgress", "status": "True"}]});
        assert_eq!(
            Value::Object(changes(&resizing, &json!({"conditions": []}))),
            json!({"conditions": [{"type": "PodResizeInProgress", "$patch": "delete"}]})
        );
        let first = json!({"podIPs": [{"ip": "10.0.0.1"}]});
        assert_eq!(Value::Object(changes(&json!({}), &first)), first);
    }
}
