//! Pods that are created and bound: the API server, the scheduler and the store together, as a rollout sees them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::connection::Connection;
use super::creates::{self, PODS};
use super::report::Schedule;
use super::server::ApiServer;

const NODES: &str = "/api/v1/nodes";
const WAITING: &str = "/api/v1/namespaces/default/pods?fieldSelector=spec.nodeName%3D&limit=1";
const PATIENCE: Duration = Duration::from_secs(300);
/// Nodes and pods are spread over so many zones, and pods belong to so many applications.
const ZONES: usize = 10;
const APPLICATIONS: usize = 50;

/// What pods ask of a node.
#[derive(Clone, Copy)]
enum Wish {
    Room,
    /// PodTopologySpread over zones.
    Spread,
    /// Anti-affinity to their application's other pods.
    Apart,
}

impl Wish {
    /// With what their pods are called, and how a report says it.
    const ALL: [(Self, &str, &str); 3] = [
        (Self::Room, "room", "anywhere"),
        (Self::Spread, "spread", "spread over zones"),
        (Self::Apart, "apart", "apart from their like"),
    ];
}

/// So many pods of each kind in turn onto so many nodes, which fill.
pub async fn run(server: &ApiServer, nodes: usize, pods: usize) -> Result<Vec<Schedule>> {
    creates::all(server, NODES, 0..nodes, node).await?;
    let mut schedules = Vec::new();
    for (wish, name, told) in Wish::ALL {
        let begun = Instant::now();
        creates::all(server, PODS, 0..pods, move |number| pod(wish, name, number)).await?;
        all_bound(server).await?;
        schedules.push(Schedule {
            wish: told,
            nodes,
            pods,
            seconds: begun.elapsed().as_secs_f64(),
        });
    }
    Ok(schedules)
}

async fn all_bound(server: &ApiServer) -> Result<()> {
    #[derive(Deserialize)]
    struct Waiting {
        items: Vec<Value>,
    }
    let mut connection = Connection::open(&server.endpoint).await?;
    let begun = Instant::now();
    loop {
        let waiting: Waiting = serde_json::from_slice(&connection.get(WAITING).await?)?;
        let Some(first) = waiting.items.first() else {
            return Ok(());
        };
        ensure!(
            begun.elapsed() < PATIENCE,
            "a pod is not bound: {}",
            first["status"]
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn node(number: usize) -> Value {
    let name = format!("node-{number}");
    let room = json!({ "cpu": "64", "memory": "256Gi", "pods": "110" });
    json!({
        "metadata": {
            "labels": {
                "kubernetes.io/hostname": name,
                "topology.kubernetes.io/zone": format!("zone-{}", number % ZONES),
            },
            "name": name,
        },
        "status": { "capacity": room, "allocatable": room },
    })
}

/// Tolerates everything: nobody says that these nodes are ready.
fn pod(wish: Wish, kind: &str, number: usize) -> Value {
    let application = json!({ "app": format!("{kind}-{}", number % APPLICATIONS) });
    let mut spec = json!({
        "tolerations": [{ "operator": "Exists" }],
        "automountServiceAccountToken": false,
        "containers": [{
            "name": "main",
            "image": "example.test/library/server:1.2.3",
            "resources": { "requests": { "cpu": "100m", "memory": "64Mi" } },
        }],
    });
    let selector = json!({ "matchLabels": application });
    match wish {
        Wish::Room => {}
        Wish::Spread => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1,
                "topologyKey": "topology.kubernetes.io/zone",
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": selector,
            }]);
        }
        Wish::Apart => {
            spec["affinity"] = json!({ "podAntiAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [
                { "topologyKey": "kubernetes.io/hostname", "labelSelector": selector },
            ] } });
        }
    }
    json!({
        "metadata": { "name": format!("{kind}-{number}"), "labels": application },
        "spec": spec,
    })
}
