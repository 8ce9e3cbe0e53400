//! Deployments, StatefulSets, DaemonSets, Jobs and quotas become pods.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::{Method, Request, Response, StatusCode};
use k8s_openapi::api::{
    apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet},
    batch::v1::Job,
    core::v1::{Pod, ResourceQuota},
};
use kube::{Client, ResourceExt, api::ListParams, client::Body};
use serde_json::json;
use windlass_controllers::ControllersConfig;

use crate::world::{NAMESPACE, World, eventually, template};

fn deployment(replicas: i32, image: &str) -> serde_json::Value {
    json!({"metadata": {"name": "web"}, "spec": {"replicas": replicas,
        "selector": {"matchLabels": {"app": "web"}}, "template": template("web", image)}})
}

fn is_rolled_out(deployment: &Deployment, replicas: i32) -> bool {
    let Some(status) = &deployment.status else {
        return false;
    };
    let all = [
        status.replicas,
        status.updated_replicas,
        status.available_replicas,
    ];
    all.iter().all(|count| *count == Some(replicas))
        && status.observed_generation == deployment.metadata.generation
}

fn image(pod: &Pod) -> String {
    pod.spec.as_ref().unwrap().containers[0]
        .image
        .clone()
        .unwrap()
}

#[tokio::test]
async fn a_deployment_rolls_out_back_and_remembers_its_revisions() {
    let world = World::start(2).await;
    world.create::<Deployment>(deployment(3, "ok:1")).await;
    world
        .until::<Deployment>("web", |web| is_rolled_out(web, 3))
        .await;

    let next = json!({"spec": {"template": template("web", "ok:2")}});
    world.patch::<Deployment>("web", next).await;
    let web = world
        .until::<Deployment>("web", |web| is_rolled_out(web, 3))
        .await;
    assert_eq!(web.annotations()["deployment.kubernetes.io/revision"], "2");
    assert!(
        world
            .pods("web")
            .await
            .iter()
            .all(|pod| image(pod) == "ok:2")
    );

    let back = json!({"spec": {"template": template("web", "ok:1")}});
    world.patch::<Deployment>("web", back).await;
    let web = world
        .until::<Deployment>("web", |web| {
            is_rolled_out(web, 3) && web.annotations()["deployment.kubernetes.io/revision"] == "3"
        })
        .await;
    let sets = world
        .api::<ReplicaSet>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert_eq!(sets.len(), 2, "the old ReplicaSet is used again");
    let conditions = web.status.unwrap().conditions.unwrap();
    let progressing = conditions
        .iter()
        .find(|c| c.type_ == "Progressing")
        .unwrap();
    assert_eq!(
        progressing.reason.as_deref(),
        Some("NewReplicaSetAvailable")
    );
}

#[tokio::test]
async fn a_rollout_that_cannot_become_ready_leaves_the_old_pods_serving() {
    let world = World::start(2).await;
    world.create::<Deployment>(deployment(4, "ok:1")).await;
    world
        .until::<Deployment>("web", |web| is_rolled_out(web, 4))
        .await;
    let broken = json!({"spec": {"template": template("web", "unready")}});
    world.patch::<Deployment>("web", broken).await;
    // Of 4 one may be missing and one too many: 2 new ones start, 3 old ones stay.
    let settled = |web: &Deployment| {
        let status = web.status.clone().unwrap_or_default();
        status.updated_replicas == Some(2) && status.available_replicas == Some(3)
    };
    world.until::<Deployment>("web", settled).await;
    let old = world
        .pods("web")
        .await
        .into_iter()
        .filter(|pod| image(pod) == "ok:1")
        .count();
    assert_eq!(old, 3);
}

#[tokio::test]
async fn recreate_never_runs_two_versions_together() {
    let world = World::start(1).await;
    let mut object = deployment(2, "ok:1");
    object["spec"]["strategy"] = json!({"type": "Recreate"});
    world.create::<Deployment>(object).await;
    world
        .until::<Deployment>("web", |web| is_rolled_out(web, 2))
        .await;
    let next = json!({"spec": {"template": template("web", "ok:2")}});
    world.patch::<Deployment>("web", next).await;
    eventually("only new pods", async || {
        let all = world
            .api::<Pod>()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items;
        let new = all.iter().filter(|pod| image(pod) == "ok:2").count();
        assert!(new == 0 || new == all.len(), "old and new pods at once");
        new == 2
    })
    .await;
}

