//! Volumes that outlive pods, and disks that fill up.

use std::fs;

use serde_json::{Value, json};

use crate::node::{Node, eventually, is_ready, sh, state};

#[tokio::test(flavor = "multi_thread")]
async fn claims_are_mounted_and_outlive_their_pods() {
    let Some(node) = Node::start().await else {
        return;
    };
    let disk = node.containerd.path().join("disk");
    fs::create_dir(&disk).unwrap();
    node.bind("local", json!({"local": {"path": disk}}));
    let on_host = node.containerd.path().join("made");
    let source = json!({"hostPath": {"path": on_host, "type": "DirectoryOrCreate"}});
    node.bind("host", source);
    let spec = json!({
        "restartPolicy": "Never",
        "securityContext": {"runAsUser": 1000, "fsGroup": 2345},
        "volumes": [
            {"name": "a", "persistentVolumeClaim": {"claimName": "local"}},
            {"name": "b", "persistentVolumeClaim": {"claimName": "host", "readOnly": true}},
        ],
        "containers": [{
            "name": "c", "command": sh("echo kept > /a/file && ! touch /b/file"),
            "volumeMounts": [{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/b"}],
        }],
    });
    node.create("writer", spec.clone());
    let succeeded = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    node.wait("writer", "succeeds", succeeded).await;
    node.delete("writer").await;
    assert_eq!(fs::read_to_string(disk.join("file")).unwrap(), "kept\n");
    assert_eq!(fs::read_dir(&on_host).unwrap().count(), 0);

    // --- a claim that is not bound yet holds the pod back, and no longer ---
    let mut waiting = spec;
    waiting["volumes"][1] = json!({"name": "b", "persistentVolumeClaim": {
        "claimName": "late", "readOnly": true}});
    node.create("waiter", waiting);
    let told = eventually(async || {
        let events = node.events("waiter");
        events
            .iter()
            .any(|event| event.contains("\"late\" not found"))
    });
    assert!(told.await, "{:#?}", node.events("waiter"));
    node.bind("late", json!({"hostPath": {"path": on_host}}));
    node.wait("waiter", "succeeds", succeeded).await;
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_fills_more_disk_than_it_may_is_evicted() {
    let Some(node) = Node::start().await else {
        return;
    };
    node.create(
        "greedy",
        json!({"terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "100Ki"}}],
            "containers": [{
                "name": "c", "command": sh("head -c 1000000 /dev/zero > /v/file; sleep 100000"),
                "volumeMounts": [{"name": "v", "mountPath": "/v"}],
            }],
        }),
    );
    let pod = node
        .wait("greedy", "is evicted", |pod| {
            pod["status"]["phase"] == "Failed"
        })
        .await;
    assert_eq!(pod["status"]["reason"], "Evicted");
    assert_eq!(
        pod["status"]["message"],
        "Usage of EmptyDir volume \"v\" exceeds the limit \"100Ki\". "
    );
    let conditions = pod["status"]["conditions"].as_array().unwrap();
    let disrupted = |it: &&Value| it["type"] == "DisruptionTarget" && it["status"] == "True";
    let condition = conditions.iter().find(disrupted).unwrap();
    assert_eq!(condition["reason"], "TerminationByKubelet");
    node.wait("greedy", "has stopped", |pod| {
        state(pod, "c")["state"]["terminated"].is_object() && !is_ready(pod)
    })
    .await;
    node.end().await;
}
