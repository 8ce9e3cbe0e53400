//! Loads the object: maps from their pins or new, every program through the verifier.

use std::{io::ErrorKind, time::Duration};

use aya::{
    Ebpf, EbpfLoader, TestRun as _, TestRunOptions,
    maps::MapInfo,
    programs::{Program, ProgramError, SchedClassifier},
    util::KernelVersion,
};

use windlass_ebpf_types::{
    Addr, AffinityKey, AffinityValue, Announced, AnnouncedKey, BackendValue, Counter, Endpoint,
    FragmentKey, FragmentPorts, MemberKey, NetNamespace, NodeConfig, Overlay, PolicyDecision,
    PolicyPeer, PolicyPod, PolicyPortKey, PolicyState, PolicyVerdict, Queued, RangeKey, ServiceKey,
    ServiceValue, SlotKey, SocketBackend, SocketKey, SocketVip, Traffic, Tuple, Uplink, VerdictKey,
    Ways,
};

use crate::{
    bpffs::PinDirectory,
    config::DatapathConfig,
    error::{Error, Result},
    xdp,
};

static OBJECT: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/windlass-ebpf-programs"));

/// Flag of `bpf_l4_csum_replace` (6.16).
const BPF_F_IPV6: u32 = 1 << 7;

/// The verifier gives up with EAGAIN when a signal comes in, and may as well be asked again.
const INTERRUPTIONS: u32 = 10;

/// Every program, with the kernel that brought what it cannot do without.
const PROGRAMS: [(&str, &str); 15] = [
    ("connect4", "5.7, bpf_get_netns_cookie"),
    ("connect6", "5.7, bpf_get_netns_cookie"),
    ("sendmsg4", "5.7, bpf_get_netns_cookie"),
    ("sendmsg6", "5.7, bpf_get_netns_cookie"),
    ("recvmsg4", "5.2, cgroup/recvmsg4"),
    ("recvmsg6", "5.2, cgroup/recvmsg6"),
    ("getpeername4", "5.8, cgroup/getpeername4"),
    ("getpeername6", "5.8, cgroup/getpeername6"),
    ("sock_ops", "4.16, changes of a connection's state"),
    ("sock_release", "5.9, cgroup/sock_release"),
    (
        "from_pod",
        "5.11, bpf_redirect_peer and bpf_ktime_get_coarse_ns",
    ),
    ("to_pod", "5.11, bpf_ktime_get_coarse_ns"),
    (
        "from_uplink",
        "5.11, bpf_redirect_neigh and bpf_ktime_get_coarse_ns",
    ),
    ("to_uplink", "5.11, bpf_ktime_get_coarse_ns"),
    ("xdp_uplink", "5.9, links of XDP programs"),
];

/// What the verifier had to walk through for a program.
#[derive(Clone, Debug)]
pub struct ProgramSize {
    pub name: &'static str,
    /// Instructions that the verifier processed (kernel 5.16).
    pub verified_instructions: Option<u32>,
}

pub(crate) struct Loaded {
    pub(crate) ebpf: Ebpf,
    pub(crate) sizes: Vec<ProgramSize>,
}

