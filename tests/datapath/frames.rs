//! Programs run on frames that no wire has seen (BPF_PROG_TEST_RUN): exact answers, and
//! frames that nobody would send on purpose.

use std::net::{Ipv4Addr, Ipv6Addr};

use windlass_datapath::types::{ServiceKey, connection};

use crate::{
    wire::{
        ACK, DROP, HOST_MAC, NEXT, POD_MAC, REDIRECT, RST, SYN, assert_checksums, checksum,
        ethernet, fragment_v4, fragments_v6, ipv4, ipv6, run, sctp, tcp, tcp_v4, tcp_v6,
        too_big_v4, too_big_v6, transport_checksum, udp,
    },
    world::{
        NODE_V4, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, VIP_V4, VIP_V6, World, cluster_ip,
        cluster_ip_v6,
    },
};

#[test]
fn a_packet_for_a_service_says_the_backend_and_its_answer_the_service() {
    let world = World::new(2, PodSockets::ByTc);
    let (client, server) = (&world.pods[0], &world.pods[1]);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[1], true);
    world.serve(2, &[cluster_ip_v6(80, TCP)], 8080, &[1], false);

    for options in [0, 8, 40] {
        let port = 1_000 + options as u16;
        let request = tcp_v4(client.v4, VIP_V4, (port, 80), SYN, options);
        let (verdict, out) = run(&world, "from_pod", &request, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        assert_checksums(&out);
        let mut expected = tcp_v4(client.v4, server.v4, (port, 8080), SYN, options);
        expected[..6].copy_from_slice(&server.interface.mac);
        expected[6..12].copy_from_slice(&world.node.mac("wlpod1"));
        assert_eq!(out, expected, "{options} octets of options");

        let answer = tcp_v4(server.v4, client.v4, (8080, port), SYN | ACK, options);
        let (verdict, out) = run(&world, "from_pod", &answer, "wlpod1");
        assert_eq!(verdict, REDIRECT);
        assert_eq!(
            out[14..],
            tcp_v4(VIP_V4, client.v4, (80, port), SYN | ACK, options)[14..]
        );
    }

    let request = tcp_v6(client.v6, VIP_V6, (1_000, 80), SYN);
    let (verdict, out) = run(&world, "from_pod", &request, "wlpod0");
    assert_eq!(verdict, REDIRECT);
    assert_eq!(
        out[14..],
        tcp_v6(client.v6, server.v6, (1_000, 8080), SYN)[14..]
    );
    let answer = tcp_v6(server.v6, client.v6, (8080, 1_000), SYN | ACK);
    let (_, out) = run(&world, "from_pod", &answer, "wlpod1");
    assert_eq!(
        out[14..],
        tcp_v6(VIP_V6, client.v6, (80, 1_000), SYN | ACK)[14..]
    );
}

/// What arrived broken must not leave as if it was whole.
#[test]
fn a_wrong_checksum_stays_wrong() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[1], true);
    world.serve(2, &[cluster_ip_v6(80, TCP)], 8080, &[1], false);
    let (client, server) = (&world.pods[0], &world.pods[1]);
    // Of the IPv4 header, of TCP over it, of TCP over IPv6.
    for (number, at, v4) in [(0, 24, true), (1, 50, true), (2, 70, false)] {
        let of = |to: bool| {
            let ports = (2_000 + number, if to { 8080 } else { 80 });
            let v4_to = if to { server.v4 } else { VIP_V4 };
            let v6_to = if to { server.v6 } else { VIP_V6 };
            match v4 {
                true => tcp_v4(client.v4, v4_to, ports, SYN, 0),
                false => tcp_v6(client.v6, v6_to, ports, SYN),
            }
        };
        let (mut broken, whole) = (of(false), of(true));
        broken[at] ^= 0x55;
        let (verdict, out) = run(&world, "from_pod", &broken, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        assert_eq!(out[14..at], whole[14..at]);
        assert_ne!(out[at..at + 2], whole[at..at + 2], "case {number}");
        assert_eq!(out[at + 2..], whole[at + 2..]);
    }
}

