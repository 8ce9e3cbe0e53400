//! Volumes of a CSI driver, which is a program of its own with real mounts.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use windlass_tests::csi_driver::{CsiDriver, VOLUME_SIZE};

use crate::node::{Node, eventually, is_ready, sh};

const NAME: &str = "csi.windlass.test";

fn driver(node: &Node) -> CsiDriver {
    let root = node.config().root_dir;
    CsiDriver::start(NAME, &root, &node.containerd.path().join("disks")).unwrap()
}

/// The Node object, without which no volume is told of.
fn put_node(node: &Node, attached: &[&str]) {
    let attached: Vec<Value> = attached
        .iter()
        .map(|name| json!({"name": name, "devicePath": ""}))
        .collect();
    node.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "uid-of-n1"},
               "status": {"volumesAttached": attached}}),
    );
}

fn describe(node: &Node, spec: Value) {
    node.api.put(
        "csidrivers",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
               "metadata": {"name": NAME}, "spec": spec}),
    );
}

fn disk(node: &Node, claim: &str, more: Value) {
    let mut spec = json!({
        "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
        "csi": {"driver": NAME, "volumeHandle": claim, "volumeAttributes": {"color": "blue"}},
    });
    for (key, value) in more.as_object().into_iter().flatten() {
        match value.as_object() {
            Some(fields) if key == "csi" => {
                for (field, value) in fields {
                    spec["csi"][field] = value.clone();
                }
            }
            _ => spec[key] = value.clone(),
        }
    }
    node.bind(claim, spec);
}

fn user(volumes: Value, script: &str) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|volume| {
            let name = volume["name"].as_str().unwrap();
            json!({"name": name, "mountPath": format!("/{name}")})
        })
        .collect();
    json!({"terminationGracePeriodSeconds": 1, "volumes": volumes,
        "containers": [{"name": "c", "command": sh(script), "volumeMounts": mounts}]})
}

fn claim(name: &str) -> Value {
    json!([{"name": "v", "persistentVolumeClaim": {"claimName": name}}])
}

/// What is left below the plugin's folder and is no socket.
fn staged(node: &Node) -> Vec<PathBuf> {
    let folder = node.config().root_dir.join("plugins/kubernetes.io/csi");
    let drivers = fs::read_dir(folder).into_iter().flatten().flatten();
    drivers
        .flat_map(|driver| fs::read_dir(driver.path()).into_iter().flatten().flatten())
        .map(|entry| entry.path())
        .collect()
}

