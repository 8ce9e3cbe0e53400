//! kube-rs.

use anyhow::{Context, Result, ensure};
use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, EvictParams, LogParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Api, Client, Config, ResourceExt};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use windlass_tests::cluster::{self, Cluster};
use windlass_tests::namespace::Namespace;

const IMAGE: &str = "windlass.dev/busybox:dev";

#[tokio::test]
async fn pods_answer_kube_rs() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("kube-rs")?;
    let kubeconfig = Kubeconfig::read_from(cluster::kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let pods: Api<Pod> = Api::namespaced(Client::try_from(config)?, namespace.name());
    commands(&pods).await?;
    logs_and_attach(&pods).await?;
    ports(&pods).await?;
    changes(&pods).await
}

async fn started(pods: &Api<Pod>, name: &str, command: &str, stdin: bool) -> Result<()> {
    let pod = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "stdin": stdin,
            "command": ["sh", "-c", command], "resources": {"requests": {"cpu": "10m"}},
        }]},
    }))?;
    pods.create(&PostParams::default(), &pod).await?;
    await_condition(pods.clone(), name, conditions::is_pod_running()).await?;
    Ok(())
}

async fn commands(pods: &Api<Pod>) -> Result<()> {
    started(pods, "shell", "exec sleep 100000", false).await?;
    let ask = AttachParams::default().stderr(false);
    let mut counting = pods.exec("shell", ["seq", "1", "3"], &ask).await?;
    let mut out = String::new();
    let mut stdout = counting.stdout().context("standard output")?;
    stdout.read_to_string(&mut out).await?;
    counting.join().await?;
    ensure!(out == "1\n2\n3\n", "{out}");

    // The end of its input is told to a command, and what it says after that is heard.
    let ask = AttachParams::default().stdin(true).stderr(false);
    let mut sorting = pods.exec("shell", ["sort"], &ask).await?;
    let mut stdin = sorting.stdin().context("standard input")?;
    let mut stdout = sorting.stdout().context("standard output")?;
    let status = sorting.take_status().context("a status")?;
    stdin.write_all(b"b\na\n").await?;
    stdin.shutdown().await?;
    let mut out = String::new();
    stdout.read_to_string(&mut out).await?;
    ensure!(out == "a\nb\n", "{out}");
    let status = status.await.context("the status")?;
    ensure!(status.status.as_deref() == Some("Success"), "{status:?}");

    let mut failing = pods
        .exec("shell", ["false"], &AttachParams::default())
        .await?;
    let status = failing.take_status().context("a status")?.await;
    let reason = status.and_then(|status| status.reason);
    ensure!(reason.as_deref() == Some("NonZeroExitCode"), "{reason:?}");
    Ok(())
}

async fn logs_and_attach(pods: &Api<Pod>) -> Result<()> {
    let repeat = "echo hello; while read line; do echo said $line; done";
    started(pods, "talker", repeat, true).await?;
    let follow = LogParams {
        follow: true,
        ..LogParams::default()
    };
    let mut lines = pods.log_stream("talker", &follow).await?.lines();
    ensure!(lines.try_next().await?.as_deref() == Some("hello"));
    let ask = AttachParams::default().stdin(true).stderr(false);
    let mut attached = pods.attach("talker", &ask).await?;
    let mut stdin = attached.stdin().context("standard input")?;
    let stdout = attached.stdout().context("standard output")?;
    stdin.write_all(b"yes\n").await?;
    let mut heard = tokio_util::io::ReaderStream::new(stdout);
    let first = heard.next().await.context("an answer")??;
    ensure!(first == "said yes\n", "{first:?}");
    ensure!(lines.try_next().await?.as_deref() == Some("said yes"));
    attached.abort();
    Ok(())
}

async fn ports(pods: &Api<Pod>) -> Result<()> {
    started(pods, "ports", "exec nc -ll -p 1234 -e cat", false).await?;
    // Nobody says when it listens; a refused connection says that it does not.
    let mut tries = 0;
    loop {
        let mut forward = pods.portforward("ports", &[1234]).await?;
        let mut stream = forward.take_stream(1234).context("a stream")?;
        stream.write_all(b"there and back").await.ok();
        let mut got = [0; 14];
        match stream.read_exact(&mut got).await {
            Ok(_) => {
                ensure!(&got == b"there and back");
                drop(stream);
                forward.join().await?;
                return Ok(());
            }
            Err(error) => ensure!(tries < 100, "{error}"),
        }
        tries += 1;
    }
}

async fn changes(pods: &Api<Pod>) -> Result<()> {
    let ways = PatchParams::default();
    let resize = Patch::Strategic(json!({"spec": {"containers": [
        {"name": "main", "resources": {"requests": {"cpu": "20m"}}},
    ]}}));
    let resized = pods.patch_resize("shell", &ways, &resize).await?;
    ensure!(resized.metadata.generation == Some(2));
    let debugger = Patch::Strategic(json!({"spec": {"ephemeralContainers": [
        {"name": "debugger", "image": IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["echo", "look"]},
    ]}}));
    pods.patch_ephemeral_containers("shell", &ways, &debugger)
        .await?;
    let is_over = |pod: Option<&Pod>| {
        let statuses =
            pod.and_then(|pod| pod.status.as_ref()?.ephemeral_container_statuses.as_ref());
        statuses.is_some_and(|all| {
            all.iter().any(|one| {
                one.state
                    .as_ref()
                    .is_some_and(|state| state.terminated.is_some())
            })
        })
    };
    await_condition(pods.clone(), "shell", is_over).await?;
    let of_it = LogParams {
        container: Some("debugger".to_owned()),
        ..LogParams::default()
    };
    ensure!(pods.logs("shell", &of_it).await? == "look\n");
    let uid = pods.get("shell").await?.uid().context("a uid")?;
    let evicted = pods.evict("shell", &EvictParams::default()).await?;
    ensure!(evicted.code == 201 && evicted.is_success());
    await_condition(pods.clone(), "shell", conditions::is_deleted(&uid)).await?;
    Ok(())
}
