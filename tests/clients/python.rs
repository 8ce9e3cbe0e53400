//! The PyPI package `kubernetes`.

use std::process::Command;

use crate::control_plane::ControlPlane;
use crate::{assert_passed, installed, script};

#[test]
fn the_python_client_does_its_work() {
    let control_plane = ControlPlane::start("python");
    let venv = control_plane.folder.join("venv");
    let made = installed(
        "python3 -m venv",
        Command::new("python3").args(["-m", "venv"]).arg(&venv),
    );
    let python = venv.join("bin").join("python");
    let Some(()) = made.and_then(|()| {
        let pip = [
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            "kubernetes",
        ];
        installed(
            "the PyPI package kubernetes",
            Command::new(&python).args(pip),
        )
    }) else {
        return;
    };
    let output = Command::new(&python)
        .arg(script("python/operations.py"))
        .env("KUBECONFIG", control_plane.kubeconfig())
        .output()
        .unwrap();
    assert_passed(&output);
}