#[tokio::test]
async fn a_deleted_pod_is_replaced_and_a_matching_orphan_adopted() {
    let world = World::start(1).await;
    world.create::<Deployment>(deployment(2, "ok:1")).await;
    world
        .until::<Deployment>("web", |web| is_rolled_out(web, 2))
        .await;
    let victim = world.pods("web").await.remove(0);
    world
        .delete::<Pod>(&victim.name_any(), Default::default())
        .await;
    eventually("two pods again", async || {
        let pods = world.pods("web").await;
        pods.len() == 2 && pods.iter().all(|pod| pod.uid() != victim.uid())
    })
    .await;

    let released = world.pods("web").await.remove(0);
    let other = json!({"metadata": {"labels": {"app": "other"}}});
    world.patch::<Pod>(&released.name_any(), other).await;
    world
        .until::<Pod>(&released.name_any(), |pod| {
            pod.owner_references().is_empty()
        })
        .await;
    eventually("a third pod", async || world.pods("web").await.len() == 2).await;
    let again = json!({"metadata": {"labels": {"app": "web"}}});
    world.patch::<Pod>(&released.name_any(), again).await;
    eventually("the surplus is gone", async || {
        let pods = world.pods("web").await;
        pods.len() == 2 && pods.iter().all(|pod| !pod.owner_references().is_empty())
    })
    .await;
}

#[tokio::test]
async fn a_stateful_set_starts_in_order_updates_from_the_top_and_shrinks() {
    let world = World::start(1).await;
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 3, "serviceName": "db",
        "selector": {"matchLabels": {"app": "db"}}, "template": template("db", "ok:1")}});
    world.create::<StatefulSet>(set).await;
    let ready = |count| {
        move |set: &StatefulSet| {
            let status = set.status.clone().unwrap_or_default();
            status.ready_replicas == Some(count)
                && status.replicas == count
                && status.current_revision == status.update_revision
                && status.observed_generation == set.metadata.generation
        }
    };
    world.until::<StatefulSet>("db", ready(3)).await;
    let pods = world.pods("db").await;
    let names: Vec<_> = pods.iter().map(|pod| pod.name_any()).collect();
    assert_eq!(names, ["db-0", "db-1", "db-2"]);

    let next = json!({"spec": {"template": template("db", "ok:2")}});
    world.patch::<StatefulSet>("db", next).await;
    world.until::<StatefulSet>("db", ready(3)).await;
    eventually("all pods are new", async || {
        world
            .pods("db")
            .await
            .iter()
            .filter(|pod| image(pod) == "ok:2")
            .count()
            == 3
    })
    .await;
    let revisions = world
        .api::<ControllerRevision>()
        .list(&ListParams::default())
        .await
        .unwrap();
    assert_eq!(revisions.items.len(), 2);

    world
        .patch::<StatefulSet>("db", json!({"spec": {"replicas": 1}}))
        .await;
    world.until::<StatefulSet>("db", ready(1)).await;
    assert_eq!(world.pods("db").await[0].name_any(), "db-0");
}

#[tokio::test]
async fn a_daemon_set_follows_the_nodes_and_its_template() {
    let world = World::start(2).await;
    let set = json!({"metadata": {"name": "ds"}, "spec": {
        "selector": {"matchLabels": {"app": "ds"}}, "template": template("ds", "ok:1")}});
    world.create::<DaemonSet>(set).await;
    let available = |count| {
        move |set: &DaemonSet| {
            let status = set.status.clone().unwrap_or_default();
            status.number_available == Some(count)
                && status.updated_number_scheduled == Some(count)
                && status.desired_number_scheduled == count
                && status.observed_generation == set.metadata.generation
        }
    };
    world.until::<DaemonSet>("ds", available(2)).await;
    world.add_node("late").await;
    world.until::<DaemonSet>("ds", available(3)).await;
    let next = json!({"spec": {"template": template("ds", "ok:2")}});
    world.patch::<DaemonSet>("ds", next).await;
    world.until::<DaemonSet>("ds", available(3)).await;
    let pods = world.pods("ds").await;
    assert!(pods.iter().all(|pod| image(pod) == "ok:2"));
    let mut nodes: Vec<_> = pods
        .iter()
        .map(|pod| pod.spec.clone().unwrap().node_name)
        .collect();
    nodes.dedup();
    assert_eq!(nodes.len(), 3);

    // A daemon that is on its way keeps its place: its ports and files are not free before its end.
    let held = json!({"metadata": {"finalizers": ["windlass.dev/hold"]}});
    for pod in &pods {
        world.patch::<Pod>(&pod.name_any(), held.clone()).await;
    }
    for image in ["ok:3", "ok:4"] {
        let next = json!({"spec": {"template": template("ds", image)}});
        let generation = world
            .patch::<DaemonSet>("ds", next)
            .await
            .metadata
            .generation;
        let seen = |set: &DaemonSet| {
            let status = set.status.clone().unwrap_or_default();
            status.observed_generation == generation
        };
        world.until::<DaemonSet>("ds", seen).await;
        eventually("one is on its way", async || {
            world.pods("ds").await.len() == 2
        })
        .await;
    }
    let all = world.api::<Pod>().list(&ListParams::default()).await;
    assert_eq!(all.unwrap().items.len(), 3, "no second one beside it");
}

