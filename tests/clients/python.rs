//! The PyPI package `kubernetes`.

use anyhow::Result;
use windlass_tests::foreign_client::Script;

use crate::control_plane::ControlPlane;
use crate::script;

#[test]
fn the_python_client_does_its_work() -> Result<()> {
    let control_plane = ControlPlane::start("python");
    let operations = script("python/operations.py");
    match Script::python(&operations, &control_plane.folder)? {
        Some(script) => script.run(&control_plane.kubeconfig(), &[]),
        None => Ok(()),
    }
}
