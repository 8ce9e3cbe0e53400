//! A client that floods: it waits behind itself, and nodes, leases and others do not notice.

use std::sync::Arc;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::json;
use windlass_apiserver::authn::UserInfo;

use crate::server::*;

/// More than there are seats in all levels together.
const REQUESTS: usize = 900;

/// The sum of a gauge over its series.
fn value(metrics: &str, series: &str) -> u64 {
    let lines = metrics.lines().filter(|line| line.starts_with(series));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_starves_neither_nodes_nor_leases() {
    let server = Arc::new(Server::start().await);
    let users = ["flood", "system:kube-scheduler", "system:node:n"];
    let resources = ["configmaps", "leases", "nodes"];
    server
        .allow(&users, &["", "coordination.k8s.io"], &resources)
        .await;
    server
        .post("/api/v1/nodes", &json!({"metadata": {"name": "n"}}))
        .await
        .ok();

    // Bodies that do not come: each such request keeps its seat for as long as it may.
    let flooding = {
        let server = server.clone();
        tokio::spawn(async move {
            let mut waiting: FuturesUnordered<_> = (0..REQUESTS)
                .map(|_| {
                    let flood = Some(UserInfo::new("flood", &["system:authenticated"]));
                    let request =
                        Request::post(CONFIG_MAPS).header("content-type", "application/json");
                    let silent = http_body_util::StreamBody::new(futures::stream::pending());
                    server.attempt(flood, request, silent.boxed_unsync())
                })
                .collect();
            while let Some(answer) = waiting.next().await {
                let code = answer.status().as_u16();
                assert_eq!(code, 429, "who is not worked on is told to come again");
            }
        })
    };
    let level = "{priority_level=\"global-default\"}";
    let is_flooded = |metrics: &Answer| {
        let metrics = String::from_utf8_lossy(&metrics.body);
        let count = |what: &str| {
            let series = format!("apiserver_flowcontrol_{what}{level}");
            value(&metrics, &series)
        };
        count("current_executing_requests") >= count("nominal_limit_seats")
            && count("current_inqueue_requests") > 0
    };
    server.until("/metrics", is_flooded).await;

    let node = || {
        Some(UserInfo::new(
            "system:node:n",
            &["system:nodes", "system:authenticated"],
        ))
    };
    let scheduler = || {
        Some(UserInfo::new(
            "system:kube-scheduler",
            &["system:authenticated"],
        ))
    };
    let lease = |name: &str| {
        json!({"metadata": {"name": name}, "spec": {"holderIdentity": "me"}}).to_string()
    };
    let leases =
        |namespace: &str| format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases");
    for turn in 0..20 {
        let beat = Request::get("/api/v1/nodes/n");
        server.send_as(node(), beat, "").await.ok();
        let election =
            Request::post(leases("kube-system")).header("content-type", "application/json");
        let name = format!("elected-{turn}");
        server
            .send_as(scheduler(), election, lease(&name))
            .await
            .ok();
    }
    let own = Request::post(leases("kube-node-lease")).header("content-type", "application/json");
    server.send_as(node(), own, lease("n")).await.ok();
    assert!(!flooding.is_finished(), "the flood lasted as long as that");
    flooding.abort();
}
