//! From the object to the process and back to the status, until the deletion.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, eventually, is_ready, sh, state};
use crate::support::containerd::BUSYBOX;

#[tokio::test(flavor = "multi_thread")]
async fn pods_live_from_their_object_to_their_deletion() {
    let Some(mut node) = Node::start().await else {
        return;
    };

    // --- environment, volumes, last words, order of init containers ---
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "conf", "namespace": "default"}, "data": {"color": "blue"}}),
    );
    node.create("full", json!({
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 5,
        "volumes": [
            {"name": "work", "emptyDir": {}},
            {"name": "conf", "configMap": {"name": "conf"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}},
        ],
        "initContainers": [{
            "name": "init", "image": BUSYBOX, "command": sh("echo from-init > /work/file"),
            "volumeMounts": [{"name": "work", "mountPath": "/work"}],
        }],
        "containers": [{
            "name": "main",
            "command": sh("cat /work/file; cat /conf/color; echo; cat /token/token; echo; env; id -u; hostname; \
                           trap 'echo bye > /dev/termination-log; exit 0' TERM; \
                           while true; do sleep 0.1; done"),
            "env": [
                {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "conf", "key": "color"}}},
                {"name": "GREETING", "value": "hello $(COLOR)"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            ],
            "securityContext": {"runAsUser": 1234},
            "readinessProbe": {"exec": {"command": ["/bin/test", "-e", "/work/file"]}, "periodSeconds": 1},
            "volumeMounts": [
                {"name": "work", "mountPath": "/work"},
                {"name": "conf", "mountPath": "/conf"},
                {"name": "token", "mountPath": "/token"},
            ],
        }],
    }));
    let begun = Instant::now();
    let pod = node.wait("full", "becomes ready", is_ready).await;
    eprintln!("ready after {:?}", begun.elapsed());
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["podIP"], "127.0.0.1");
    assert_eq!(
        pod["status"]["initContainerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    let everything = eventually(async || node.log(&pod, "main", 0).contains(" 1234\n")).await;
    let log = node.log(&pod, "main", 0);
    assert!(everything, "{log}");
    for line in [
        "from-init",
        "blue",
        "token-of-default",
        "GREETING=hello blue",
        "IP=127.0.0.1",
        "1234",
    ] {
        assert!(
            log.lines().any(|found| found.ends_with(line)),
            "{line} is not in\n{log}"
        );
    }

    // --- a changed ConfigMap reaches the running pod ---
    node.api.put(
        "configmaps",
        json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "conf", "namespace": "default"}, "data": {"color": "green"}}),
    );
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let file = node
        .config()
        .state_dir
        .join("pods")
        .join(uid)
        .join("volumes/kubernetes.io~configmap/conf/color");
    assert!(eventually(async || fs::read_to_string(&file).unwrap_or_default() == "green").await);

    // --- the agent goes away and comes back: the pod runs on and is taken over ---
    let id = state(&pod, "main")["containerID"].clone();
    node.stop_agent().await;
    node.start_agent();
    let (pods, ..) = node.pods.as_ref().unwrap();
    let pods = pods.clone();
    assert!(
        eventually(async || pods
            .find("default", "full")
            .is_some_and(|view| view.container(None).is_some()))
        .await
    );
    let adopted = node.wait("full", "stays ready", is_ready).await;
    assert_eq!(state(&adopted, "main")["containerID"], id);
    assert_eq!(state(&adopted, "main")["restartCount"], 0);

    // --- graceful deletion: the signal arrives, the last words are read, nothing is left ---
    node.api.mark_deleted("full", 30);
    let begun = Instant::now();
    node.gone("full").await;
    assert!(
        begun.elapsed() < Duration::from_secs(20),
        "the container left on its own"
    );

    // --- who is leaving says whether it still serves, and is not condemned meanwhile ---
    let probe = json!({"exec": {"command": ["/bin/test", "-e", "/v/serves"]}, "periodSeconds": 1, "failureThreshold": 1});
    node.create("leaving", json!({
        "terminationGracePeriodSeconds": 60,
        "volumes": [{"name": "v", "emptyDir": {}}],
        "initContainers": [{
            "name": "init", "image": BUSYBOX, "command": ["/bin/touch", "/v/serves"],
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }],
        "containers": [{
            "name": "c", "readinessProbe": probe, "livenessProbe": probe,
            "command": sh("trap 'rm /v/serves; while ! test -e /v/go; do sleep 0.1; done; exit 0' TERM; \
                           while true; do sleep 0.1; done"),
            "volumeMounts": [{"name": "v", "mountPath": "/v"}],
        }],
    }));
    let pod = node.wait("leaving", "becomes ready", is_ready).await;
    node.api.mark_deleted("leaving", 60);
    let told = "is not ready any more while it leaves";
    node.wait("leaving", told, |pod| !is_ready(pod)).await;
    let uid = pod["metadata"]["uid"].as_str().unwrap();
    let pods = node.config().state_dir.join("pods");
    let volume = pods.join(uid).join("volumes/kubernetes.io~empty-dir/v");
    fs::write(volume.join("go"), "").unwrap();
    node.gone("leaving").await;
    let events = node.events("leaving");
    assert!(
        !events.iter().any(|event| event.contains("Liveness")),
        "{events:?}"
    );
    node.end().await;
}
