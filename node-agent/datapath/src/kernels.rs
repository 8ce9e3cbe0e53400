//! What the built programs need of a kernel, read from the object itself: a helper that
//! nobody noticed would make every older kernel refuse the whole program.
//!
//! The tables say which kernel brought what (include/uapi/linux/bpf.h and its history); the
//! tests hold them against the object and against the matrix in `docs/datapath.md`.

use std::collections::BTreeSet;
use std::path::Path;

mod stack;

static OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/windlass-ebpf-programs"));

/// What is supported at all.
const MINIMUM: Kernel = (5, 15);

type Kernel = (u32, u32);

/// Used by number: (number, name, since). Those above [`MINIMUM`] need a branch that older
/// kernels never look into.
const HELPERS: &[(i32, &str, Kernel)] = &[
    (1, "bpf_map_lookup_elem", (3, 19)),
    (2, "bpf_map_update_elem", (3, 19)),
    (3, "bpf_map_delete_elem", (3, 19)),
    (5, "bpf_ktime_get_ns", (4, 1)),
    (7, "bpf_get_prandom_u32", (4, 1)),
    (9, "bpf_skb_store_bytes", (4, 1)),
    (10, "bpf_l3_csum_replace", (4, 1)),
    (11, "bpf_l4_csum_replace", (4, 1)),
    (20, "bpf_skb_get_tunnel_key", (4, 3)),
    (21, "bpf_skb_set_tunnel_key", (4, 3)),
    (23, "bpf_redirect", (4, 4)),
    (26, "bpf_skb_load_bytes", (4, 5)),
    (28, "bpf_csum_diff", (4, 6)),
    (32, "bpf_skb_change_type", (4, 8)),
    (38, "bpf_skb_change_tail", (4, 9)),
    (44, "bpf_xdp_adjust_head", (4, 10)),
    (46, "bpf_get_socket_cookie", (4, 12)),
    (50, "bpf_skb_adjust_room", (4, 13)),
    (51, "bpf_redirect_map", (4, 14)),
    (59, "bpf_sock_ops_cb_flags_set", (4, 16)),
    (65, "bpf_xdp_adjust_tail", (4, 18)),
    (69, "bpf_fib_lookup", (4, 18)),
    (84, "bpf_sk_lookup_tcp", (4, 20)),
    (86, "bpf_sk_release", (4, 20)),
    (87, "bpf_map_push_elem", (4, 20)),
    (88, "bpf_map_pop_elem", (4, 20)),
    (89, "bpf_map_peek_elem", (4, 20)),
    (122, "bpf_get_netns_cookie", (5, 7)),
    (131, "bpf_ringbuf_reserve", (5, 8)),
    (132, "bpf_ringbuf_submit", (5, 8)),
    (152, "bpf_redirect_neigh", (5, 10)),
    (155, "bpf_redirect_peer", (5, 10)),
    (160, "bpf_ktime_get_coarse_ns", (5, 11)),
    (163, "bpf_check_mtu", (5, 12)),
    (187, "bpf_set_retval", (5, 18)),
];

const MAPS: &[(u32, &str, Kernel)] = &[
    (1, "hash", (3, 19)),
    (2, "array", (3, 19)),
    (5, "per-CPU hash", (4, 6)),
    (6, "per-CPU array", (4, 6)),
    (9, "LRU hash", (4, 10)),
    (11, "LPM trie", (4, 11)),
    (22, "queue", (4, 20)),
    (27, "ring buffer", (5, 8)),
];

/// By the section that a program stands in.
const HOOKS: &[(&str, &str, Kernel)] = &[
    ("classifier", "tc", (4, 1)),
    ("xdp", "XDP", (4, 8)),
    ("sockops", "sock_ops", (4, 13)),
    ("cgroup/connect4", "cgroup/connect4", (4, 17)),
    ("cgroup/connect6", "cgroup/connect6", (4, 17)),
    ("cgroup/sendmsg4", "cgroup/sendmsg4", (4, 18)),
    ("cgroup/sendmsg6", "cgroup/sendmsg6", (4, 18)),
    ("cgroup/recvmsg4", "cgroup/recvmsg4", (5, 2)),
    ("cgroup/recvmsg6", "cgroup/recvmsg6", (5, 2)),
    ("cgroup/getpeername4", "cgroup/getpeername4", (5, 8)),
    ("cgroup/getpeername6", "cgroup/getpeername6", (5, 8)),
    ("cgroup/sock_release", "cgroup/sock_release", (5, 9)),
];

/// Newer than [`MINIMUM`], and why an older kernel takes the program all the same.
const FALLBACKS: &[(&str, &str)] = &[("bpf_set_retval", "behind the constant HAS_SET_RETVAL")];

struct Section<'a> {
    name: &'a str,
    executable: bool,
    content: &'a [u8],
}

