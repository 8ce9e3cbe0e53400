//! Pods through clients that nobody here wrote, besides kubectl: what these expect of exec, attach, port-forward and logs
//! is what Kubernetes' users expect. What needs no node is in the suite `clients`.

mod kube_rs;

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::Result;
use windlass_tests::cluster::{self, Cluster};
use windlass_tests::foreign_client::Script;
use windlass_tests::namespace::Namespace;

/// Where a client is installed, and gone with the test.
struct Folder(PathBuf);

impl Folder {
    fn create(purpose: &str) -> Result<Self> {
        let name = format!("windlass-{purpose}-{}", std::process::id());
        let folder = Self(env::temp_dir().join(name));
        fs::create_dir_all(&folder.0)?;
        Ok(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("e2e/other_clients")
        .join(name)
}

#[test]
fn pods_answer_the_python_client() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let folder = Folder::create("python")?;
    let Some(script) = Script::python(&script("python.py"), &folder.0)? else {
        return Ok(());
    };
    let namespace = Namespace::create("python")?;
    script.run(&cluster::kubeconfig(), &[namespace.name()])
}

#[test]
fn pods_answer_the_javascript_client() -> Result<()> {
    let _cluster = Cluster::shared()?;
    let folder = Folder::create("javascript")?;
    let Some(script) = Script::javascript(&script("javascript.mjs"), &folder.0)? else {
        return Ok(());
    };
    let namespace = Namespace::create("javascript")?;
    script.run(&cluster::kubeconfig(), &[namespace.name()])
}
