//! The npm package `@kubernetes/client-node`, in a version that the Node.js of most distributions runs.

use std::fs;
use std::process::Command;

use crate::control_plane::ControlPlane;
use crate::{assert_passed, installed, script};

#[test]
fn the_javascript_client_does_its_work() {
    let control_plane = ControlPlane::start("javascript");
    let folder = control_plane.folder.join("npm");
    fs::create_dir_all(&folder).unwrap();
    let npm = [
        "install",
        "--no-audit",
        "--no-fund",
        "@kubernetes/client-node@1.3.0",
    ];
    let mut install = Command::new("npm");
    install.args(npm).current_dir(&folder);
    if installed("the npm package @kubernetes/client-node", &mut install).is_none() {
        return;
    }
    // Packages are looked for beside the script.
    let own = folder.join("operations.mjs");
    fs::copy(script("javascript/operations.mjs"), &own).unwrap();
    let output = Command::new("node")
        .arg(own)
        .env("KUBECONFIG", control_plane.kubeconfig())
        .output()
        .unwrap();
    assert_passed(&output);
}