/// The finalizer that makes a Job count its pods must not outlive its claim to them: they and their namespace could not go.
#[tokio::test]
async fn a_pod_that_a_job_lets_go_has_nothing_of_it_and_an_adopted_one_is_counted() {
    let world = World::start(1).await;
    let mut template = template("work", "ok");
    template["spec"]["restartPolicy"] = json!("Never");
    let job = json!({"metadata": {"name": "work"}, "spec": {"template": template}});
    world.create::<Job>(job).await;
    eventually("a pod", async || world.pods("work").await.len() == 1).await;
    let pod = world.pods("work").await.remove(0);
    let name = pod.name_any();
    let tracking = ["batch.kubernetes.io/job-tracking"];
    assert_eq!(pod.finalizers(), tracking);

    let orphan = json!({"metadata": {"ownerReferences": null, "finalizers": null}});
    world.patch::<Pod>(&name, orphan).await;
    let adopted = |pod: &Pod| !pod.owner_references().is_empty() && pod.finalizers() == tracking;
    world.until::<Pod>(&name, adopted).await;

    world
        .patch::<Pod>(&name, json!({"metadata": {"labels": null}}))
        .await;
    let free = |pod: &Pod| pod.owner_references().is_empty() && pod.finalizers().is_empty();
    world.until::<Pod>(&name, free).await;
}

#[tokio::test]
async fn jobs_count_every_pod_once_and_end_as_they_should() {
    let world = World::start(1).await;
    let job = |name: &str, image: &str, more: serde_json::Value| {
        let mut spec = json!({"template": {"spec": {"restartPolicy": "Never",
            "containers": [{"name": "c", "image": image}]}}});
        for (key, value) in more.as_object().unwrap() {
            spec[key] = value.clone();
        }
        json!({"metadata": {"name": name}, "spec": spec})
    };
    let ended = |job: &Job, kind: &str| {
        let status = job.status.clone().unwrap_or_default();
        status
            .conditions
            .iter()
            .flatten()
            .any(|c| c.type_ == kind && c.status == "True")
    };
    let many = json!({"completions": 30, "parallelism": 10});
    world.create::<Job>(job("many", "succeed", many)).await;
    let indexed = json!({"completions": 30, "parallelism": 10, "completionMode": "Indexed"});
    world
        .create::<Job>(job("indexed", "succeed", indexed))
        .await;
    world
        .create::<Job>(job("bad", "fail", json!({"backoffLimit": 0})))
        .await;
    let timed = json!({"activeDeadlineSeconds": 1});
    world.create::<Job>(job("late", "ok", timed)).await;

    let many = world
        .until::<Job>("many", |job| ended(job, "Complete"))
        .await;
    assert_eq!(many.status.unwrap().succeeded, Some(30));
    let indexed = world
        .until::<Job>("indexed", |job| ended(job, "Complete"))
        .await;
    assert_eq!(
        indexed.status.unwrap().completed_indexes.as_deref(),
        Some("0-29")
    );
    for (name, reason) in [
        ("bad", "BackoffLimitExceeded"),
        ("late", "DeadlineExceeded"),
    ] {
        let job = world.until::<Job>(name, |job| ended(job, "Failed")).await;
        let status = job.status.unwrap();
        assert_eq!(status.failed, Some(1), "{name}");
        assert_eq!(
            status.conditions.unwrap()[0].reason.as_deref(),
            Some(reason)
        );
    }
    let held = |pod: &Pod| {
        pod.finalizers()
            .iter()
            .any(|name| name.contains("job-tracking"))
    };
    let pods = world
        .api::<Pod>()
        .list(&ListParams::default())
        .await
        .unwrap()
        .items;
    assert!(!pods.iter().any(held), "a finished job holds no pod");
    for name in ["many", "indexed"] {
        let of_job = |pod: &&Pod| {
            let job = pod.labels().get("batch.kubernetes.io/job-name");
            job.is_some_and(|job| job == name)
        };
        let made = pods.iter().filter(of_job).count();
        assert_eq!(made, 30, "each pod of {name} is made once");
    }
}

