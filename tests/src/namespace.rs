//! A Namespace of its own for each test, gone when the test ends.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::eventually;
use crate::kubectl::{Said, kubectl, kubectl_with_input, try_kubectl};

pub struct Namespace {
    name: String,
}

impl Namespace {
    pub fn create(purpose: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("e2e-{purpose}-{}-{number}", std::process::id());
        kubectl(&["create", "namespace", &name])?;
        let namespace = Self { name };
        // Pods name it, so they are refused until the controller has made it.
        eventually::until(
            Duration::from_secs(20),
            "the default ServiceAccount",
            || {
                Ok(namespace
                    .try_run(&["get", "serviceaccount", "default"])?
                    .success)
            },
        )?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `kubectl -n <this namespace> …`
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        kubectl(&self.with_namespace(arguments))
    }

    pub fn try_run(&self, arguments: &[&str]) -> Result<Said> {
        try_kubectl(&self.with_namespace(arguments), "")
    }

    pub fn try_run_with_input(&self, arguments: &[&str], input: &str) -> Result<Said> {
        try_kubectl(&self.with_namespace(arguments), input)
    }

    pub fn apply(&self, manifest: &str) -> Result<String> {
        kubectl_with_input(&self.with_namespace(&["apply", "-f", "-"]), manifest)
    }

    pub fn get(&self, what: &[&str]) -> Result<Value> {
        let mut arguments = vec!["get"];
        arguments.extend(what);
        arguments.extend(["-o", "json"]);
        let text = self.run(&arguments)?;
        serde_json::from_str(&text).with_context(|| format!("kubectl {}", arguments.join(" ")))
    }

    /// One field, by kubectl's own JSONPath; empty when it is not set.
    pub fn field(&self, what: &[&str], path: &str) -> Result<String> {
        let template = format!("jsonpath={path}");
        let mut arguments = vec!["get"];
        arguments.extend(what);
        arguments.extend(["-o", &template]);
        self.run(&arguments)
    }

    pub fn wait_ready(&self, pod: &str) -> Result<()> {
        self.run(&[
            "wait",
            "--for=condition=Ready",
            "--timeout=60s",
            &format!("pod/{pod}"),
        ])?;
        Ok(())
    }

    /// Starts a [`client_pod`]; returns when it can be told what to do.
    pub fn start_client(&self, name: &str) -> Result<()> {
        self.apply(&client_pod(name))?;
        self.wait_ready(name)
    }

    fn with_namespace<'a>(&'a self, arguments: &[&'a str]) -> Vec<&'a str> {
        [&["-n", &self.name], arguments].concat()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What was there when the test failed is what one wants to see then.
            for what in [&["get", "all", "-o", "wide"][..], &["get", "events"]] {
                if let Ok(said) = self.try_run(what) {
                    eprintln!(
                        "--- kubectl {}\n{}{}",
                        what.join(" "),
                        said.stdout,
                        said.stderr
                    );
                }
            }
        }
        try_kubectl(&["delete", "namespace", &self.name, "--wait=false"], "").ok();
    }
}

/// A pod that waits to be told what to do.
pub fn client_pod(name: &str) -> String {
    format!(
        r#"{{"apiVersion": "v1", "kind": "Pod",
            "metadata": {{"name": "{name}", "labels": {{"run": "{name}"}}}},
            "spec": {{"terminationGracePeriodSeconds": 0, "containers": [{{
                "name": "busybox", "image": "windlass.dev/busybox:dev", "imagePullPolicy": "IfNotPresent",
                "command": ["sh", "-c", "echo ready; exec sleep 100000"]}}]}}}}"#
    )
}