/// The pinned maps with their layouts. aya takes a pinned map as it is; one whose elements
/// have another size (a build that changed a type without a new layout version) would be
/// read wrongly by user space and refused by the verifier at best.
const LAYOUTS: [(&str, usize, usize); 27] = [
    (
        "SERVICES",
        size_of::<ServiceKey>(),
        size_of::<ServiceValue>(),
    ),
    ("SLOTS", size_of::<SlotKey>(), size_of::<u32>()),
    ("BACKENDS", size_of::<u32>(), size_of::<BackendValue>()),
    ("MEMBERS", size_of::<MemberKey>(), size_of::<u32>()),
    (
        "AFFINITY",
        size_of::<AffinityKey>(),
        size_of::<AffinityValue>(),
    ),
    ("CONNTRACK", size_of::<Tuple>(), size_of::<Ways>()),
    ("CONNTRACK_QUEUE", 0, size_of::<Queued>()),
    (
        "SOCKET_REVERSE",
        size_of::<SocketKey>(),
        size_of::<SocketVip>(),
    ),
    (
        "SOCKET_DATAGRAMS",
        size_of::<SocketKey>(),
        size_of::<SocketVip>(),
    ),
    (
        "SOCKET_FORWARD",
        size_of::<SocketKey>(),
        size_of::<SocketBackend>(),
    ),
    ("NODE_CONFIG", size_of::<u32>(), size_of::<NodeConfig>()),
    ("OVERLAY", size_of::<u32>(), size_of::<Overlay>()),
    ("NETNS", size_of::<u64>(), size_of::<NetNamespace>()),
    (
        "SOURCE_RANGES",
        size_of::<u32>() + size_of::<RangeKey>(),
        size_of::<u32>(),
    ),
    (
        "FRAGMENTS",
        size_of::<FragmentKey>(),
        size_of::<FragmentPorts>(),
    ),
    ("ENDPOINTS", size_of::<Addr>(), size_of::<Endpoint>()),
    ("UPLINKS", size_of::<u32>(), size_of::<Uplink>()),
    (
        "ANNOUNCED",
        size_of::<AnnouncedKey>(),
        size_of::<Announced>(),
    ),
    ("BALANCE", size_of::<MemberKey>(), size_of::<u32>()),
    ("TRAFFIC", size_of::<u32>(), size_of::<Traffic>()),
    ("POLICY_STATE", size_of::<u32>(), size_of::<PolicyState>()),
    ("POLICY_PODS", size_of::<Addr>(), size_of::<PolicyPod>()),
    ("POLICY_PEERS", size_of::<Addr>(), size_of::<PolicyPeer>()),
    (
        "POLICY_NETWORKS",
        size_of::<u32>() + size_of::<Addr>(),
        size_of::<PolicyPeer>(),
    ),
    (
        "POLICY_VERDICTS",
        size_of::<VerdictKey>(),
        size_of::<PolicyVerdict>(),
    ),
    (
        "POLICY_PORTS",
        size_of::<u32>() + size_of::<PolicyPortKey>(),
        size_of::<PolicyDecision>(),
    ),
    ("METRICS", size_of::<u32>(), size_of::<Counter>()),
];

fn check_pinned_layouts(pins: &PinDirectory) -> Result<()> {
    for (name, key, value) in LAYOUTS {
        let path = pins.maps().join(name);
        if !path.exists() {
            continue;
        }
        let info = MapInfo::from_pin(&path).map_err(|error| Error::map("look at", name, error))?;
        let held = (info.key_size() as usize, info.value_size() as usize);
        if held != (key, value) {
            return Err(Error::Layout {
                map: name,
                held,
                expected: (key, value),
            });
        }
    }
    Ok(())
}

