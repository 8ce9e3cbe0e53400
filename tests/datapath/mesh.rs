//! A service mesh's proxy beside a client: it takes the client's connections by netfilter, inside of the pod, and goes by
//! what was dialled.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream};

use nix::sys::socket::{
    getsockopt,
    sockopt::{Ip6tOriginalDst, OriginalDst},
};
use windlass_datapath::types::ServiceKey;

use crate::{
    echo::{PATIENCE, Server, ask_tcp},
    world::{TCP, World, cluster_ip, cluster_ip_v6, vip, vip_v6},
};

const PROXY: u16 = 15_001;

fn dialled(taken: &TcpStream, v4: bool) -> SocketAddr {
    if v4 {
        let held = getsockopt(taken, OriginalDst).expect("what was dialled");
        let address = u32::from_be(held.sin_addr.s_addr).into();
        return SocketAddrV4::new(address, u16::from_be(held.sin_port)).into();
    }
    let held = getsockopt(taken, Ip6tOriginalDst).expect("what was dialled");
    let address = held.sin6_addr.s6_addr.into();
    SocketAddrV6::new(address, u16::from_be(held.sin6_port), 0, 0).into()
}

#[test]
fn a_proxy_beside_a_client_sees_the_services_address_without_hooks_for_pods() {
    let world = World::with_hooks_for_the_host_alone(2);
    let (server, client) = (&world.pods[0].ns, &world.pods[1].ns);
    let _server = Server::start(server, 8080);
    let frontends: [(ServiceKey, SocketAddr, &str); 2] = [
        (cluster_ip(80, TCP), vip(80), "iptables"),
        (cluster_ip_v6(80, TCP), vip_v6(80), "ip6tables"),
    ];
    for (id, (frontend, target, tool)) in (1..).zip(frontends) {
        let v4 = target.is_ipv4();
        world.serve(id, &[frontend], 8080, &[0], v4);
        let any = if v4 { "0.0.0.0" } else { "::" };
        let proxy = client.run(|| TcpListener::bind((any, PROXY)).expect("binding"));
        let redirect = format!("OUTPUT -p tcp --dport 80 -j REDIRECT --to-ports {PROXY}");
        client.tool(tool, &format!("-w -t nat -A {redirect}"));
        let _dialling = client.run(|| TcpStream::connect_timeout(&target, PATIENCE));
        let (taken, _) = proxy.accept().expect("a connection");
        assert_eq!(dialled(&taken, v4), target);
        client.tool(tool, &format!("-w -t nat -D {redirect}"));
        for from in [client, &world.node] {
            ask_tcp(from, target).expect("the service answers");
        }
    }
    assert_eq!(world.count("new-connection", "from-pod"), 2, "of the pod");
    assert_eq!(world.count("new-connection", "socket"), 2, "of the host");
}
