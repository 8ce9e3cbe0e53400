//! What a user asks of the cluster in the first five minutes, and what the answers must hold.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use windlass_tests::cluster::Cluster;
use windlass_tests::eventually::until;
use windlass_tests::http;
use windlass_tests::kubectl::kubectl;
use windlass_tests::namespace::Namespace;
use windlass_tests::web::{MANIFEST, Web};

#[test]
fn get_nodes_shows_one_that_is_ready() -> Result<()> {
    let cluster = Cluster::shared()?;
    let wide = kubectl(&["get", "nodes", "-o", "wide"])?;
    let header = columns(&wide, 0)?;
    ensure!(header.starts_with(&["NAME", "STATUS", "ROLES", "AGE", "VERSION", "INTERNAL-IP"]));
    let node = columns(&wide, 1)?;
    ensure!(node[1] == "Ready", "{wide}");
    ensure!(node[5] == cluster.node_ip()?.to_string(), "{wide}");
    ensure!(wide.contains("containerd://"), "{wide}");
    Ok(())
}

/// Clients of Go that give a node a resource patch its status with a whole object, whose other fields are empty.
#[test]
fn a_node_says_again_what_somebody_wrote_over() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let version = "jsonpath={.items[0].metadata.name} {.items[0].status.nodeInfo.kubeletVersion}";
    let before = kubectl(&["get", "nodes", "-o", version])?;
    let (node, _) = before.split_once(' ').context("a name and a version")?;
    let patch = r#"{"status": {"nodeInfo": {"kubeletVersion": ""}}}"#;
    kubectl(&["patch", "node", node, "--subresource=status", "-p", patch])?;
    until(
        Duration::from_secs(60),
        "the version to be there again",
        || Ok(kubectl(&["get", "nodes", "-o", version])? == before),
    )
}

#[test]
fn get_pods_shows_where_each_runs() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("get")?;
    let web = Web::deploy(&namespace)?;
    let wide = namespace.run(&["get", "pods", "-o", "wide"])?;
    let header = columns(&wide, 0)?;
    ensure!(
        header.starts_with(&["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]),
        "{wide}"
    );
    ensure!(wide.lines().count() == 4, "{wide}");
    for row in 1..4 {
        let pod = columns(&wide, row)?;
        ensure!(pod[1..4] == ["1/1", "Running", "0"], "{wide}");
        ensure!(
            web.pod_address(pod[0])?.ip().to_string() == pod[5],
            "{wide}"
        );
    }
    Ok(())
}

#[test]
fn get_shows_the_service_and_its_endpoints() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("svc")?;
    let web = Web::deploy(&namespace)?;
    let both = namespace.run(&["get", "svc,endpointslices"])?;
    let service = row(&both, "service/web")?;
    ensure!(service[1] == "NodePort", "{both}");
    ensure!(
        service[2] == web.cluster_address()?.ip().to_string(),
        "{both}"
    );
    ensure!(
        service[4].starts_with("80:3") && service[4].ends_with("/TCP"),
        "{both}"
    );
    let slice = row(&both, "endpointslice.discovery.k8s.io/web-")?;
    ensure!(slice[1..3] == ["IPv4", "8080"], "{both}");
    for pod in web.pods()? {
        let ip = web.pod_address(&pod)?.ip().to_string();
        ensure!(
            slice[3].split(',').any(|shown| shown == ip),
            "{ip} is missing: {both}"
        );
    }
    Ok(())
}