pub(crate) fn load(config: &DatapathConfig, pins: &PinDirectory) -> Result<Loaded> {
    check_pinned_layouts(pins)?;
    let has_set_retval = u32::from(kernel_at_least(5, 18));
    let checksum_flag_ipv6 = if kernel_at_least(6, 16) {
        BPF_F_IPV6
    } else {
        0
    };
    let sizes = &config.capacities;
    let mut ebpf = EbpfLoader::new()
        .default_map_pin_directory(pins.maps())
        .override_global("HAS_SET_RETVAL", &has_set_retval, true)
        .override_global("L4_CHECKSUM_IPV6", &checksum_flag_ipv6, true)
        .map_max_entries("SERVICES", sizes.services)
        .map_max_entries("SLOTS", sizes.slots)
        .map_max_entries("MEMBERS", sizes.slots)
        .map_max_entries("TRAFFIC", sizes.services)
        .map_max_entries("BACKENDS", sizes.backends)
        .map_max_entries("CONNTRACK", sizes.conntrack)
        .map_max_entries("CONNTRACK_QUEUE", (sizes.conntrack / 2).max(1))
        .map_max_entries("AFFINITY", sizes.affinity)
        .map_max_entries("SOCKET_REVERSE", sizes.sockets)
        .map_max_entries("SOCKET_DATAGRAMS", (sizes.sockets / 4).max(1))
        .map_max_entries("SOCKET_FORWARD", sizes.sockets)
        .map_max_entries("ENDPOINTS", sizes.endpoints)
        .map_max_entries("HALF_OPEN", sizes.endpoints)
        .map_max_entries("SOURCE_RANGES", sizes.source_ranges)
        .map_max_entries("MAGLEV", sizes.maglev)
        .map_max_entries("FRAGMENTS", sizes.fragments)
        .map_max_entries("POLICY_PODS", sizes.endpoints)
        .map_max_entries("POLICY_PEERS", sizes.policy_peers)
        .map_max_entries("POLICY_NETWORKS", sizes.policy_peers)
        .map_max_entries("POLICY_VERDICTS", sizes.policy_verdicts)
        .map_max_entries("POLICY_PORTS", sizes.policy_verdicts)
        .load(OBJECT)
        .map_err(|source| Error::Object {
            source: Box::new(source),
        })?;
    let mut sizes = Vec::with_capacity(PROGRAMS.len());
    for (name, needs) in PROGRAMS {
        let program = program(&mut ebpf, name)?;
        let mut interrupted = 0;
        loop {
            let loaded = match program {
                Program::CgroupSockAddr(program) => program.load(),
                Program::CgroupSock(program) => program.load(),
                Program::SockOps(program) => program.load(),
                Program::SchedClassifier(program) => program.load(),
                Program::Xdp(program) => program.load(),
                _ => {
                    return Err(Error::Missing {
                        kind: "program of the expected type",
                        name,
                    });
                }
            };
            match loaded {
                Err(ProgramError::LoadError { io_error, .. })
                    if io_error.kind() == ErrorKind::WouldBlock && interrupted < INTERRUPTIONS =>
                {
                    interrupted += 1;
                }
                loaded => break loaded.map_err(|error| Error::program(name, needs, &error))?,
            }
        }
        let verified_instructions = program
            .info()
            .ok()
            .and_then(|info| info.verified_instruction_count());
        tracing::debug!(program = name, verified_instructions, "program loaded");
        sizes.push(ProgramSize {
            name,
            verified_instructions,
        });
    }
    Ok(Loaded { ebpf, sizes })
}

pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Program> {
    ebpf.program_mut(name).ok_or(Error::Missing {
        kind: "program",
        name,
    })
}

pub(crate) fn tc_program<'a>(
    ebpf: &'a mut Ebpf,
    name: &'static str,
) -> Result<&'a mut SchedClassifier> {
    match ebpf.program_mut(name) {
        Some(Program::SchedClassifier(program)) => Ok(program),
        _ => Err(Error::Missing {
            kind: "program",
            name,
        }),
    }
}

/// A version that cannot be read counts as old: the fallbacks work everywhere.
pub(crate) fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}

/// The verdict, the packet that the last of the runs left, and the time of one.
pub(crate) fn test_run(
    ebpf: &mut Ebpf,
    name: &str,
    packet: &[u8],
    ifindex: u32,
    repeat: u32,
) -> Result<(u32, Vec<u8>, Duration)> {
    let Some((known, _)) = PROGRAMS.iter().find(|(known, _)| *known == name) else {
        return Err(Error::Missing {
            kind: "program",
            name: "of that name",
        });
    };
    let mut out = vec![0; packet.len() + 256];
    if *known == "xdp_uplink" {
        // struct xdp_md: where the packet ends, and the interface that it came in by.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&ifindex.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            repeat,
            ..Default::default()
        };
        let result = xdp::program(ebpf)?
            .test_run(options)
            .map_err(|error| Error::attach(known, "a test packet", error))?;
        out.truncate(result.data_size_out as usize);
        return Ok((result.return_value, out, result.duration));
    }
    let program = tc_program(ebpf, known)?;
    // struct __sk_buff: the kernel takes `ifindex` (offset 40) from the context.
    let mut context = [0u8; 192];
    context[40..44].copy_from_slice(&ifindex.to_ne_bytes());
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        repeat,
        ..Default::default()
    };
    let result = program
        .test_run(options)
        .map_err(|error| Error::attach(known, "a test packet", error))?;
    out.truncate(result.data_size_out as usize);
    Ok((result.return_value, out, result.duration))
}
