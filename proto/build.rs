//! Compiles every contract under this folder, without `protoc`.
//!
//! protox parses, tonic-prost-build generates: so nobody needs a protobuf
//! compiler on their machine, and adding a contract is adding a file.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?);
    let mut contracts = Vec::new();
    for folder in ["cri", "csi", "containerd", "grpc", "kubelet", "windlass"] {
        let folder = root.join(folder);
        println!("cargo::rerun-if-changed={}", folder.display());
        collect(&folder, &mut contracts)?;
    }
    contracts.sort();

    let descriptors = protox::compile(&contracts, [&root])?;
    tonic_prost_build::configure()
        .build_transport(true)
        .include_file("contracts.rs")
        .compile_fds(descriptors)?;
    Ok(())
}

/// All `.proto` files below `folder`, if there is such a folder.
fn collect(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, into)?;
        } else if path
            .extension()
            .is_some_and(|extension| extension == "proto")
        {
            into.push(path);
        }
    }
    Ok(())
}
