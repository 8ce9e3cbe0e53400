//! Official clients of other languages, installed from their package registries into a folder of the test.
//!
//! Where the language, its installer or the registry is not there, this says so and answers `None`: it would say nothing
//! about the product.

#![allow(
    clippy::print_stdout,
    reason = "what is left out is told beside the tests' results"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};

/// A script with all it needs to run.
pub struct Script {
    interpreter: PathBuf,
    file: PathBuf,
}

impl Script {
    /// For the PyPI package `kubernetes`.
    ///
    /// # Errors
    /// When the script cannot be read.
    pub fn python(file: &Path, folder: &Path) -> Result<Option<Self>> {
        let venv = folder.join("venv");
        let interpreter = venv.join("bin").join("python");
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(&venv);
        let mut install = Command::new(&interpreter);
        install.args(["-m", "pip", "install", "--quiet"]);
        install.args(["--disable-pip-version-check", "kubernetes"]);
        let ready = is_installed("python3 -m venv", &mut make)
            && is_installed("the PyPI package kubernetes", &mut install);
        let script = || Self {
            interpreter,
            file: file.to_owned(),
        };
        Ok(ready.then(script))
    }

    /// For the npm package `@kubernetes/client-node`, in a version that the Node.js of most distributions runs.
    ///
    /// # Errors
    /// When the script cannot be copied to where its packages are.
    pub fn javascript(file: &Path, folder: &Path) -> Result<Option<Self>> {
        let folder = folder.join("npm");
        fs::create_dir_all(&folder)?;
        let mut install = Command::new("npm");
        install.args(["install", "--no-audit", "--no-fund"]);
        install.arg("@kubernetes/client-node@1.3.0");
        install.current_dir(&folder);
        if !is_installed("the npm package @kubernetes/client-node", &mut install) {
            return Ok(None);
        }
        // Packages are looked for beside the script.
        let own = folder.join(file.file_name().context("a script has a name")?);
        fs::copy(file, &own).with_context(|| format!("copying {}", file.display()))?;
        Ok(Some(Self {
            interpreter: "node".into(),
            file: own,
        }))
    }

    /// Runs it against the cluster of `kubeconfig`; all its checks must hold.
    ///
    /// # Errors
    /// What the script says when one does not.
    pub fn run(&self, kubeconfig: &Path, arguments: &[&str]) -> Result<()> {
        let output = Command::new(&self.interpreter)
            .arg(&self.file)
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .output()
            .with_context(|| format!("starting {}", self.interpreter.display()))?;
        ensure!(output.status.success(), "{}", said(&output));
        Ok(())
    }
}

fn is_installed(what: &str, installer: &mut Command) -> bool {
    match installer.output() {
        Ok(output) if output.status.success() => return true,
        Ok(output) => println!("left out: {what} could not be installed: {}", said(&output)),
        Err(error) => println!("left out: {what} is not available here: {error}"),
    }
    false
}

fn said(output: &Output) -> String {
    let all = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&all).trim().to_owned()
}
