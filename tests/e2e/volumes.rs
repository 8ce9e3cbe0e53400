//! Configuration reaches a container as files and as environment.

use anyhow::{Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::namespace::Namespace;

#[test]
fn config_maps_secrets_and_empty_dirs_reach_the_container() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("volumes")?;
    namespace.run(&[
        "create",
        "configmap",
        "settings",
        "--from-literal=color=green",
    ])?;
    namespace.run(&[
        "create",
        "secret",
        "generic",
        "password",
        "--from-literal=word=open sesame",
    ])?;
    namespace.apply(
        r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "reader"},
            "spec": {"terminationGracePeriodSeconds": 0,
                "containers": [{"name": "main", "image": "windlass.dev/busybox:dev",
                    "imagePullPolicy": "IfNotPresent", "command": ["sleep", "100000"],
                    "env": [
                        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "color"}}},
                        {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "password", "key": "word"}}},
                        {"name": "MY_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                    "volumeMounts": [
                        {"name": "settings", "mountPath": "/settings"},
                        {"name": "password", "mountPath": "/password"},
                        {"name": "scratch", "mountPath": "/scratch"}]}],
                "volumes": [
                    {"name": "settings", "configMap": {"name": "settings"}},
                    {"name": "password", "secret": {"secretName": "password"}},
                    {"name": "scratch", "emptyDir": {}}]}}"#,
    )?;
    namespace.wait_ready("reader")?;
    let script = "cat /settings/color; echo; cat /password/word; echo; echo $COLOR $WORD; \
                  echo kept > /scratch/file && cat /scratch/file; echo $MY_IP";
    let said = namespace.run(&["exec", "reader", "--", "sh", "-c", script])?;
    let ip = namespace.field(&["pod", "reader"], "{.status.podIP}")?;
    let expected = format!("green\nopen sesame\ngreen open sesame\nkept\n{ip}\n");
    ensure!(said == expected, "{said}");
    Ok(())
}
