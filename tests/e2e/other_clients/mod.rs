//! Pods through clients that nobody here wrote, besides kubectl: what these expect of exec, attach, port-forward and logs
//! is what Kubernetes' users expect. What needs no node is in the suite `clients`.

mod kube_rs;

use std::path::Path;

use anyhow::Result;
use windlass_tests::cluster::{self, Cluster};
use windlass_tests::foreign_client::Script;
use windlass_tests::namespace::Namespace;

type Install = fn(&Path, &Path) -> Result<Option<Script>>;

/// Runs a script of this folder in a namespace of its own, by a client that is installed for as long as that takes.
fn ask(client: &str, script: &str, install: Install) -> Result<()> {
    let _cluster = Cluster::shared()?;
    let folder = tempfile::tempdir()?;
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("e2e/other_clients");
    let Some(script) = install(&scripts.join(script), folder.path())? else {
        return Ok(());
    };
    let namespace = Namespace::create(client)?;
    script.run(&cluster::kubeconfig(), &[namespace.name()])
}

#[test]
fn pods_answer_the_python_client() -> Result<()> {
    ask("python", "python.py", Script::python)
}

#[test]
fn pods_answer_the_javascript_client() -> Result<()> {
    ask("javascript", "javascript.mjs", Script::javascript)
}