/// Where VLANs carry addresses of Services, their interfaces are the uplinks, and what they hand on has no tag.
#[test]
fn a_tagged_frame_is_somebody_elses() {
    let world = World::new(1, PodSockets::ByTc);
    let node_port = ServiceKey::node_port(true, 30_080, TCP);
    world.serve(1, &[cluster_ip(80, TCP), node_port], 8080, &[0], true);
    for (program, interface, plain) in [
        (
            "from_pod",
            "wlpod0",
            tcp_v4(world.pods[0].v4, VIP_V4, (1_000, 80), SYN, 0),
        ),
        (
            "from_uplink",
            "wlout0",
            tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, 30_080), SYN, 0),
        ),
    ] {
        for tags in [&[0x8100u16][..], &[0x88a8, 0x8100]] {
            let mut frame = plain[..12].to_vec();
            for tag in tags {
                frame.extend(tag.to_be_bytes());
                frame.extend([0, 7]);
            }
            frame.extend(&plain[12..]);
            let (verdict, out) = run(&world, program, &frame, interface);
            assert_eq!((verdict, out), (NEXT, frame), "{program}, {tags:x?}");
        }
    }
}

#[test]
fn udp_without_a_checksum_stays_without_one() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(53, UDP)], 5353, &[1], true);
    let datagram = |port: u16, sum: u16| {
        [1_000u16, port, 12, sum]
            .map(u16::to_be_bytes)
            .concat()
            .into_iter()
            .chain(*b"data")
    };
    let client = world.pods[0].v4;
    let bare: Vec<_> = datagram(53, 0).collect();
    let (_, out) = run(
        &world,
        "from_pod",
        &ipv4(client, VIP_V4, UDP, 0, &bare),
        "wlpod0",
    );
    assert_eq!(out[34..], datagram(5353, 0).collect::<Vec<_>>());

    let mut summed: Vec<_> = datagram(53, 0).collect();
    let sum = transport_checksum(&client.octets(), &VIP_V4.octets(), UDP, &summed);
    summed[6..8].copy_from_slice(&sum.to_be_bytes());
    let (_, out) = run(
        &world,
        "from_pod",
        &ipv4(client, VIP_V4, UDP, 0, &summed),
        "wlpod0",
    );
    assert_eq!(
        transport_checksum(&out[26..30], &out[30..34], UDP, &out[34..]),
        0
    );
}

#[test]
fn sctp_is_translated_and_its_checksum_fits_whatever_its_length() {
    const SCTP: u8 = 132;
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(3868, SCTP)], 3868, &[1], true);
    world.serve(2, &[cluster_ip(80, SCTP)], 3868, &[1], true);
    world.serve(3, &[cluster_ip_v6(80, SCTP)], 3868, &[1], false);
    let (client, server) = (&world.pods[0], &world.pods[1]);
    for (port, size) in [(3868, 12), (80, 12), (80, 13), (80, 300), (80, 1_400)] {
        let payload: Vec<u8> = (0..size).map(|index: u32| (index * 7) as u8).collect();
        // Both services have one backend: a port of its own for each, or the second is moved.
        let source = 1_000 + size as u16 + port;
        let request = ipv4(client.v4, VIP_V4, SCTP, 0, &sctp((source, port), &payload));
        let (verdict, out) = run(&world, "from_pod", &request, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        let expected = ipv4(
            client.v4,
            server.v4,
            SCTP,
            0,
            &sctp((source, 3868), &payload),
        );
        assert_eq!(out[14..], expected[14..], "port {port}, {size} octets");
        let answer = ipv4(
            server.v4,
            client.v4,
            SCTP,
            0,
            &sctp((3868, source), &payload),
        );
        let (_, out) = run(&world, "from_pod", &answer, "wlpod1");
        let expected = ipv4(VIP_V4, client.v4, SCTP, 0, &sctp((port, source), &payload));
        assert_eq!(
            out[14..],
            expected[14..],
            "the answer from {port}, {size} octets"
        );
    }
    let request = ipv6(client.v6, VIP_V6, SCTP, &sctp((1_000, 80), b"chunk"));
    let (_, out) = run(&world, "from_pod", &request, "wlpod0");
    let expected = ipv6(client.v6, server.v6, SCTP, &sctp((1_000, 3868), b"chunk"));
    assert_eq!(out[14..], expected[14..]);
}

