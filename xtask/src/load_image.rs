//! `cargo xtask load-image`: a cluster without a registry still gets the image that was built a minute ago.

use std::path::Path;

use anyhow::{Context, Result, bail};

use crate::layout::NodeLayout;
use crate::{containerd, layout, preflight};

pub fn run(files: &[String]) -> Result<()> {
    if files.is_empty() {
        bail!("usage: cargo xtask load-image FILE.tar...");
    }
    preflight::require_root("load-image")?;
    let nodes: Vec<NodeLayout> = layout::all_nodes()
        .filter(|&node| containerd::answers(node))
        .collect();
    if nodes.is_empty() {
        bail!("no cluster runs here: `cargo xtask up` starts one");
    }
    for file in files {
        let archive = Path::new(file);
        if !archive.is_file() {
            bail!("{file}: no such file");
        }
        let mut images = Vec::new();
        for &node in &nodes {
            images = containerd::import(node, archive, None).with_context(|| {
                format!("{file} is not an OCI or docker archive that containerd can read")
            })?;
        }
        println!("{file}: loaded {}{}", images.join(", "), on(&nodes));
    }
    Ok(())
}

fn on(nodes: &[NodeLayout]) -> String {
    match nodes {
        [_] => String::new(),
        _ => format!(" on {} nodes", nodes.len()),
    }
}