fn mounts_below(node: &Node) -> Vec<String> {
    let root = node.config().root_dir.to_string_lossy().into_owned();
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points
        .filter(|point| point.starts_with(&format!("{root}/")))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drivers_volume_is_staged_once_shared_by_pods_and_taken_down_with_the_last() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    put_node(&node, &[]);
    describe(
        &node,
        json!({"attachRequired": false, "podInfoOnMount": true,
        "tokenRequests": [{"audience": "vault"}]}),
    );
    disk(
        &node,
        "shared",
        json!({"csi": {"fsType": "ext4",
        "nodePublishSecretRef": {"name": "key", "namespace": "default"}}}),
    );
    node.api.put(
        "secrets",
        json!({"apiVersion": "v1", "kind": "Secret",
               "metadata": {"name": "key", "namespace": "default"}, "data": {"word": "b3Blbg=="}}),
    );

    // --- without its driver the pod waits, and says for what ---
    let mut spec = user(claim("shared"), "echo kept > /v/file; sleep 100000");
    spec["securityContext"] = json!({"fsGroup": 4321});
    node.create("first", spec);
    let told = eventually(async || {
        let events = node.events("first");
        events.iter().any(|event| {
            event.contains(
                "driver name csi.windlass.test not found in the list of registered CSI drivers",
            )
        })
    });
    assert!(told.await, "{:#?}", node.events("first"));

    let driver = driver(&node);
    node.wait("first", "runs", is_ready).await;
    assert_eq!(driver.registered(), Some(Ok(())));
    let content = driver.content("shared");
    assert_eq!(fs::read_to_string(content.join("file")).unwrap(), "kept\n");
    let group = std::os::unix::fs::MetadataExt::gid(&fs::metadata(&content).unwrap());
    assert_eq!(group, 4321, "the volume belongs to the pod's group");
    {
        let told = driver.told();
        assert_eq!(told.secrets["word"], "open");
        assert_eq!(told.context["color"], "blue");
        assert_eq!(told.context["csi.storage.k8s.io/pod.name"], "first");
        assert_eq!(told.context["csi.storage.k8s.io/ephemeral"], "false");
        let tokens = &told.context["csi.storage.k8s.io/serviceAccount.tokens"];
        let tokens: Value = serde_json::from_str(tokens).unwrap();
        assert_eq!(tokens["vault"]["token"], "token-of-default");
        assert!(tokens["vault"]["expirationTimestamp"].is_string());
    }
    let told = node.api.get("csinodes", "n1").unwrap();
    let entry = &told["spec"]["drivers"][0];
    assert_eq!(entry["name"], NAME);
    assert_eq!(entry["nodeID"], "this-node");
    assert_eq!(entry["allocatable"]["count"], 16);
    assert_eq!(entry["topologyKeys"][0], format!("topology.{NAME}/node"));
    assert_eq!(told["metadata"]["ownerReferences"][0]["uid"], "uid-of-n1");
    let object = node.api.get("nodes", "n1").unwrap();
    assert_eq!(
        object["metadata"]["labels"][format!("topology.{NAME}/node")],
        "here"
    );
    let ids = &object["metadata"]["annotations"]["csi.volume.kubernetes.io/nodeid"];
    assert_eq!(*ids, json!(format!("{{\"{NAME}\":\"this-node\"}}")));

    let (pods, _, _) = node.pods.as_ref().unwrap();
    let volumes = pods.volumes().await;
    assert_eq!(volumes.len(), 1, "{volumes:?}");
    assert_eq!(volumes[0].claim.as_deref(), Some("shared"));
    let told = volumes[0].usage.bytes;
    assert_eq!((told.total, told.used), (VOLUME_SIZE, 5));

    // --- a second pod of the node gets the same volume, an agent that restarts finds both ---
    node.create(
        "second",
        user(claim("shared"), "cat /v/file && sleep 100000"),
    );
    node.wait("second", "runs", is_ready).await;
    assert_eq!(driver.count("stage shared"), 1);
    let second = node.api.get("pods", "second").unwrap();
    let uid = second["metadata"]["uid"].as_str().unwrap();
    let place = node.config().pod_folder(uid);
    let record = place.join("volumes/kubernetes.io~csi/pv-shared/vol_data.json");
    let record: Value = serde_json::from_slice(&fs::read(record).unwrap()).unwrap();
    assert_eq!(record["volumeHandle"], "shared");
    assert_eq!(record["driverName"], NAME);
    node.stop_agent().await;
    node.start_agent();

    node.delete("first").await;
    assert_eq!(driver.count("unpublish shared"), 1);
    assert_eq!(driver.count("unstage shared"), 0, "another pod uses it");
    // --- while the driver is away nothing of the pod's volumes is torn down behind its back ---
    drop(driver);
    node.api.mark_deleted("second", 1);
    node.wait("second", "has stopped", |pod| !is_ready(pod))
        .await;
    assert!(
        place
            .join("volumes/kubernetes.io~csi/pv-shared/mount/file")
            .exists()
    );
    let gone = eventually(async || {
        let told = node.api.get("csinodes", "n1").unwrap();
        told["spec"]["drivers"] == json!([])
    });
    assert!(gone.await, "the CSINode forgets the driver");
    assert!(
        place
            .join("volumes/kubernetes.io~csi/pv-shared/mount/file")
            .exists()
    );
    let driver = self::driver(&node);
    node.gone("second").await;
    assert_eq!(driver.count("unpublish shared"), 1);
    assert_eq!(driver.count("unstage shared"), 1);
    assert_eq!(staged(&node), Vec::<PathBuf>::new());
    assert_eq!(mounts_below(&node), Vec::<String>::new());
    assert_eq!(fs::read_to_string(content.join("file")).unwrap(), "kept\n");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attachable_volume_waits_for_its_attachment_and_is_told_of_while_it_is_mounted() {
    let Some(node) = Node::start().await else {
        return;
    };
    put_node(&node, &[]);
    disk(&node, "cloud", json!({}));
    let driver = driver(&node);
    node.create("user", user(claim("cloud"), "sleep 100000"));
    let unique = format!("kubernetes.io/csi/{NAME}^cloud");
    let in_use = |node: &Node| {
        let object = node.api.get("nodes", "n1").unwrap();
        object["status"]["volumesInUse"] == json!([unique])
    };
    assert!(
        eventually(async || in_use(&node)).await,
        "told of before it is mounted"
    );
    let told = eventually(async || {
        let events = node.events("user");
        events
            .iter()
            .any(|event| event.contains("is not attached according to node status"))
    });
    assert!(told.await, "{:#?}", node.events("user"));
    assert_eq!(driver.count("stage cloud"), 0);

    let digest = |text: String| {
        use sha2::Digest as _;
        let bytes = sha2::Sha256::digest(text);
        bytes
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let attachment = format!("csi-{}", digest(format!("cloud{NAME}n1")));
    node.api.put(
        "volumeattachments",
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
               "metadata": {"name": attachment},
               "spec": {"attacher": NAME, "nodeName": "n1", "source": {"persistentVolumeName": "pv-cloud"}},
               "status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}}),
    );
    let mut object = node.api.get("nodes", "n1").unwrap();
    object["status"]["volumesAttached"] = json!([{"name": unique, "devicePath": ""}]);
    node.api.put("nodes", object);
    node.wait("user", "runs", is_ready).await;
    assert_eq!(driver.told().publish_context["device"], "/dev/x");
    assert!(in_use(&node));
    node.delete("user").await;
    let free = eventually(async || {
        let object = node.api.get("nodes", "n1").unwrap();
        object["status"]["volumesInUse"] == json!([])
    });
    assert!(free.await, "it may be detached");
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_and_block_volumes_come_and_go_and_refusals_are_told() {
    let Some(node) = Node::start().await else {
        return;
    };
    put_node(&node, &[]);
    let driver = driver(&node);
    describe(&node, json!({"attachRequired": false}));
    let inline = json!([{"name": "v", "csi": {"driver": NAME, "volumeAttributes": {"size": "1"}}}]);
    node.create("inline", user(inline, "echo x > /v/file; sleep 100000"));
    let told = eventually(async || {
        let events = node.events("inline");
        events.iter().any(|event| {
            event.contains("volume mode \"Ephemeral\" not supported by driver csi.windlass.test")
        })
    });
    assert!(told.await, "{:#?}", node.events("inline"));
    describe(
        &node,
        json!({"attachRequired": false, "podInfoOnMount": true,
        "volumeLifecycleModes": ["Ephemeral", "Persistent"]}),
    );
    node.wait("inline", "runs", is_ready).await;
    assert_eq!(driver.told().context["size"], "1");
    assert_eq!(
        driver.told().context["csi.storage.k8s.io/ephemeral"],
        "true"
    );
    let calls = driver.told().calls.clone();
    assert!(
        !calls.iter().any(|call| call.starts_with("stage")),
        "{calls:?}"
    );
    node.delete("inline").await;

    disk(&node, "device", json!({"volumeMode": "Block"}));
    let mut spec = user(claim("device"), "test -b /dev/disk && sleep 100000");
    spec["containers"][0]["volumeMounts"] = json!([]);
    spec["containers"][0]["volumeDevices"] = json!([{"name": "v", "devicePath": "/dev/disk"}]);
    node.create("block", spec);
    node.wait("block", "runs", is_ready).await;
    node.delete("block").await;
    assert_eq!(driver.count("unpublish device"), 1);
    assert_eq!(driver.count("unstage device"), 1);

    // --- what the driver refused needs no undoing ---
    disk(&node, "broken", json!({}));
    driver
        .told()
        .refuse
        .insert("broken".into(), "no such disk".into());
    node.create("refused", user(claim("broken"), "sleep 100000"));
    let told = eventually(async || {
        let events = node.events("refused");
        events.iter().any(|event| {
            event.contains("FailedMount")
                && event.contains("rpc error: code = Internal desc = no such disk")
        })
    });
    assert!(told.await, "{:#?}", node.events("refused"));
    node.delete("refused").await;
    assert_eq!(driver.count("unpublish broken"), 0);
    assert_eq!(mounts_below(&node), Vec::<String>::new());
    node.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_ends_while_a_volume_is_being_staged_leaves_nothing_behind() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    put_node(&node, &[]);
    describe(&node, json!({"attachRequired": false}));
    let driver = driver(&node);
    for name in ["stays", "goes"] {
        disk(&node, name, json!({}));
        driver.hold(name);
        node.create(name, user(claim(name), "sleep 100000"));
        let call = format!("stage {name}");
        assert!(eventually(async || driver.count(&call) > 0).await, "{call}");
    }
    node.stop_agent().await;
    driver.let_go("stays");
    driver.let_go("goes");
    node.api.remove("pods", "goes");
    node.start_agent();
    node.wait("stays", "runs", is_ready).await;
    let gone = eventually(async || driver.count("unstage goes") > 0);
    assert!(gone.await, "{:?}", driver.told());
    node.delete("stays").await;
    assert_eq!(driver.count("unpublish stays"), 1);
    assert_eq!(driver.count("unstage stays"), 1);
    let clean = eventually(async || staged(&node).is_empty() && mounts_below(&node).is_empty());
    assert!(clean.await, "{:?} {:?}", staged(&node), mounts_below(&node));
    node.end().await;
}
