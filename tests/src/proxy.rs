//! `kubectl proxy`: requests that no kubectl command would send, with kubectl's credentials.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Stdio};

use anyhow::{Context, Result};

use crate::http::{self, Response};
use crate::kubectl;

pub struct Proxy {
    process: Child,
    address: SocketAddr,
}

impl Proxy {
    pub fn start() -> Result<Self> {
        let mut process = kubectl::command()
            .args(["proxy", "--port=0"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("could not start kubectl proxy")?;
        let stdout = process
            .stdout
            .take()
            .context("kubectl proxy has a standard output")?;
        // "Starting to serve on 127.0.0.1:41234"
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let address = line.split_whitespace().last().unwrap_or_default().parse();
        let address = address.with_context(|| format!("kubectl proxy said `{line}`"))?;
        Ok(Self { process, address })
    }

    pub fn get(&self, path: &str) -> Result<Response> {
        http::get(self.address, path)
    }

    pub fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Response> {
        http::request(self.address, "POST", path, headers, body)
    }

    pub fn put_json(&self, path: &str, body: &[u8]) -> Result<Response> {
        http::request(
            self.address,
            "PUT",
            path,
            &[("Content-Type", "application/json")],
            body,
        )
    }

    pub fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Response> {
        http::request(self.address, method, path, headers, body)
    }

    pub fn post_json(&self, path: &str, body: &[u8]) -> Result<Response> {
        self.post(path, &[("Content-Type", "application/json")], body)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}
