//! Devices that pods claim, of a driver that is a program of its own.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use windlass_proto::dra::dra_plugin_server::{DraPlugin, DraPluginServer};
use windlass_proto::dra::{
    Device, NodePrepareResourceResponse, NodePrepareResourcesRequest, NodePrepareResourcesResponse,
    NodeUnprepareResourceResponse, NodeUnprepareResourcesRequest, NodeUnprepareResourcesResponse,
};
use windlass_tests::plugin::Plugin;

use crate::node::{Node, eventually, is_ready, sh};

const NAME: &str = "dra.windlass.test";

/// Makes devices ready by writing it down.
#[derive(Default)]
struct Driver {
    calls: Mutex<Vec<String>>,
    cdi: Vec<String>,
}

#[tonic::async_trait]
impl DraPlugin for Driver {
    async fn node_prepare_resources(
        &self,
        request: Request<NodePrepareResourcesRequest>,
    ) -> Result<Response<NodePrepareResourcesResponse>, Status> {
        let mut answer = NodePrepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls
                .lock()
                .unwrap()
                .push(format!("prepare {}", claim.name));
            let device = Device {
                pool_name: "n1".into(),
                device_name: "d0".into(),
                cdi_device_ids: self.cdi.clone(),
                ..Device::default()
            };
            let told = NodePrepareResourceResponse {
                devices: vec![device],
                error: String::new(),
            };
            answer.claims.insert(claim.uid, told);
        }
        Ok(Response::new(answer))
    }

    async fn node_unprepare_resources(
        &self,
        request: Request<NodeUnprepareResourcesRequest>,
    ) -> Result<Response<NodeUnprepareResourcesResponse>, Status> {
        let mut answer = NodeUnprepareResourcesResponse::default();
        for claim in request.into_inner().claims {
            self.calls
                .lock()
                .unwrap()
                .push(format!("unprepare {}", claim.name));
            let told = NodeUnprepareResourceResponse::default();
            answer.claims.insert(claim.uid, told);
        }
        Ok(Response::new(answer))
    }
}

fn start(node: &Node, cdi: &[&str]) -> (Arc<Driver>, Plugin) {
    let driver = Arc::new(Driver {
        cdi: cdi.iter().map(|&id| id.into()).collect(),
        ..Driver::default()
    });
    let routes = Routes::new(DraPluginServer::from_arc(driver.clone()));
    let root = node.config().root_dir;
    let plugin = Plugin::start(&root, "DRAPlugin", NAME, "v1.DRAPlugin", routes).unwrap();
    (driver, plugin)
}

/// A pod with a claim that has a device and is kept for the pod.
fn create(node: &Node, name: &str) {
    node.create(
        name,
        json!({"terminationGracePeriodSeconds": 1,
            "resourceClaims": [{"name": "gpu", "resourceClaimName": format!("claim-of-{name}")}],
            "containers": [{"name": "c", "command": sh("sleep 100000"),
                "resources": {"claims": [{"name": "gpu"}]}}]}),
    );
    let uid = node.api.get("pods", name).unwrap()["metadata"]["uid"].clone();
    node.api.put(
        "resourceclaims",
        json!({"apiVersion": "resource.k8s.io/v1", "kind": "ResourceClaim",
            "metadata": {"name": format!("claim-of-{name}"), "namespace": "default"}, "spec": {},
            "status": {"reservedFor": [{"resource": "pods", "name": name, "uid": uid}],
                "allocation": {"devices": {"results": [
                    {"request": "r", "driver": NAME, "pool": "n1", "device": "d0"}]}}}}),
    );
}

async fn told(node: &Node, name: &str, what: &str) {
    let told = eventually(async || node.events(name).iter().any(|event| event.contains(what)));
    assert!(told.await, "{what}: {:#?}", node.events(name));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_starts_when_its_devices_are_ready_and_gives_them_back() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.api.put(
        "nodes",
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}, "status": {}}),
    );
    create(&node, "user");
    told(&node, "user", "FailedPrepareDynamicResources").await;
    told(
        &node,
        "user",
        "DRA driver dra.windlass.test is not registered",
    )
    .await;
    let (driver, plugin) = start(&node, &[]);
    node.wait("user", "runs", is_ready).await;
    assert_eq!(plugin.registered(), Some(Ok(())));
    assert_eq!(*driver.calls.lock().unwrap(), ["prepare claim-of-user"]);

    // --- an agent that restarts knows what is to be given back ---
    node.stop_agent().await;
    node.start_agent();
    node.delete("user").await;
    let calls = driver.calls.lock().unwrap().clone();
    assert_eq!(calls.last().unwrap(), "unprepare claim-of-user");
    drop(plugin);

    // --- a runtime that cannot hand devices over must not run the pod without ---
    let version = node
        .containerd
        .runtime
        .version()
        .await
        .unwrap()
        .runtime_version;
    if version.trim_start_matches('v').starts_with("1.6.") {
        let (_driver, _plugin) = start(&node, &["vendor.example/gpu=0"]);
        create(&node, "bare");
        told(&node, "bare", "cannot give devices to containers (CDI)").await;
        let ran =
            |pod: &Value| pod["status"]["containerStatuses"][0]["state"]["running"].is_object();
        assert!(!ran(&node.api.get("pods", "bare").unwrap()));
        node.delete("bare").await;
    }
    node.end().await;
}