/// The sections of a 64-bit little-endian ELF file.
fn sections(elf: &[u8]) -> Vec<Section<'_>> {
    let number = |at: usize, bytes: usize| {
        let digits = elf[at..at + bytes].iter().rev();
        digits.fold(0_usize, |value, byte| value << 8 | usize::from(*byte))
    };
    let (table, size, count) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2));
    let header = |index: usize| table + index * size;
    let names = number(header(number(0x3e, 2)) + 24, 8);
    (0..count)
        .map(|index| {
            let at = header(index);
            let name = &elf[names + number(at, 4)..];
            let end = name.iter().position(|byte| *byte == 0).expect("names end");
            let (kind, flags) = (number(at + 4, 4), number(at + 8, 8));
            let (start, length) = (number(at + 24, 8), number(at + 32, 8));
            // SHT_NOBITS has no content in the file.
            let content = if kind == 8 {
                &[]
            } else {
                &elf[start..start + length]
            };
            Section {
                name: std::str::from_utf8(&name[..end]).expect("names are text"),
                executable: flags & 4 != 0,
                content,
            }
        })
        .collect()
}

fn word(bytes: &[u8]) -> i32 {
    i32::from_le_bytes(bytes[..4].try_into().expect("four bytes"))
}

fn helpers(sections: &[Section<'_>]) -> BTreeSet<i32> {
    let code = sections.iter().filter(|section| section.executable);
    // BPF_JMP | BPF_CALL with source register 0 is a helper; 1 is a function of the program.
    code.flat_map(|section| section.content.chunks_exact(8))
        .filter(|instruction| instruction[0] == 0x85 && instruction[1] >> 4 == 0)
        .map(|instruction| word(&instruction[4..]))
        .collect()
}

fn map_types(sections: &[Section<'_>]) -> BTreeSet<u32> {
    /// struct bpf_map_def as aya writes it: seven words, the type first.
    const DEFINITION: usize = 28;
    let maps = sections.iter().filter(|section| section.name == "maps");
    maps.flat_map(|section| section.content.chunks_exact(DEFINITION))
        .map(|definition| word(definition) as u32)
        .collect()
}

/// The rows of the matrix, as (name, kernel).
fn documented() -> BTreeSet<(String, Kernel)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/datapath.md");
    let text = std::fs::read_to_string(path).expect("docs/datapath.md");
    text.lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(str::trim);
            let names = cells.next()?;
            let (major, minor) = cells.next()?.split_once('.')?;
            let kernel = (major.parse().ok()?, minor.parse().ok()?);
            let names = names
                .split(',')
                .map(|name| name.trim().trim_matches('`').to_owned());
            Some(names.map(move |name| (name, kernel)).collect::<Vec<_>>())
        })
        .flatten()
        .collect()
}

fn used() -> Vec<(&'static str, Kernel)> {
    let sections = sections(OBJECT);
    let mut used = Vec::new();
    for number in helpers(&sections) {
        let known = HELPERS.iter().find(|helper| helper.0 == number);
        let (_, name, since) = known.unwrap_or_else(|| {
            panic!("helper {number} is new here: say in HELPERS which kernel brought it")
        });
        used.push((*name, *since));
    }
    for number in map_types(&sections) {
        let known = MAPS.iter().find(|map| map.0 == number);
        let (_, name, since) = known.unwrap_or_else(|| {
            panic!("map type {number} is new here: say in MAPS which kernel brought it")
        });
        used.push((*name, *since));
    }
    for section in sections
        .iter()
        .filter(|it| it.executable && it.name != ".text")
    {
        let known = HOOKS.iter().find(|hook| hook.0 == section.name);
        let (_, name, since) = known.unwrap_or_else(|| {
            panic!(
                "{} is new here: say in HOOKS which kernel brought it",
                section.name
            )
        });
        used.push((*name, *since));
    }
    used
}

#[test]
fn the_programs_need_no_kernel_newer_than_the_minimum() {
    let used = used();
    for (name, since) in &used {
        let has_fallback = FALLBACKS.iter().any(|(known, _)| known == name);
        assert!(
            *since <= MINIMUM || has_fallback,
            "{name} came with {}.{}",
            since.0,
            since.1
        );
    }
    // The object was read, and not something else.
    for needed in [
        "bpf_map_lookup_elem",
        "bpf_redirect_peer",
        "hash",
        "ring buffer",
        "tc",
    ] {
        assert!(used.iter().any(|(name, _)| *name == needed), "{needed}");
    }
}

#[test]
fn the_matrix_in_the_docs_lists_everything_that_is_used() {
    let documented = documented();
    let missing: Vec<_> = used()
        .into_iter()
        .filter(|(name, since)| !documented.contains(&((*name).to_owned(), *since)))
        .collect();
    assert!(
        missing.is_empty(),
        "docs/datapath.md does not list {missing:?}"
    );
}
