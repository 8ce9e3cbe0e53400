//! The npm package `@kubernetes/client-node`.

use anyhow::Result;
use windlass_tests::foreign_client::Script;

use crate::control_plane::ControlPlane;
use crate::script;

#[test]
fn the_javascript_client_does_its_work() -> Result<()> {
    let control_plane = ControlPlane::start("javascript");
    let operations = script("javascript/operations.mjs");
    match Script::javascript(&operations, &control_plane.folder)? {
        Some(script) => script.run(&control_plane.kubeconfig(), &[]),
        None => Ok(()),
    }
}
