//! The node's addresses as they come and go.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use windlass_datapath::types::ServiceKey;
use windlass_network::NodeAddresses;

use crate::{
    echo::{PATIENCE, Server, ask_tcp},
    world::{NODE_V4, PodSockets, TCP, World},
};

#[test]
fn an_address_that_comes_later_answers_and_one_that_went_does_not() {
    let world = World::new(1, PodSockets::ByTc);
    let _server = Server::start(&world.pods[0].ns, 8080);
    let node_port = ServiceKey::node_port(true, 30_080, TCP);
    world.serve(1, &[node_port], 8080, &[0], true);
    let [a, b, c, _] = NODE_V4.octets();
    let late = Ipv4Addr::new(a, b, c, 77);

    let addresses = NodeAddresses {
        uplinks: vec!["wlout0".to_owned()],
        ..NodeAddresses::default()
    };
    let datapath = world.shared_datapath();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let following = world.node.spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            tokio::select! {
                ended = addresses.follow(datapath) => ended.expect("following"),
                _ = stopped => {}
            }
        });
    });
    let answers = |expected: bool| {
        let target: SocketAddr = (late, 30_080).into();
        let deadline = Instant::now() + PATIENCE;
        while ask_tcp(&world.outside, target).is_ok() != expected {
            assert!(Instant::now() < deadline, "{late} answers: {}", !expected);
            thread::park_timeout(Duration::from_millis(10));
        }
    };
    world.node.ip(&format!("addr add {late}/32 dev wlout0"));
    answers(true);
    ask_tcp(&world.outside, (NODE_V4, 30_080).into()).expect("the first one still does");
    world.node.ip(&format!("addr del {late}/32 dev wlout0"));
    // A neighbour that is gone is not answered for; the node still routes what comes to its own Ethernet address.
    let held = || {
        let datapath = world.datapath();
        datapath.node_addresses().expect("listing")
    };
    let deadline = Instant::now() + PATIENCE;
    while held().contains(&late.into()) {
        assert!(Instant::now() < deadline, "{:?}", held());
        thread::park_timeout(Duration::from_millis(10));
    }
    drop(stop);
    following.join().expect("it ended by itself");
}