#[test]
fn later_fragments_go_where_the_first_one_went() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(53, UDP)], 5353, &[1], true);
    world.serve(2, &[cluster_ip_v6(53, UDP)], 5353, &[1], false);
    let (client, server) = (&world.pods[0], &world.pods[1]);
    let payload = [7; 32];
    let of = |dst: Ipv4Addr, port: u16, id: u16| {
        let datagram = udp(&client.v4.octets(), &dst.octets(), (1_000, port), &payload);
        [
            fragment_v4(ipv4(client.v4, dst, UDP, 0, &datagram[..24]), id, 0, true),
            fragment_v4(ipv4(client.v4, dst, UDP, 0, &datagram[24..]), id, 24, false),
        ]
    };
    let stray = &of(VIP_V4, 53, 8)[1];
    let (verdict, out) = run(&world, "from_pod", stray, "wlpod0");
    assert_eq!(
        (verdict, &out),
        (NEXT, stray),
        "whose first one nobody has seen"
    );
    for (sent, expected) in of(VIP_V4, 53, 7).iter().zip(of(server.v4, 5353, 7)) {
        let (verdict, out) = run(&world, "from_pod", sent, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        assert_eq!(out[14..], expected[14..]);
    }
    world.serve(3, &[cluster_ip(80, TCP)], 8080, &[1], true);
    let of = |dst: Ipv4Addr, port: u16| {
        let (src, to) = (client.v4.octets(), dst.octets());
        let segment = tcp(&src, &to, (1_000, port), SYN, &payload);
        [
            fragment_v4(ipv4(client.v4, dst, TCP, 0, &segment[..24]), 9, 0, true),
            fragment_v4(ipv4(client.v4, dst, TCP, 0, &segment[24..]), 9, 24, false),
        ]
    };
    for (sent, expected) in of(VIP_V4, 80).iter().zip(of(server.v4, 8080)) {
        let (verdict, out) = run(&world, "from_pod", sent, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        assert_eq!(out[14..], expected[14..]);
    }
    let of = |dst: Ipv6Addr, port: u16| {
        let datagram = udp(&client.v6.octets(), &dst.octets(), (1_000, port), &payload);
        fragments_v6(client.v6, dst, &datagram, 99)
    };
    for (sent, expected) in of(VIP_V6, 53).iter().zip(of(server.v6, 5353)) {
        let (verdict, out) = run(&world, "from_pod", sent, "wlpod0");
        assert_eq!(verdict, REDIRECT);
        assert_eq!(out[14..], expected[14..]);
    }
}

#[test]
fn an_icmp_error_speaks_of_the_connection_that_its_receiver_knows() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[1], true);
    world.serve(2, &[cluster_ip_v6(80, TCP)], 8080, &[1], false);
    let (client, server) = (&world.pods[0], &world.pods[1]);
    let sent = tcp_v4(client.v4, VIP_V4, (1_000, 80), SYN, 0);
    let (_, on_the_wire) = run(&world, "from_pod", &sent, "wlpod0");
    // The backend's own error: it speaks as the address that was dialled.
    let error = too_big_v4(server.v4, client.v4, &on_the_wire);
    let (verdict, out) = run(&world, "from_pod", &error, "wlpod1");
    assert_eq!(verdict, REDIRECT);
    assert_eq!(
        out[14..42],
        too_big_v4(VIP_V4, client.v4, &sent)[14..42],
        "headers"
    );
    assert_eq!(
        out[42..62],
        sent[14..34],
        "the quoted header is what was sent"
    );
    assert_eq!(out[62..66], sent[34..38], "and so are the ports");
    assert_eq!(checksum(&[&out[34..]]), 0, "the sum over it all");
    // A router's error about an answer, on its way to the backend.
    let answer = tcp_v4(server.v4, client.v4, (8080, 1_000), SYN | ACK, 0);
    let (_, on_the_wire) = run(&world, "from_pod", &answer, "wlpod1");
    let error = too_big_v4(NODE_V4, VIP_V4, &on_the_wire);
    let (_, out) = run(&world, "to_pod", &error, "wlpod1");
    assert_eq!(out[26..34], [NODE_V4.octets(), server.v4.octets()].concat());
    assert_eq!(out[42..62], answer[14..34]);
    assert_eq!(checksum(&[&out[34..]]), 0);

    let sent = tcp_v6(client.v6, VIP_V6, (1_000, 80), SYN);
    let (_, on_the_wire) = run(&world, "from_pod", &sent, "wlpod0");
    let error = too_big_v6(server.v6, client.v6, &on_the_wire);
    let (verdict, out) = run(&world, "from_pod", &error, "wlpod1");
    assert_eq!(verdict, REDIRECT);
    assert_eq!(out[22..54], [VIP_V6.octets(), client.v6.octets()].concat());
    assert_eq!(out[62..102], sent[14..54]);
    assert_eq!(out[102..106], sent[54..58]);
    let sum = transport_checksum(&VIP_V6.octets(), &client.v6.octets(), 58, &out[54..]);
    assert_eq!(sum, 0);

    let stranger = tcp_v4(client.v4, NODE_V4, (1_000, 80), SYN, 0);
    let error = too_big_v4(server.v4, client.v4, &stranger);
    let (_, out) = run(&world, "from_pod", &error, "wlpod1");
    assert_eq!(out[14..], error[14..], "about nothing that is known");
}

