//! Images without a registry: one layer with busybox in it, as `docker save` writes them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::Path;

use serde_json::json;
use sha2::{Digest, Sha256};

const APPLETS: &[&str] = &[
    "sh", "sleep", "cat", "echo", "touch", "test", "id", "env", "hostname", "true", "false", "wc",
    "ls", "mount", "grep", "head", "yes", "rm", "kill", "nc", "httpd", "mkdir",
];

/// Writes an archive with `name`, which runs `entrypoint` from busybox.
pub(crate) fn write(path: &Path, name: &str, entrypoint: &[&str]) {
    let layer = layer();
    let digest: String = Sha256::digest(&layer)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let config = json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    let mut archive = tar::Builder::new(fs::File::create(path).unwrap());
    add(&mut archive, "layer.tar", &layer, 0o644);
    add(
        &mut archive,
        "config.json",
        config.to_string().as_bytes(),
        0o644,
    );
    add(
        &mut archive,
        "manifest.json",
        manifest.to_string().as_bytes(),
        0o644,
    );
    archive.finish().unwrap();
}

fn layer() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok());
    let busybox = busybox.expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    for folder in ["bin/", "tmp/", "etc/", "dev/", "proc/", "sys/"] {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Directory);
        header.set_mode(if folder == "tmp/" { 0o1777 } else { 0o755 });
        header.set_size(0);
        layer
            .append_data(&mut header, folder, std::io::empty())
            .unwrap();
    }
    add(&mut layer, "bin/busybox", &busybox, 0o755);
    add(
        &mut layer,
        "etc/passwd",
        b"root:x:0:0:root:/:/bin/sh\n",
        0o644,
    );
    add(&mut layer, "etc/group", b"root:x:0:\n", 0o644);
    for applet in APPLETS {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    layer.into_inner().unwrap()
}

fn add<W: std::io::Write>(archive: &mut tar::Builder<W>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    archive.append_data(&mut header, path, content).unwrap();
}
