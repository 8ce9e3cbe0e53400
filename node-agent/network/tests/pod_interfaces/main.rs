//! Pods' interfaces in real network namespaces: one plays the node, others the pods. Needs root.
//!
//! A namespace here belongs to a parked thread and is named by its path under `/proc`, so that nothing is
//! mounted and nothing is left when a test is killed.

mod adoption;
mod settings;
mod storm;
mod world;

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use windlass_cni::{CniError, Invocation};
use windlass_network::interface::host_interface;
use windlass_network::{CniService, PodName, socket};

use world::*;

#[tokio::test(flavor = "multi_thread")]
async fn pods_and_node_reach_each_other_and_nothing_is_left_after_del() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let (a, b) = (Netns::new(), Netns::new());
    *node.datapath.pod_netns.lock() = Some(a.path.clone());
    let first = add(&attachments, "aaa", &a).await;
    *node.datapath.pod_netns.lock() = None;
    let second = add(&attachments, "bbb", &b).await;
    let (address_a, address_b) = (first.link.addresses[0], second.link.addresses[0]);
    assert_ne!(address_a, address_b);
    assert_eq!(first.link.mtu, 1400, "the uplink's");

    reaches(&node.netns, &a, address_a).await;
    reaches(&a, &node.netns, NODE.into()).await;
    reaches(&a, &b, address_b).await;
    reaches(&b, &a, address_a).await;
    reaches(&a, &a, Ipv4Addr::LOCALHOST.into()).await;

    let subscribed = attachments.subscribe();
    assert_eq!(subscribed.borrow().len(), 2);
    attachments.del(&key("aaa")).await.expect("del");
    attachments.del(&key("aaa")).await.expect("del again");
    attachments
        .del(&key("never-seen"))
        .await
        .expect("del of an unknown one");
    assert_eq!(
        subscribed.borrow().keys().collect::<Vec<_>>(),
        [&key("bbb")]
    );
    assert_eq!(
        node.pod_links().await,
        std::slice::from_ref(&second.link.host_name)
    );
    assert!(a.open().await.link("eth0").await.expect("look").is_none());
    assert_eq!(
        node.datapath
            .attached
            .lock()
            .keys()
            .copied()
            .collect::<Vec<_>>(),
        [second.index]
    );
    reaches(&node.netns, &b, address_b).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_a_dual_stack_node_have_an_address_of_each_family() {
    let node = Node::new().await;
    node.netns
        .ip("address add fd00:99::1/64 dev up0 nodad")
        .await;
    let attachments = node.start().await;
    let cidrs = ["10.77.0.0/24", "fd00:77::/64"].map(|cidr| cidr.parse().expect("a CIDR"));
    attachments.set_pod_cidrs(&cidrs).expect("has room");
    let (a, b) = (Netns::new(), Netns::new());
    let first = add(&attachments, "aaa", &a).await;
    let second = add(&attachments, "bbb", &b).await;
    for address in second.link.addresses {
        reaches(&a, &b, address).await;
        reaches(&node.netns, &b, address).await;
    }
    assert!(first.link.addresses[1].is_ipv6());
    reaches(&b, &node.netns, "fd00:99::1".parse().expect("an address")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn add_repeated_is_the_same_add() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let pod = Netns::new();
    let first = add(&attachments, "aaa", &pod).await;
    assert_eq!(add(&attachments, "aaa", &pod).await, first);
    // As after a crash in the middle: the lease is there, of the interface only a part.
    pod.ip("link set eth0 down").await;
    let mended = add(&attachments, "aaa", &pod).await;
    assert_eq!(mended.link, first.link);
    assert_eq!(node.pod_links().await.len(), 1);
    reaches(&node.netns, &pod, first.link.addresses[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_adopts_what_runs_and_releases_what_is_gone() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let (lives, dies) = (Netns::new(), Netns::new());
    let lived = add(&attachments, "lives", &lives).await;
    let died = add(&attachments, "dies", &dies).await;
    drop(attachments);
    node.datapath.attached.lock().clear();
    drop(dies);
    // The kernel dismantles a namespace in the background.
    let host = node.netns.open().await;
    while host
        .link(&died.link.host_name)
        .await
        .expect("look")
        .is_some()
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let attachments = node.start().await;
    let now = attachments.subscribe().borrow().clone();
    assert_eq!(now.keys().collect::<Vec<_>>(), [&key("lives")]);
    assert_eq!(now[&key("lives")], lived);
    assert!(
        node.datapath.attached.lock().contains_key(&lived.index),
        "is attached again"
    );
    assert_eq!(add(&attachments, "lives", &lives).await, lived);
    let other = Netns::new();
    let next = add(&attachments, "next", &other).await;
    assert_ne!(
        next.link.addresses, died.link.addresses,
        "it was in use a moment ago"
    );
    reaches(&other, &lives, lived.link.addresses[0]).await;
    attachments
        .del(&key("dies"))
        .await
        .expect("the late DEL of the lost one");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_the_state_folder_gives_no_address_twice() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let pod = Netns::new();
    let first = add(&attachments, "aaa", &pod).await;
    drop(attachments);
    std::fs::remove_dir_all(node.state.path()).expect("remove");
    let attachments = node.start().await;
    let other = Netns::new();
    let second = add(&attachments, "bbb", &other).await;
    assert_ne!(first.link.addresses, second.link.addresses);
    reaches(&other, &pod, first.link.addresses[0]).await;
    attachments.del(&key("aaa")).await.expect("del");
    assert_eq!(node.pod_links().await, [second.link.host_name]);
}

#[tokio::test(flavor = "multi_thread")]
async fn gc_removes_all_but_what_is_valid() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let pods = [Netns::new(), Netns::new(), Netns::new()];
    for (pod, id) in pods.iter().zip(["a1", "a2", "a3"]) {
        add(&attachments, id, pod).await;
    }
    assert_eq!(
        attachments
            .gc(&[key("a2"), key("unknown")])
            .await
            .expect("gc"),
        2
    );
    assert_eq!(node.pod_links().await, [host_interface(&key("a2"))]);
    // Once more: there is nothing left to do.
    assert_eq!(attachments.gc(&[key("a2")]).await.expect("gc"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_add_leaves_nothing() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let pod = Netns::new();
    node.datapath.refuses.store(true, Ordering::Relaxed);
    let refused = attachments
        .add(key("aaa"), &pod.path, PodName::default())
        .await;
    let error = refused.expect_err("the datapath refuses").to_string();
    assert!(error.contains("no room for another program"), "{error}");
    assert_eq!(node.pod_links().await, [""; 0]);
    assert!(pod.open().await.link("eth0").await.expect("look").is_none());
    assert!(attachments.subscribe().borrow().is_empty());

    let missing = Path::new("/run/netns/does-not-exist");
    let refused = attachments
        .add(key("bbb"), missing, PodName::default())
        .await;
    let error = refused.expect_err("there is no such namespace").to_string();
    assert!(error.contains("does-not-exist"), "{error}");

    node.datapath.refuses.store(false, Ordering::Relaxed);
    let made = add(&attachments, "aaa", &pod).await;
    reaches(&node.netns, &pod, made.link.addresses[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_comes_up_only_once_it_is_admitted() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let pod = Netns::new();
    node.datapath
        .refuses_admission
        .store(true, Ordering::Relaxed);
    let refused = attachments
        .add(key("aaa"), &pod.path, PodName::default())
        .await;
    let error = refused.expect_err("its policies are not there").to_string();
    assert!(error.contains("not known yet"), "{error}");
    assert_eq!(node.pod_links().await, [""; 0]);

    node.datapath
        .refuses_admission
        .store(false, Ordering::Relaxed);
    let made = add(&attachments, "aaa", &pod).await;
    assert_eq!(node.datapath.admissions.load(Ordering::Relaxed), 1);
    reaches(&node.netns, &pod, made.link.addresses[0]).await;
}

/// The plugin as a runtime calls it, over the agent's socket.
async fn plugin(socket: &Path, command: &str, id: &str, netns: &Path, extra: &str) -> PluginResult {
    let config = format!(
        r#"{{"cniVersion":"1.0.0","name":"windlass","type":"windlass-cni","socket":{socket:?}{extra}}}"#
    );
    let variable = |name: &str| match name {
        "CNI_COMMAND" => Some(command.to_owned()),
        "CNI_CONTAINERID" => Some(id.to_owned()),
        "CNI_NETNS" => netns.to_str().map(str::to_owned),
        "CNI_IFNAME" => Some("eth0".to_owned()),
        "CNI_ARGS" => Some("K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_UID=u1".to_owned()),
        _ => None,
    };
    let invocation = Invocation::from_environment(variable, config.into_bytes())?;
    windlass_cni::run(&invocation).await
}

type PluginResult = Result<Option<serde_json::Value>, CniError>;

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_speaks_every_verb_through_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new().await;
    let path = node.state.path().join("agent.sock");
    let pod = Netns::new();

    let error = plugin(&path, "ADD", "aaa", &pod.path, "")
        .await
        .expect_err("no agent yet");
    assert_eq!(error.code, 11, "{error}");
    let error = plugin(&path, "STATUS", "", &pod.path, "")
        .await
        .expect_err("no agent yet");
    assert_eq!(error.code, 50, "{error}");

    let attachments = node.start().await;
    let listener = socket::bind(&path).await.expect("bind");
    let mode = std::fs::metadata(&path)
        .expect("socket")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let routes = tonic::service::Routes::new(CniService::server(attachments.clone()));
    let server = tokio::spawn(socket::serve(listener, routes, std::future::pending()));
    let taken = socket::bind(&path).await.expect_err("one agent serves it");
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);

    assert_eq!(plugin(&path, "STATUS", "", &pod.path, "").await, Ok(None));
    let result = plugin(&path, "ADD", "aaa", &pod.path, "")
        .await
        .expect("add")
        .expect("a result");
    assert_eq!(result["ips"][0]["address"], "10.77.0.2/32");
    assert_eq!(result["ips"][0]["gateway"], "169.254.1.1");
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    let interfaces = attachments.subscribe().borrow().clone();
    let pod_name = PodName {
        namespace: "shop".into(),
        name: "web-0".into(),
        uid: "u1".into(),
    };
    assert_eq!(interfaces[&key("aaa")].pod, pod_name);

    let previous = format!(r#","prevResult":{result}"#);
    assert_eq!(
        plugin(&path, "CHECK", "aaa", &pod.path, &previous).await,
        Ok(None)
    );
    pod.ip("address flush dev eth0").await;
    let error = plugin(&path, "CHECK", "aaa", &pod.path, &previous)
        .await
        .expect_err("differs");
    assert!(error.message.contains("lost 10.77.0.2"), "{error}");
    let unknown = plugin(&path, "CHECK", "bbb", &pod.path, "")
        .await
        .expect_err("unknown");
    assert_eq!(unknown.code, 3);

    let gc = plugin(&path, "GC", "", &pod.path, "")
        .await
        .expect_err("lists nothing");
    assert_eq!(gc.code, 7);
    let valid = r#","cni.dev/valid-attachments":[{"containerID":"aaa","ifname":"eth0"}]"#;
    assert_eq!(plugin(&path, "GC", "", &pod.path, valid).await, Ok(None));
    assert_eq!(node.pod_links().await.len(), 1);

    assert_eq!(plugin(&path, "DEL", "aaa", &pod.path, "").await, Ok(None));
    assert_eq!(plugin(&path, "DEL", "aaa", &pod.path, "").await, Ok(None));
    assert_eq!(node.pod_links().await, [""; 0]);
    server.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn many_adds_at_once_get_distinct_addresses() {
    const PODS: usize = 24;
    let node = Node::new().await;
    let attachments = node.start().await;
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new()).collect();
    let start = Instant::now();
    let adds = pods.iter().enumerate().map(|(n, pod)| {
        let attachments = &attachments;
        async move {
            let start = Instant::now();
            let made = add(attachments, &format!("c{n}"), pod).await;
            (made.link.addresses[0], start.elapsed())
        }
    });
    let made = futures::future::join_all(adds).await;
    let total = start.elapsed();
    let mut addresses: Vec<IpAddr> = made.iter().map(|(address, _)| *address).collect();
    addresses.sort();
    addresses.dedup();
    assert_eq!(addresses.len(), PODS);
    let lone = Netns::new();
    let start = Instant::now();
    add(&attachments, "lone", &lone).await;
    let alone = start.elapsed();
    println!("{PODS} at once: {total:?}; one alone: {alone:?}");
}