/// Anyone who guesses the ports can send a reset in another's name; and one may come late, after its
/// connection's ports were used again.
#[test]
fn a_reset_ends_nothing_while_its_sender_goes_on() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[1], true);
    let (client, server) = (world.pods[0].v4, world.pods[1].v4);
    let asks = |flags| {
        let frame = tcp_v4(client, VIP_V4, (40_000, 80), flags, 0);
        run(&world, "from_pod", &frame, &world.pods[0].interface.name).0
    };
    let answers = |flags| {
        let frame = tcp_v4(server, client, (8080, 40_000), flags, 0);
        run(&world, "from_pod", &frame, &world.pods[1].interface.name).0
    };
    let is_closed = || {
        let entries = world.datapath().connections().expect("the table");
        assert_eq!(entries.len(), 2, "one connection");
        let closed = entries
            .iter()
            .map(|(_, entry)| connection::is_closed(entry.flags));
        let closed: Vec<bool> = closed.collect();
        assert_eq!(closed[0], closed[1], "both directions agree");
        closed[0]
    };
    for verdict in [asks(SYN), answers(SYN | ACK), asks(ACK)] {
        assert_eq!(verdict, REDIRECT);
    }
    // In the server's name: what the client says changes nothing, what the server says does.
    answers(RST);
    assert!(is_closed());
    asks(ACK);
    assert!(is_closed(), "the client cannot know yet");
    answers(ACK);
    assert!(!is_closed());
    // And in the client's.
    asks(RST | ACK);
    answers(ACK);
    assert!(is_closed());
    asks(ACK);
    assert!(!is_closed());
    // Its ports used again, by whom they belong to.
    answers(RST);
    asks(SYN);
    assert!(!is_closed());
    answers(RST);
    assert!(is_closed(), "a late one");
    answers(SYN | ACK);
    assert!(!is_closed());
    // One that is meant: nobody goes on.
    asks(ACK);
    asks(RST);
    assert!(is_closed());
    world.datapath().collect_garbage().expect("collecting");
    assert!(is_closed(), "it lingers");
}

#[test]
fn a_refusal_is_an_exact_reset_or_icmp_error() {
    let world = World::new(1, PodSockets::ByTc);
    world.serve(1, &[cluster_ip(80, TCP)], 8080, &[], true);
    world.serve(2, &[cluster_ip_v6(80, TCP)], 8080, &[], false);
    world.serve(3, &[cluster_ip(53, UDP)], 8080, &[], true);
    let pod = &world.pods[0];

    let syn = tcp_v4(pod.v4, VIP_V4, (1_000, 80), SYN, 0);
    let (verdict, out) = run(&world, "from_pod", &syn, "wlpod0");
    assert_eq!((verdict, out.len()), (REDIRECT, 54));
    assert_checksums(&out);
    assert_eq!((&out[..6], &out[6..12]), (&POD_MAC[..], &HOST_MAC[..]));
    assert_eq!(
        (&out[26..30], &out[30..34]),
        (&VIP_V4.octets()[..], &pod.v4.octets()[..])
    );
    assert_eq!(out[47], RST | ACK);
    // The SYN and four octets of data.
    assert_eq!(out[42..46], 1_005u32.to_be_bytes());

    let middle = tcp_v6(pod.v6, VIP_V6, (1_000, 80), ACK);
    let (verdict, out) = run(&world, "from_pod", &middle, "wlpod0");
    assert_eq!((verdict, out.len()), (REDIRECT, 74));
    assert_checksums(&out);
    assert_eq!((out[67], &out[58..62]), (RST, &2_000u32.to_be_bytes()[..]));

    let reset = tcp_v4(pod.v4, VIP_V4, (1_000, 80), RST, 0);
    assert_eq!(
        run(&world, "from_pod", &reset, "wlpod0").0,
        DROP,
        "no reset for a reset"
    );

    let datagram = ipv4(
        pod.v4,
        VIP_V4,
        UDP,
        0,
        &[3, 232, 0, 53, 0, 12, 0, 0, 1, 2, 3, 4],
    );
    let (verdict, out) = run(&world, "from_pod", &datagram, "wlpod0");
    assert_eq!((verdict, out.len()), (REDIRECT, 70));
    assert_eq!(out[34..36], [3, 3], "port unreachable");
    assert_eq!(checksum(&[&out[14..34]]), 0);
    assert_eq!(checksum(&[&out[34..]]), 0);
    assert_eq!(
        out[42..70],
        datagram[14..42],
        "the header and eight octets are quoted"
    );
}

