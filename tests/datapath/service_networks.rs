//! Addresses of the Services' networks that no Service has: nobody's packets leave the node for them.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpStream},
    thread,
};

use crate::{
    agent::{Agent, dual_spec},
    echo::{PATIENCE, Server, ask_udp_on, udp_socket},
    netns::NetNs,
    traffic_policies::{By, families, here, route_to_and_fro},
    world::{PodSockets, VIP_V4, VIP_V6, World},
};

/// By TCP and by UDP, one of each family.
fn ways(sockets: PodSockets) -> [(By, SocketAddr); 2] {
    let [[v4, ..], [v6, ..]] = families();
    match sockets {
        PodSockets::ByTc => [(By::Tcp, v4), (By::Udp, v6)],
        PodSockets::ByHook => [(By::Tcp, v6), (By::Udp, v4)],
    }
}

#[test]
fn nothing_leaves_for_an_address_that_no_service_has_until_one_has_it() {
    for sockets in [PodSockets::ByTc, PodSockets::ByHook] {
        let world = World::new(2, sockets);
        let (server, client) = (&world.pods[0], &world.pods[1].ns);
        let _server = Server::start(&server.ns, 8080);
        route_to_and_fro(&world);
        let networks: [(IpAddr, u8); 2] = [
            ([10, 96, 0, 0].into(), 16),
            ("fd00:96::".parse().expect("an address"), 64),
        ];
        let datapath = world.datapath();
        datapath.set_service_networks(&networks).expect("writing");
        // What the Nodes say comes again and again.
        datapath
            .set_native_networks(&[([10, 244, 0, 0].into(), 16)])
            .expect("writing");
        let is_silent_to = |from: &[&NetNs]| {
            let before = world.count("dropped-no-service", "to-uplink");
            thread::scope(|scope| {
                for from in from {
                    for (by, target) in ways(sockets) {
                        scope.spawn(move || {
                            let silent = by.is_met_with_silence(from, target);
                            assert!(silent, "{} to {target} by {by:?}, {sockets:?}", from.name);
                        });
                    }
                }
            });
            let dropped = world.count("dropped-no-service", "to-uplink") - before;
            assert!(dropped >= 2 * from.len() as u64, "{dropped}, {sockets:?}");
        };
        // Which would be sent back.
        is_silent_to(&[&world.outside]);
        // Somebody out there would answer.
        for address in [IpAddr::from(VIP_V4), VIP_V6.into()] {
            world.outside.ip(&format!("addr add {address} dev lo"));
        }
        is_silent_to(&[client, &world.node]);

        // A client that is ahead of the Service's news finds it by its next packet.
        let [(_, early_tcp), (_, early_udp)] = ways(sockets);
        let before = world.count("dropped-no-service", "to-uplink");
        thread::scope(|scope| {
            let connected =
                scope.spawn(|| client.run(|| TcpStream::connect_timeout(&early_tcp, PATIENCE * 6)));
            let socket = client.run(|| udp_socket(early_udp)).expect("a socket");
            socket.send_to(b"early", early_udp).expect("sending");
            while world.count("dropped-no-service", "to-uplink") < before + 2 {
                thread::yield_now();
            }
            Agent::new(&world).apply(dual_spec("Cluster"), &here(server));
            let (answer, peer) = ask_udp_on(&socket, early_udp).expect("an answer");
            assert_eq!((answer.server.as_str(), peer), ("a", early_udp));
            let mut stream = connected.join().expect("a client").expect("connecting");
            stream.write_all(b"hello\n").expect("asking");
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).expect("an answer");
            assert_eq!(&answer, b"a ", "{sockets:?}");
        });
        assert!(datapath.is_of_services(early_tcp.ip()));
    }
}