#[test]
fn describe_tells_the_deployments_story() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("describe")?;
    let web = Web::deploy(&namespace)?;
    let deployment = namespace.run(&["describe", "deployment", "web"])?;
    for part in [
        "3 desired | 3 updated | 3 total | 3 available | 0 unavailable",
        "RollingUpdateStrategy:  25% max unavailable, 25% max surge",
        "ScalingReplicaSet",
        "Available",
        "MinimumReplicasAvailable",
        "windlass.dev/echo:dev",
    ] {
        ensure!(
            deployment.contains(part),
            "`{part}` is missing:\n{deployment}"
        );
    }
    let pod = web.pods()?.pop_first().context("a pod")?;
    let pod = namespace.run(&["describe", "pod", &pod])?;
    for part in [
        "Scheduled",
        "Created",
        "Started",
        "Controlled By:  ReplicaSet/web-",
        "QoS Class:",
    ] {
        ensure!(pod.contains(part), "`{part}` is missing:\n{pod}");
    }
    Ok(())
}

#[test]
fn logs_come_from_the_container() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("logs")?;
    namespace.apply(&pod_that_prints())?;
    namespace.run(&[
        "wait",
        "--for=jsonpath={.status.phase}=Succeeded",
        "--timeout=60s",
        "pod/printer",
    ])?;
    ensure!(namespace.run(&["logs", "printer"])? == "one\ntwo\nthree\n");
    ensure!(namespace.run(&["logs", "printer", "--tail=1"])? == "three\n");
    ensure!(namespace.run(&["logs", "printer", "-f"])? == "one\ntwo\nthree\n");
    let stamped = namespace.run(&["logs", "printer", "--timestamps", "--tail=1"])?;
    ensure!(
        stamped.starts_with("20") && stamped.ends_with("Z three\n"),
        "{stamped}"
    );
    Ok(())
}

#[test]
fn logs_are_followed_while_they_are_written() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("follow")?;
    namespace.start_client("client")?;
    let mut follow = windlass_tests::kubectl::command()
        .args(["-n", namespace.name(), "logs", "-f", "client"])
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = std::io::BufRead::lines(BufReader::new(
        follow.stdout.take().context("standard output")?,
    ));
    let first = lines.next().context("a line")??;
    // Process 1's standard output is the container's log.
    namespace.run(&[
        "exec",
        "client",
        "--",
        "sh",
        "-c",
        "echo later > /proc/1/fd/1",
    ])?;
    let second = lines.next().context("a second line")??;
    follow.kill()?;
    follow.wait()?;
    ensure!(
        (first.as_str(), second.as_str()) == ("ready", "later"),
        "{first}, {second}"
    );
    Ok(())
}

#[test]
fn exec_runs_a_command_and_reports_its_exit_code() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("exec")?;
    namespace.start_client("client")?;
    let hostname = namespace.run(&["exec", "client", "--", "hostname"])?;
    ensure!(hostname.trim() == "client", "{hostname}");
    let said = namespace.try_run_with_input(
        &[
            "exec",
            "-i",
            "client",
            "--",
            "sh",
            "-c",
            "tr a-z A-Z; echo problem >&2; exit 7",
        ],
        "through standard input",
    )?;
    ensure!(said.stdout == "THROUGH STANDARD INPUT", "{said:?}");
    ensure!(
        said.stderr.contains("problem") && said.stderr.contains("exit code 7"),
        "{said:?}"
    );
    ensure!(!said.success);
    Ok(())
}

#[test]
fn cp_brings_files_and_folders_there_and_back() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("cp")?;
    namespace.start_client("client")?;
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let (there, back) = (folder.join("there"), folder.join("back"));
    fs::create_dir_all(there.join("below"))?;
    // More than one frame of a stream, and no text.
    let large: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
    let files = [("large", large), ("below/small", b"words".to_vec())];
    for (name, content) in &files {
        fs::write(there.join(name), content)?;
    }
    let copies = [
        (there.display().to_string(), "client:/tmp/folder".to_owned()),
        ("client:/tmp/folder".to_owned(), back.display().to_string()),
        (
            "client:/tmp/folder/below/small".to_owned(),
            folder.join("one").display().to_string(),
        ),
    ];
    for (from, to) in &copies {
        namespace.run(&["cp", from, to])?;
    }
    let read = |path: &str| fs::read(folder.join(path)).with_context(|| format!("reading {path}"));
    for (name, content) in &files {
        ensure!(read(&format!("back/{name}"))? == *content, "{name} differs");
    }
    ensure!(read("one")? == b"words");
    Ok(())
}