#[test]
fn the_gateway_answers_arp_and_a_pod_speaks_for_itself_only() {
    let world = World::new(2, PodSockets::ByTc);
    let arp = |operation: u8, sender: Ipv4Addr, target: [u8; 4]| {
        let mut frame = ethernet(0x0806, &[0, 1, 8, 0, 6, 4, 0, operation]);
        frame.extend_from_slice(&POD_MAC);
        frame.extend_from_slice(&sender.octets());
        frame.extend_from_slice(&[0; 6]);
        frame.extend_from_slice(&target);
        frame
    };
    let gateway = [169, 254, 1, 1];
    let own = world.pods[0].v4;
    let (verdict, out) = run(&world, "from_pod", &arp(1, own, gateway), "wlpod0");
    assert_eq!(verdict, REDIRECT);
    let host = world.node.mac("wlpod0");
    let expected = [
        &POD_MAC[..],
        &host,
        &[8, 6, 0, 1, 8, 0, 6, 4, 0, 2],
        &host,
        &gateway,
        &POD_MAC,
        &own.octets(),
    ]
    .concat();
    assert_eq!(out, expected);
    assert_eq!(
        run(&world, "from_pod", &arp(1, own, [10, 0, 0, 1]), "wlpod0").0,
        NEXT
    );
    let other = world.pods[1].v4;
    for operation in [1, 2] {
        assert_eq!(
            run(
                &world,
                "from_pod",
                &arp(operation, other, gateway),
                "wlpod0"
            )
            .0,
            DROP
        );
    }
}

#[test]
fn spoofed_and_broken_frames_are_dropped_and_strangers_pass() {
    let world = World::new(2, PodSockets::ByTc);
    world.serve(
        1,
        &[
            cluster_ip(80, TCP),
            ServiceKey::node_port(true, 30_080, TCP),
        ],
        8080,
        &[1],
        true,
    );
    let pod = world.pods[0].v4;
    let good = tcp_v4(pod, VIP_V4, (1_000, 80), SYN, 0);
    // The kernel takes no shorter test packet than an IP header.
    for length in 34..good.len() {
        let (verdict, _) = run(&world, "from_pod", &good[..length], "wlpod0");
        let expected = if length < 54 { DROP } else { REDIRECT };
        assert_eq!(verdict, expected, "{length} octets");
    }
    let spoofed = tcp_v4(world.pods[1].v4, VIP_V4, (1_000, 80), SYN, 0);
    assert_eq!(run(&world, "from_pod", &spoofed, "wlpod0").0, DROP);
    let spoofed = tcp_v6(OUTSIDE_V6, VIP_V6, (1_000, 80), SYN);
    assert_eq!(run(&world, "from_pod", &spoofed, "wlpod0").0, DROP);
    let mut other = good.clone();
    other[12..14].copy_from_slice(&[0x88, 0xcc]);
    assert_eq!(
        run(&world, "from_pod", &other, "wlpod0").0,
        NEXT,
        "LLDP is not ours"
    );
    let to_node = tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, 22), SYN, 0);
    let (verdict, out) = run(&world, "from_uplink", &to_node, "wlout0");
    assert_eq!(
        (verdict, out),
        (NEXT, to_node),
        "the node's own traffic is untouched"
    );
}

#[test]
fn the_verifier_walks_few_instructions() {
    let world = World::new(0, PodSockets::ByTc);
    let mut near_the_limit = Vec::new();
    for size in world.datapath().program_sizes() {
        let Some(instructions) = size.verified_instructions else {
            continue;
        };
        println!("{:>14} {instructions:>7} instructions verified", size.name);
        if instructions >= 300_000 {
            near_the_limit.push(size.name);
        }
    }
    assert!(
        near_the_limit.is_empty(),
        "near the limit of a million: {near_the_limit:?}"
    );
}
