//! Frames that nobody would send on purpose: made of good ones by chance, they must do no harm.

use windlass_datapath::types::ServiceKey;

use crate::{
    wire::{
        ACK, DROP, NEXT, REDIRECT, SYN, fragment_v4, fragments_v6, ipv4, ipv6, sctp, tcp_v4,
        tcp_v6, too_big_v4, too_big_v6, udp,
    },
    world::{
        NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6, PodSockets, TCP, UDP, VIP_V4, VIP_V6, World,
        cluster_ip, cluster_ip_v6,
    },
};

#[test]
fn random_frames_never_do_harm() {
    let world = World::new(2, PodSockets::ByTc);
    for (id, protocol) in [(1, TCP), (3, UDP), (5, 132)] {
        let node_port = |v4| ServiceKey::node_port(v4, 30_080, protocol);
        world.serve(
            id,
            &[cluster_ip(80, protocol), node_port(true)],
            8080,
            &[1],
            true,
        );
        let v6 = [cluster_ip_v6(80, protocol), node_port(false)];
        world.serve(id + 1, &v6, 8080, &[1], false);
    }
    // A fixed seed: a failure can be seen again (xorshift64*).
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    let (pod, other) = (&world.pods[0], &world.pods[1]);
    let datagram = |src: &[u8], dst: &[u8], port| udp(src, dst, (1_000, port), &[7; 32]);
    let (v4, v6) = (pod.v4.octets(), pod.v6.octets());
    let to_v4 = datagram(&v4, &VIP_V4.octets(), 80);
    let to_v6 = datagram(&v6, &VIP_V6.octets(), 80);
    let about = tcp_v4(other.v4, pod.v4, (8080, 1_000), ACK, 0);
    let about_v6 = tcp_v6(other.v6, pod.v6, (8080, 1_000), ACK);
    let mut seeds = vec![
        tcp_v4(pod.v4, VIP_V4, (1_000, 80), SYN, 0),
        tcp_v4(OUTSIDE_V4, NODE_V4, (1_000, 30_080), SYN, 8),
        tcp_v6(pod.v6, VIP_V6, (1_000, 80), SYN),
        tcp_v6(OUTSIDE_V6, NODE_V6, (1_000, 30_080), SYN),
        ipv4(pod.v4, VIP_V4, UDP, 0, &to_v4),
        ipv6(pod.v6, VIP_V6, UDP, &to_v6),
        ipv4(pod.v4, VIP_V4, 132, 0, &sctp((1_000, 80), b"chunk")),
        fragment_v4(ipv4(pod.v4, VIP_V4, UDP, 0, &to_v4[..24]), 5, 0, true),
        fragment_v4(ipv4(pod.v4, VIP_V4, UDP, 0, &to_v4[24..]), 5, 24, false),
        too_big_v4(pod.v4, other.v4, &about),
        too_big_v6(pod.v6, other.v6, &about_v6),
    ];
    seeds.extend(fragments_v6(pod.v6, VIP_V6, &to_v6, 6));
    let programs = [
        ("from_pod", "wlpod0"),
        ("to_pod", "wlpod0"),
        ("from_uplink", "wlout0"),
        ("to_uplink", "wlout0"),
        ("xdp_uplink", "wlout0"),
    ];
    let indexes = programs.map(|(_, interface)| world.node.ifindex(interface));
    let own = [&v4[..], &v6[..]];
    let (other_v4, other_v6) = (other.v4.octets(), other.v6.octets());
    let pods = [&v4[..], &v6, &other_v4, &other_v6];
    world.node.run(|| {
        for round in 0..20_000usize {
            let mut frame = seeds[round % seeds.len()].clone();
            for _ in 0..1 + random() % 6 {
                let at = random() as usize % frame.len();
                frame[at] = random() as u8;
            }
            // The kernel takes no shorter test packet than an IP header.
            let least = if frame[12..14] == [0x86, 0xdd] {
                54
            } else {
                34
            };
            frame.truncate(least + random() as usize % (frame.len() + 1 - least));
            let which = random() as usize % programs.len();
            let (program, _) = programs[which];
            let (verdict, out) = world
                .datapath()
                .test_run(program, &frame, indexes[which])
                .expect("running the program");
            let verdict = verdict as i32;
            let said = match program {
                // Drop, pass; what it sends on it knows, and nothing here is known to it.
                "xdp_uplink" => [1, 2].contains(&verdict),
                _ => [NEXT, DROP, REDIRECT].contains(&verdict),
            };
            assert!(said, "{verdict} of {program} for {frame:02x?}");
            let (source, target) = match out[12..14] {
                [8, 0] => (&out[26..30], &out[30..34]),
                [0x86, 0xdd] => (&out[22..38], &out[38..54]),
                _ => continue,
            };
            // Neighbours speak by such addresses.
            let is_link_local = source == [0; 16] || source[0] == 0xfe && source[1] & 0xc0 == 0x80;
            if program == "from_pod" && verdict == NEXT && !is_link_local {
                assert!(own.contains(&source), "a foreign source: {frame:02x?}");
            }
            if program == "from_pod" && verdict == REDIRECT && !is_link_local {
                assert!(
                    pods.contains(&target),
                    "led astray: {frame:02x?}, {out:02x?}"
                );
            }
        }
    });
}