#[test]
fn port_forward_leads_from_here_into_the_pod() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("forward")?;
    let web = Web::deploy(&namespace)?;
    let mut forward = windlass_tests::kubectl::command()
        .args(["-n", namespace.name(), "port-forward", "service/web", ":80"])
        .stdout(Stdio::piped())
        .spawn()?;
    // "Forwarding from 127.0.0.1:41234 -> 8080"
    let mut line = String::new();
    // Kept open until the end: kubectl reports each connection there, and dies of a closed pipe.
    let mut output = BufReader::new(forward.stdout.take().context("standard output")?);
    output.read_line(&mut line)?;
    let address = line
        .split_whitespace()
        .nth(2)
        .context("an address")?
        .parse()?;
    let answers = (0..3)
        .map(|_| http::get_text(address, "/"))
        .collect::<Result<Vec<_>>>();
    forward.kill()?;
    forward.wait()?;
    drop(output);
    let pods = web.pods()?;
    ensure!(answers?.iter().all(|name| pods.contains(name)), "{line}");
    Ok(())
}

#[test]
fn events_tell_what_happened() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("events")?;
    let _web = Web::deploy(&namespace)?;
    until(Duration::from_secs(20), "the events of a rollout", || {
        let events = namespace.run(&["get", "events"])?;
        let reasons = [
            "ScalingReplicaSet",
            "SuccessfulCreate",
            "Scheduled",
            "Pulled",
            "Created",
            "Started",
        ];
        Ok(reasons.iter().all(|reason| events.contains(reason)))
    })
}

#[test]
fn delete_by_manifest_removes_everything_it_made() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("delete")?;
    let _web = Web::deploy(&namespace)?;
    namespace.run(&["delete", "-f", MANIFEST, "--timeout=60s"])?;
    until(
        Duration::from_secs(60),
        "the pods and ReplicaSets to be gone",
        || {
            let left = namespace.get(&["deployments,replicasets,pods"])?;
            Ok(left["items"].as_array().is_some_and(Vec::is_empty))
        },
    )
}

#[test]
fn a_deleted_namespace_takes_its_content_along() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let namespace = Namespace::create("gone")?;
    let _web = Web::deploy(&namespace)?;
    kubectl(&["delete", "namespace", namespace.name(), "--timeout=90s"])?;
    let left = namespace.get(&["pods,services,deployments"])?;
    ensure!(
        left["items"].as_array().is_some_and(Vec::is_empty),
        "{left}"
    );
    Ok(())
}

#[test]
fn explain_and_api_resources_know_the_kinds() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let explained = kubectl(&["explain", "deployment.spec.replicas"])?;
    ensure!(
        explained.contains("FIELD: replicas <integer>"),
        "{explained}"
    );
    let resources = kubectl(&["api-resources"])?;
    for (name, short) in [
        ("deployments", "deploy"),
        ("services", "svc"),
        ("pods", "po"),
    ] {
        let found = resources.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some(name) && words.next() == Some(short)
        });
        ensure!(found, "{name} ({short}) is missing:\n{resources}");
    }
    Ok(())
}

fn pod_that_prints() -> String {
    r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "printer"},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "printer", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", "echo one; echo two; echo three"]}]}}"#
        .to_owned()
}

fn columns(table: &str, line: usize) -> Result<Vec<&str>> {
    let line = table
        .lines()
        .nth(line)
        .with_context(|| format!("line {line} of:\n{table}"))?;
    Ok(line.split_whitespace().collect())
}

/// The columns of the first line that begins with `start`.
fn row<'a>(table: &'a str, start: &str) -> Result<Vec<&'a str>> {
    let line = table.lines().find(|line| line.starts_with(start));
    let line = line.with_context(|| format!("no line `{start}` in:\n{table}"))?;
    Ok(line.split_whitespace().collect())
}
