//! What an agent changes at the node's own interfaces, and what is left of it.

use windlass_network::{Settings, uplink};

use crate::world::*;

const FORWARDING: &str = "ipv4/conf/up0/forwarding";
const SOURCES: &str = "ipv4/conf/up0/rp_filter";

async fn held(node: &Node) -> [String; 2] {
    let paths = [FORWARDING, SOURCES].map(str::to_owned);
    let held = node.netns.open().await.sysctls(paths.into()).await;
    let held: Vec<String> = held.expect("read").into_iter().flatten().collect();
    held.try_into().expect("both are there")
}

async fn write(node: &Node, path: &str, value: &'static str) {
    let host = node.netns.open().await;
    let written = host.set_sysctls(vec![(path.to_owned(), value)]).await;
    written.expect("write");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uplink_is_set_as_it_was_when_windlass_has_gone() {
    let node = Node::new().await;
    write(&node, "ipv4/ip_forward", "0").await;
    write(&node, SOURCES, "1").await;
    assert_eq!(held(&node).await, ["0", "1"]);
    // Each agent changes what it finds.
    for _ in 0..2 {
        let host = node.netns.open().await;
        let settings = Settings::noted_in(node.state.path());
        let set = settings.set(&host, uplink::forwarding("up0")).await;
        set.expect("set");
        assert_eq!(held(&node).await, ["1", "2"]);
    }
    let leave = async || {
        let settings = Settings::noted_in(node.state.path());
        settings.restore(&node.netns.open().await).await
    };
    leave().await.expect("restore");
    assert_eq!(held(&node).await, ["0", "1"]);
    leave().await.expect("nothing is left to restore");
    let files = std::fs::read_dir(node.state.path()).expect("list").count();
    assert_eq!(files, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_count_on_by_then_stays() {
    let node = Node::new().await;
    write(&node, "ipv4/ip_forward", "0").await;
    write(&node, SOURCES, "1").await;
    let settings = Settings::noted_in(node.state.path());
    let host = node.netns.open().await;
    let set = settings.set(&host, uplink::forwarding("up0")).await;
    set.expect("set");
    // Another plugin makes the node forward on all interfaces; somebody has an opinion of his own on sources.
    write(&node, "ipv4/ip_forward", "1").await;
    write(&node, SOURCES, "0").await;
    settings.restore(&host).await.expect("restore");
    assert_eq!(held(&node).await, ["1", "0"]);
}
