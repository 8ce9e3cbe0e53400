//! Storage of a CSI driver, from a claim that waits for its first pod to the files in that pod, with the parts around
//! the driver (provisioner, attacher) played by the test as far as the API sees them.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use windlass_tests::cluster::Cluster;
use windlass_tests::csi_driver::CsiDriver;
use windlass_tests::eventually::{eventually, until};
use windlass_tests::kubectl::{kubectl, kubectl_with_input, try_kubectl};
use windlass_tests::namespace::Namespace;

const SOON: Duration = Duration::from_secs(60);

/// What the cluster keeps outside the test's namespace.
struct Remains(Vec<String>);

impl Drop for Remains {
    fn drop(&mut self) {
        for object in &self.0 {
            let _ = try_kubectl(
                &["delete", object, "--ignore-not-found", "--wait=false"],
                "",
            );
        }
    }
}

fn get(what: &[&str]) -> Result<Value> {
    let mut arguments = vec!["get"];
    arguments.extend(what);
    arguments.extend(["-o", "json"]);
    Ok(serde_json::from_str(&kubectl(&arguments)?)?)
}

fn apply(object: &Value) -> Result<()> {
    kubectl_with_input(&["apply", "-f", "-"], &object.to_string()).map(drop)
}

#[test]
fn a_drivers_volume_follows_its_claim_to_the_pod_and_survives_the_agents_death() -> Result<()> {
    let cluster = Cluster::exclusive()?;
    let node = cluster.nodes(1)?.swap_remove(0);
    let namespace = Namespace::create("csi")?;
    let name = format!("{}.csi.windlass.test", namespace.name());
    let volume = format!("pv-{}", namespace.name());
    let _remains = Remains(vec![
        format!("pv/{volume}"),
        format!("storageclass/{name}"),
        format!("csidriver/{name}"),
    ]);
    let root = PathBuf::from(cluster.variable("WINDLASS_KUBELET_ROOT")?);
    let disks = root.join(format!("disks-of-{}", std::process::id()));
    let driver = CsiDriver::start(&name, &root, &disks)?;

    // --- the driver makes itself known, and the cluster knows it ---
    let entry = eventually(SOON, "the driver's entry in the CSINode", || {
        let object = get(&["csinode", &node.name])?;
        let drivers = object["spec"]["drivers"].as_array().cloned();
        Ok(drivers.into_iter().flatten().find(|it| it["name"] == *name))
    })?;
    ensure!(entry["nodeID"] == "this-node", "{entry}");
    apply(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
        "metadata": {"name": name}, "spec": {"podInfoOnMount": true, "tokenRequests": [{"audience": "vault"}]}}),
    )?;
    apply(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": name, "volumeBindingMode": "WaitForFirstConsumer"}),
    )?;

    // --- the claim waits for its pod, the provisioner for the node ---
    namespace.apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"storageClassName": name, "accessModes": ["ReadWriteOnce"],
                 "resources": {"requests": {"storage": "1Gi"}}}})
        .to_string(),
    )?;
    namespace.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "user"},
        "spec": {"terminationGracePeriodSeconds": 1,
            "nodeSelector": {"kubernetes.io/hostname": node.name},
            "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}],
            "containers": [{"name": "main", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "echo kept > /data/file; sleep 100000"],
                "volumeMounts": [{"name": "v", "mountPath": "/data"}]}]}}).to_string())?;
    let chosen = ["pvc", "data"];
    let annotation = "{.metadata.annotations.volume\\.kubernetes\\.io/selected-node}";
    until(SOON, "the node that the scheduler chose", || {
        Ok(namespace.field(&chosen, annotation)? == node.name)
    })?;
    let uid = namespace.field(&chosen, "{.metadata.uid}")?;
    apply(
        &json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key", "namespace": namespace.name()},
        "stringData": {"word": "open"}}),
    )?;
    apply(
        &json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": volume},
        "spec": {"storageClassName": name, "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": {"namespace": namespace.name(), "name": "data", "uid": uid},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": format!("topology.{name}/node"), "operator": "In", "values": ["here"]}]}]}},
            "csi": {"driver": name, "volumeHandle": "disk-1",
                "nodeStageSecretRef": {"name": "key", "namespace": namespace.name()},
                "nodePublishSecretRef": {"name": "key", "namespace": namespace.name()}}}}),
    )?;

    // --- it is attached before it is mounted ---
    let attachment = || -> Result<Option<String>> {
        let all = get(&["volumeattachments"])?;
        let items = all["items"].as_array().cloned().unwrap_or_default();
        let own = items
            .iter()
            .find(|it| it["spec"]["source"]["persistentVolumeName"] == *volume);
        Ok(own.and_then(|it| it["metadata"]["name"].as_str().map(str::to_owned)))
    };
    let attached = eventually(SOON, "the VolumeAttachment", attachment)?;
    ensure!(
        driver.count("stage disk-1") == 0,
        "mounted before it was attached"
    );
    let patch = json!({"status": {"attached": true, "attachmentMetadata": {"device": "/dev/x"}}});
    kubectl(&[
        "patch",
        "volumeattachment",
        &attached,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch.to_string(),
    ])?;
    namespace.wait_ready("user")?;
    let content = driver.content("disk-1").join("file");
    until(SOON, "the container to have written", || {
        Ok(fs::read_to_string(&content).is_ok_and(|text| text == "kept\n"))
    })?;
    {
        let told = driver.told();
        ensure!(told.publish_context["device"] == "/dev/x", "{told:?}");
        ensure!(told.secrets["word"] == "open", "{told:?}");
        ensure!(
            told.context["csi.storage.k8s.io/pod.name"] == "user",
            "{told:?}"
        );
        ensure!(told.context["csi.storage.k8s.io/serviceAccount.tokens"].contains("vault"));
    }
    let unique = format!("kubernetes.io/csi/{name}^disk-1");
    let lists = |field: &str| -> Result<bool> {
        Ok(get(&["node", &node.name])?["status"][field]
            .to_string()
            .contains(&unique))
    };
    ensure!(lists("volumesInUse")? && lists("volumesAttached")?);

    // --- an agent that is killed finds what it had mounted ---
    let pid = node.agent.kill()?;
    until(SOON, "the next agent", || Ok(node.agent.runs_again(pid)))?;
    until(SOON, "the file in the pod", || {
        let said = namespace.try_run(&["exec", "user", "--", "cat", "/data/file"])?;
        Ok(said.success && said.stdout == "kept\n")
    })?;
    let restarts = "{.status.containerStatuses[0].restartCount}";
    let restarts = namespace.field(&["pod", "user"], restarts)?;
    ensure!(
        restarts == "0",
        "the container was restarted {restarts} times"
    );
    namespace.run(&["delete", "pod", "user", "--timeout=60s"])?;
    ensure!(driver.count("unpublish disk-1") == 1, "{:?}", driver.told());
    until(SOON, "the volume to be free", || {
        Ok(!lists("volumesInUse")?)
    })?;
    ensure!(driver.count("unstage disk-1") == 1, "{:?}", driver.told());
    until(SOON, "the volume to be detached", || {
        Ok(attachment()?.is_none())
    })?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let left = table
        .lines()
        .find(|line| line.contains(&volume) || line.contains(&name));
    ensure!(left.is_none(), "{left:?}");

    drop(driver);
    until(SOON, "the driver to be forgotten", || {
        let object = get(&["csinode", &node.name]).context("the CSINode")?;
        Ok(!object["spec"].to_string().contains(&name))
    })?;
    fs::remove_dir_all(&disks)?;
    Ok(())
}
