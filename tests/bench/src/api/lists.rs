//! LIST of all pods: how soon it begins, how fast it comes, what it costs the server in memory.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use http::Method;
use http_body_util::BodyExt as _;

use super::connection::Connection;
use super::report::List;
use super::server::ApiServer;
use crate::machine;

pub async fn run(server: &ApiServer, rounds: usize) -> Result<Vec<List>> {
    let mut lists = Vec::new();
    for _ in 0..rounds {
        let mut connection = Connection::open(&server.endpoint).await?;
        // Resets the peak (proc(5), clear_refs).
        std::fs::write(format!("/proc/{}/clear_refs", server.pid()), "5")
            .context("resetting the server's peak memory")?;
        let before = machine::resident_mib(server.pid()).unwrap_or(0.0);
        let begun = Instant::now();
        let response = connection
            .send(Method::GET, "/api/v1/pods", Bytes::new())
            .await?;
        ensure!(
            response.status().is_success(),
            "LIST: {}",
            response.status()
        );
        let mut body = response.into_body();
        let (mut first, mut bytes) = (None, 0);
        while let Some(frame) = body.frame().await {
            first.get_or_insert_with(|| begun.elapsed());
            bytes += frame?.data_ref().map_or(0, Bytes::len);
        }
        let seconds = begun.elapsed().as_secs_f64();
        let peak = machine::peak_mib(server.pid()).unwrap_or(0.0);
        lists.push(List {
            bytes,
            seconds,
            first_byte_ms: first.unwrap_or_default().as_secs_f64() * 1e3,
            extra_mib: (peak - before).max(0.0),
        });
    }
    Ok(lists)
}
