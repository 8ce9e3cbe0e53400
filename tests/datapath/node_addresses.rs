//! The node's addresses as they come and go.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::oneshot;
use windlass_datapath::types::ServiceKey;
use windlass_network::{NodeAddresses, Settings, UplinkSettings, interface::Namespace};

use crate::{
    bridged,
    echo::{PATIENCE, Server, ask_tcp},
    world::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, World},
};

#[test]
fn an_address_that_comes_later_answers_and_one_that_went_does_not() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    let node_port = ServiceKey::node_port(true, 30_080, TCP);
    world.serve(1, &[node_port], 8080, &[0], true);
    let [a, b, c, _] = NODE_V4.octets();
    let late = Ipv4Addr::new(a, b, c, 77);

    let following = Following::start(&world);
    let answers = |expected: bool| {
        let target: SocketAddr = (late, 30_080).into();
        let deadline = Instant::now() + PATIENCE;
        while ask_tcp(&world.outside, target).is_ok() != expected {
            assert!(Instant::now() < deadline, "{late} answers: {}", !expected);
            thread::park_timeout(Duration::from_millis(10));
        }
    };
    let held = || {
        let datapath = world.datapath();
        datapath.node_addresses().expect("listing")
    };
    // One that moves from node to node may be anywhere.
    for interface in ["wlout0", "lo"] {
        world
            .node
            .ip(&format!("addr add {late}/32 dev {interface}"));
        answers(true);
        ask_tcp(&world.outside, (NODE_V4, 30_080).into()).expect("the first one still does");
        world
            .node
            .ip(&format!("addr del {late}/32 dev {interface}"));
        // A neighbour that is gone is not answered for; the node still routes what comes to its own Ethernet address.
        let deadline = Instant::now() + PATIENCE;
        while held().contains(&late.into()) {
            assert!(Instant::now() < deadline, "{:?}", held());
            thread::park_timeout(Duration::from_millis(10));
        }
    }
    drop(following);
}

#[test]
fn an_uplink_that_goes_and_comes_back_is_what_it_was() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    let outside = Server::start(&world.outside, 8080);
    for is_v4 in [true, false] {
        let id = 1 + u32::from(is_v4);
        world.serve(
            id,
            &[ServiceKey::node_port(is_v4, 30_080, TCP)],
            8080,
            &[0],
            is_v4,
        );
    }
    // What an interface has that nobody has set.
    for (setting, value) in [
        ("ipv4/conf/default/forwarding", "0"),
        ("ipv6/conf/default/forwarding", "0"),
        ("ipv4/conf/default/rp_filter", "1"),
    ] {
        world.node.sysctl(setting, value);
    }
    let following = Following::start(&world);
    world.node.ip("link del wlout0");
    world.connect_outside();
    for node in [IpAddr::from(NODE_V4), NODE_V6.into()] {
        let target = SocketAddr::new(node, 30_080);
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = ask_tcp(&world.outside, target) {
            assert!(Instant::now() < deadline, "{target}: {error}");
            thread::park_timeout(Duration::from_millis(10));
        }
    }
    // A pod speaks in the node's name out there.
    for (to, node) in [
        (IpAddr::from(OUTSIDE_V4), IpAddr::from(NODE_V4)),
        (OUTSIDE_V6.into(), NODE_V6.into()),
    ] {
        let answer = ask_tcp(&world.pods[0].ns, (to, 8080).into());
        let answer = answer.unwrap_or_else(|error| panic!("{to}: {error}"));
        assert_eq!(answer.seen_client.ip(), node);
    }
    let setting = |path: &str| world.node.tool("sysctl", &format!("-n net/{path}"));
    for (path, value) in [
        ("ipv4/conf/wlout0/forwarding", "1"),
        ("ipv4/conf/wlout0/rp_filter", "2"),
        ("ipv6/conf/wlout0/accept_ra", "2"),
    ] {
        assert_eq!(setting(path).trim(), value, "{path}");
    }
    drop((following, outside));
}

#[test]
fn the_addresses_by_which_the_node_speaks_to_another_plugins_pods_are_its_own() {
    let world = bridged::world(PodSockets::ByTc);
    let following = Following::start(&world);
    let deadline = Instant::now() + PATIENCE;
    let held = || world.datapath().node_addresses().expect("listing");
    let bridge = [IpAddr::from(bridged::BRIDGE_V4), bridged::BRIDGE_V6.into()];
    while !bridge.iter().all(|address| held().contains(address)) {
        assert!(Instant::now() < deadline, "{:?}", held());
        thread::park_timeout(Duration::from_millis(10));
    }
    world.node.ip("link del cni0");
    while bridge.iter().any(|address| held().contains(address)) {
        assert!(Instant::now() < deadline, "{:?}", held());
        thread::park_timeout(Duration::from_millis(10));
    }
    drop(following);
}

/// An agent that follows the addresses of the world's node.
struct Following {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Following {
    fn start(world: &World) -> Self {
        let addresses = NodeAddresses {
            own: vec![NODE_V4.into(), NODE_V6.into()],
            uplinks: vec!["wlout0".to_owned()],
            ..NodeAddresses::default()
        };
        let datapath = world.shared_datapath();
        let folder = world.folder().to_owned();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = world.node.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime");
            runtime.block_on(async {
                let host = || async {
                    let opened = Namespace::open("/proc/thread-self/ns/net".as_ref()).await;
                    opened.expect("the node's namespace")
                };
                let settings = UplinkSettings {
                    settings: Settings::noted_in(&folder),
                    host: host().await,
                    forwards_by_xdp: false,
                };
                tokio::select! {
                    ended = addresses.follow(datapath, settings) => ended.expect("following"),
                    _ = stopped => {}
                }
                // As an agent does that leaves the node.
                let settings = Settings::noted_in(&folder);
                settings.restore(&host().await).await.expect("restored");
            });
        });
        Self {
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.stop.take());
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(
            thread::panicking() || matches!(ended, Some(Ok(()))),
            "following failed"
        );
    }
}
