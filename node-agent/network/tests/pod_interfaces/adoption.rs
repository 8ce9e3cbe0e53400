//! Pods of another CNI plugin: what it has made is taken over as it is, and what cannot be is said.

use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;
use windlass_network::{Adoption, PodName, RunningPod};

use crate::world::*;

fn pod(name: &str, address: &str) -> RunningPod {
    RunningPod {
        name: PodName {
            namespace: "default".into(),
            name: name.into(),
            uid: format!("uid-of-{name}"),
        },
        addresses: vec![address.parse().expect("an address")],
    }
}

/// The folder in which a runtime would have mounted the namespaces of these pods.
fn sandboxes(pods: &[&Netns]) -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for (index, pod) in pods.iter().enumerate() {
        symlink(&pod.path, folder.path().join(format!("cni-{index}"))).expect("a link");
    }
    std::fs::write(folder.path().join("stale"), "").expect("a file that is no namespace");
    folder
}

/// A pair of veth, the host's end by itself or at a bridge, as other plugins make them.
async fn plug(node: &Node, pod: &Netns, host_end: &'static str, address: &'static str) {
    let ip = |command: String| {
        let words: Vec<String> = command.split(' ').map(str::to_owned).collect();
        move || {
            let output = std::process::Command::new("ip").args(&words).output();
            let output = output.expect("ip");
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "ip {words:?}: {text}");
        }
    };
    let number = {
        // Of a process or thread whose namespace it is.
        let path = pod.path.to_string_lossy().into_owned();
        path.split('/').nth(4).expect("a thread").to_owned()
    };
    let make = format!("link add {host_end} type veth peer name eth0 netns {number}");
    node.netns.within(ip(make)).await;
    node.netns
        .within(ip(format!("link set {host_end} up")))
        .await;
    pod.within(ip("link set lo up".into())).await;
    pod.within(ip(format!("address add {address} dev eth0")))
        .await;
    pod.within(ip("link set eth0 up".into())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_of_another_plugin_are_taken_over_as_they_are() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let (routed, bridged, odd) = (Netns::new(), Netns::new(), Netns::new());
    for command in [
        "link add cni0 type bridge",
        "address add 10.77.0.1/24 dev cni0",
        "link set cni0 up",
    ] {
        node.netns.ip(command).await;
    }
    plug(&node, &routed, "cali0", "10.77.0.2/32").await;
    node.netns.ip("route add 10.77.0.2/32 dev cali0").await;
    plug(&node, &bridged, "veth0", "10.77.0.3/24").await;
    node.netns.ip("link set veth0 master cni0").await;
    // Something else than a pair with the node.
    odd.ip("link add eth0 type veth peer name other").await;
    odd.ip("address add 10.77.0.4/24 dev eth0").await;

    let folder = sandboxes(&[&routed, &bridged, &odd]);
    let running = [
        pod("routed", "10.77.0.2"),
        pod("bridged", "10.77.0.3"),
        pod("odd", "10.77.0.4"),
        pod("gone", "10.77.0.5"),
    ];
    let told = attachments.adopt_running(folder.path(), &running).await;
    let outcomes: Vec<(&str, &Adoption)> = told
        .iter()
        .map(|(name, adoption)| (name.name.as_str(), adoption))
        .collect();
    assert!(
        matches!(
            outcomes[..],
            [
                ("routed", Adoption::Adopted),
                ("bridged", Adoption::Adopted),
                ("odd", Adoption::Impossible(_)),
                ("gone", Adoption::NotFound),
            ]
        ),
        "{outcomes:?}"
    );
    let attached: Vec<(String, Vec<IpAddr>)> = node
        .datapath
        .attached
        .lock()
        .values()
        .map(|it| (it.link.host_name.clone(), it.link.addresses.clone()))
        .collect();
    let expected = [("cali0", "10.77.0.2"), ("veth0", "10.77.0.3")]
        .map(|(name, ip)| (name.to_owned(), vec![ip.parse().expect("an address")]));
    assert_eq!(attached, expected);
    let interfaces = attachments.subscribe().borrow().clone();
    let names: Vec<&str> = interfaces.values().map(|it| it.pod.name.as_str()).collect();
    assert_eq!(names, ["bridged", "routed"]);

    // Nobody else is given what they have, and they are known from now on.
    let ours = Netns::new();
    let made = add(&attachments, "ours", &ours).await;
    assert_eq!(
        made.link.addresses,
        ["10.77.0.6".parse::<IpAddr>().expect("an address")]
    );
    let again = attachments.adopt_running(folder.path(), &running).await;
    assert_eq!(again, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_pod_stays_so_over_a_restart_and_ends_with_its_interface() {
    let node = Node::new().await;
    let attachments = node.start().await;
    let theirs = Netns::new();
    plug(&node, &theirs, "lxc0", "10.77.0.2/32").await;
    let folder = sandboxes(&[&theirs]);
    let running = [pod("theirs", "10.77.0.2")];
    let told = attachments.adopt_running(folder.path(), &running).await;
    assert_eq!(told[0].1, Adoption::Adopted);
    drop(attachments);
    node.datapath.attached.lock().clear();

    let attachments = node.start().await;
    assert_eq!(attached(&node), ["lxc0"]);
    assert_eq!(
        attachments
            .adopt_running(Path::new("/nowhere"), &running)
            .await,
        []
    );
    // What the runtime knows says nothing of it, and its plugin's work is not ours to undo.
    assert_eq!(attachments.gc(&[]).await.expect("gc"), 0);
    assert_eq!(attachments.release_lost().await.expect("a look"), 0);
    assert_eq!(attached(&node), ["lxc0"]);
    node.netns.ip("link del lxc0").await;
    assert_eq!(attachments.release_lost().await.expect("a look"), 1);
    assert_eq!(attached(&node), [""; 0]);
    assert!(attachments.subscribe().borrow().is_empty());
}

fn attached(node: &Node) -> Vec<String> {
    let held = node.datapath.attached.lock();
    held.values().map(|it| it.link.host_name.clone()).collect()
}
