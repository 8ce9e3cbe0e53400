//! `cargo xtask setup`: a machine that can build and run Windlass.
//!
//! Each step first looks whether it is satisfied. A step that fails does not stop the others; at the end the
//! missing ones are listed, each with what to do about it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::{apt, bpf_linker, kernels, process, rust_src};

/// What cannot be done where something is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Need {
    Build,
    Cluster,
    Tests,
}

struct Step {
    name: &'static str,
    need: Need,
    purpose: &'static str,
    satisfied: fn() -> bool,
    install: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step {
        name: "C and C++ compiler",
        need: Need::Build,
        purpose: "links every binary and compiles the TLS library's assembly",
        satisfied: || has("cc") && has("c++"),
        install: || apt::install(&["build-essential"]),
    },
    Step {
        name: "rust-src",
        need: Need::Build,
        purpose: "core is compiled for the eBPF target from source",
        satisfied: rust_src::present,
        install: rust_src::install,
    },
    Step {
        name: "bpf-linker",
        need: Need::Build,
        purpose: "links the eBPF programs",
        satisfied: bpf_linker::present,
        install: bpf_linker::install,
    },
    Step {
        name: "containerd",
        need: Need::Cluster,
        purpose: "the container runtime",
        satisfied: || has("containerd") && has("ctr") && has("containerd-shim-runc-v2"),
        install: || apt::install(&["containerd"]),
    },
    Step {
        name: "runc",
        need: Need::Cluster,
        purpose: "what containerd starts containers with",
        satisfied: || has("runc"),
        install: || apt::install(&["runc"]),
    },
    Step {
        name: "CNI loopback plugin",
        need: Need::Cluster,
        purpose: "containerd brings up each pod's loopback interface with it",
        satisfied: || loopback_plugin().is_some(),
        install: || apt::install(&["containernetworking-plugins"]),
    },
    Step {
        name: "ip (iproute2)",
        need: Need::Cluster,
        purpose: "makes the namespace that plays the outside",
        satisfied: || has("ip"),
        install: || apt::install(&["iproute2"]),
    },
    Step {
        name: "kubectl",
        need: Need::Cluster,
        purpose: "waits for the cluster, and is what you use it with",
        satisfied: || has("kubectl"),
        install: || apt::install(&["kubernetes-client"]),
    },
    Step {
        name: "static busybox",
        need: Need::Cluster,
        purpose: "becomes the image windlass.dev/busybox:dev",
        satisfied: || static_busybox().is_some(),
        install: || apt::install(&["busybox-static"]),
    },
    Step {
        name: "QEMU",
        need: Need::Tests,
        purpose: "boots other kernels for the datapath's tests",
        satisfied: || kernels::QEMU.is_none_or(has),
        install: || apt::install(&["qemu-system-x86"]),
    },
    Step {
        name: "etcd",
        need: Need::Tests,
        purpose: "the store that several API servers share, for its tests",
        satisfied: || has("etcd"),
        install: || apt::install(&["etcd-server"]),
    },
    Step {
        name: "iptables and nft",
        need: Need::Tests,
        purpose: "for the test that proves that Windlass adds no rule, and for the benchmark",
        satisfied: || has("iptables-save") && has("nft"),
        install: || apt::install(&["iptables", "nftables"]),
    },
];

/// Installs what is missing of what some things need.
pub fn run(needs: &[Need]) -> Result<()> {
    let mut missing = Vec::new();
    for step in of(needs) {
        if (step.satisfied)() {
            println!("  {:<22} ok", step.name);
            continue;
        }
        println!("  {:<22} missing: installing ({})", step.name, step.purpose);
        let outcome = (step.install)();
        if (step.satisfied)() {
            println!("  {:<22} installed", step.name);
        } else {
            let why = match outcome {
                Ok(()) => {
                    "the installation ended without error, but it is still not found".to_owned()
                }
                Err(error) => format!("{error:#}"),
            };
            missing.push(format!("{} ({}): {why}", step.name, step.purpose));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    bail!("still missing:\n  - {}", missing.join("\n  - "))
}

/// The steps that are not satisfied, without doing anything about them.
pub fn unsatisfied(needs: &[Need]) -> Vec<&'static str> {
    of(needs)
        .filter(|step| !(step.satisfied)())
        .map(|step| step.name)
        .collect()
}

fn of(needs: &[Need]) -> impl Iterator<Item = &'static Step> {
    STEPS.iter().filter(|step| needs.contains(&step.need))
}

/// The CNI project's loopback plugin, where distributions put it.
pub fn loopback_plugin() -> Option<&'static Path> {
    [
        "/opt/cni/bin/loopback",
        "/usr/lib/cni/loopback",
        "/usr/libexec/cni/loopback",
    ]
    .into_iter()
    .map(Path::new)
    .find(|file| file.is_file())
}

/// A busybox that runs in an image that holds nothing else: one without a program interpreter.
pub fn static_busybox() -> Option<std::path::PathBuf> {
    [
        "/bin/busybox",
        "/usr/bin/busybox",
        "/usr/lib/busybox/busybox-static",
    ]
    .into_iter()
    .map(std::path::PathBuf::from)
    .find(|file| std::fs::read(file).is_ok_and(|elf| is_static_elf(&elf)))
}

/// Whether a 64-bit little-endian ELF file has no `PT_INTERP` segment.
pub fn is_static_elf(elf: &[u8]) -> bool {
    const PT_INTERP: u32 = 3;
    let half = |at: usize| {
        elf.get(at..at + 2)
            .map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))
    };
    let word = |at: usize| {
        elf.get(at..at + 4)
            .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    };
    if !elf.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(offset), Some(size), Some(count)) = (word(32), half(54), half(56)) else {
        return false;
    };
    let Ok(offset) = usize::try_from(offset) else {
        return false;
    };
    (0..count).all(|index| word(offset + index * size).is_some_and(|kind| kind != PT_INTERP))
}

fn has(program: &str) -> bool {
    process::find_program(program).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elf(segments: &[u32]) -> Vec<u8> {
        let mut file = vec![0u8; 64 + segments.len() * 56];
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[32] = 64;
        file[54] = 56;
        file[56] = u8::try_from(segments.len()).unwrap();
        for (index, kind) in segments.iter().enumerate() {
            file[64 + index * 56..][..4].copy_from_slice(&kind.to_le_bytes());
        }
        file
    }

    #[test]
    fn a_program_with_an_interpreter_is_not_static() {
        assert!(is_static_elf(&elf(&[1, 1])));
        assert!(!is_static_elf(&elf(&[6, 3, 1])));
        assert!(!is_static_elf(b"#!/bin/sh"));
        assert!(!is_static_elf(&elf(&[1])[..66]));
    }
}