/// Every second request for a pod is heard, and its answer is that nobody was there.
fn hard_of_hearing(client: Client, made: Arc<AtomicUsize>) -> Client {
    let requests = Arc::new(AtomicUsize::new(0));
    let service = move |request: Request<Body>| {
        let is_creation =
            request.method() == Method::POST && request.uri().path().ends_with("/pods");
        let (client, requests, made) = (client.clone(), requests.clone(), made.clone());
        async move {
            let answer = client.send(request).await?;
            if !is_creation {
                return Ok::<_, kube::Error>(answer);
            }
            if answer.status() == StatusCode::CREATED {
                made.fetch_add(1, Ordering::Relaxed);
            }
            if requests.fetch_add(1, Ordering::Relaxed) % 2 == 1 {
                return Ok(answer);
            }
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": "ServiceUnavailable", "message": "the store is away", "code": 503});
            let mut nobody = Response::new(Body::from(status.to_string().into_bytes()));
            *nobody.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Ok(nobody)
        }
    };
    Client::new(tower::service_fn(service), NAMESPACE)
}

#[tokio::test]
async fn a_pod_is_made_once_although_the_answer_was_lost() {
    let made = Arc::new(AtomicUsize::new(0));
    let counted = made.clone();
    let through = |client| hard_of_hearing(client, counted);
    let world = World::start_through(1, ControllersConfig::default(), through).await;
    let template = json!({"spec": {"restartPolicy": "Never",
        "containers": [{"name": "c", "image": "succeed"}]}});
    let spec = json!({"completions": 6, "parallelism": 3, "completionMode": "Indexed", "template": template});
    world
        .create::<Job>(json!({"metadata": {"name": "job"}, "spec": spec}))
        .await;
    let job = world
        .until::<Job>("job", |job| {
            let status = job.status.as_ref();
            status.is_some_and(|status| status.completion_time.is_some())
        })
        .await;
    assert_eq!(job.status.unwrap().succeeded, Some(6));
    assert_eq!(made.load(Ordering::Relaxed), 6);
    world.create::<Deployment>(deployment(4, "ok")).await;
    world
        .until::<Deployment>("web", |deployment| is_rolled_out(deployment, 4))
        .await;
    assert_eq!(made.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn a_quota_shows_what_is_used_and_gives_back_what_is_gone() {
    let world = World::start(1).await;
    let quota = json!({"metadata": {"name": "q"},
        "spec": {"hard": {"pods": "10", "count/deployments.apps": "3"}}});
    world.create::<ResourceQuota>(quota).await;
    world.create::<Deployment>(deployment(3, "ok:1")).await;
    let used = |pods: &'static str, deployments: &'static str| {
        move |quota: &ResourceQuota| {
            let used = quota
                .status
                .clone()
                .unwrap_or_default()
                .used
                .unwrap_or_default();
            used.get("pods").is_some_and(|amount| amount.0 == pods)
                && used
                    .get("count/deployments.apps")
                    .is_some_and(|amount| amount.0 == deployments)
        }
    };
    world.until::<ResourceQuota>("q", used("3", "1")).await;
    world
        .patch::<Deployment>("web", json!({"spec": {"replicas": 1}}))
        .await;
    world.until::<ResourceQuota>("q", used("1", "1")).await;
    world.delete::<Deployment>("web", Default::default()).await;
    world.until::<ResourceQuota>("q", used("0", "0")).await;
}

#[tokio::test]
async fn a_revision_that_was_written_by_hand_counts_like_any_other() {
    let world = World::start(1).await;
    world
        .create::<DaemonSet>(json!({"metadata": {"name": "agent"}, "spec": {
            "selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", "ok")}}))
        .await;
    let api = world.api::<ControllerRevision>();
    let revisions = async || {
        api.list(&ListParams::default().labels("app=agent"))
            .await
            .unwrap()
            .items
    };
    eventually("the first revision and its pod", async || {
        revisions().await.len() == 1 && world.pods("agent").await.len() == 1
    })
    .await;
    let first = revisions().await.remove(0);
    let second = json!({"metadata": {"generateName": "agent-", "labels": {"app": "agent"},
        "ownerReferences": first.owner_references()}, "data": first.data, "revision": 2});
    let second = world.create::<ControllerRevision>(second).await;
    world
        .delete::<ControllerRevision>(&first.name_any(), Default::default())
        .await;
    world.gone::<ControllerRevision>(&first.name_any()).await;
    // The set goes on with the one that is left, and tells its pods by it.
    world
        .until::<ControllerRevision>(&second.name_any(), |revision| {
            revision.labels().get("controller-revision-hash") == Some(&second.name_any())
        })
        .await;
    assert_eq!(revisions().await.len(), 1);
    let slower = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}}});
    world.patch::<DaemonSet>("agent", slower).await;
    eventually("the third revision", async || {
        revisions()
            .await
            .iter()
            .any(|revision| revision.revision == 3)
    })
    .await;
}
