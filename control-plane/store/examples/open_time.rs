//! How long a store with many objects takes to open, after an orderly end and after a kill, and what it
//! then holds in memory:
//!
//! ```text
//! cargo run --release -p windlass-store --example open_time -- FOLDER
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use windlass_store::{Embedded, EmbeddedOptions, Expect, RangeRequest, Store};

const OBJECTS: usize = 100_000;
const VALUE: usize = 2_000;

#[tokio::main]
#[allow(clippy::print_stdout, reason = "this program's purpose")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: open_time FOLDER")?;
    let path = Path::new(&folder).join("open-time.redb");
    match arguments.next().as_deref() {
        Some("fill") => return fill(&path).await,
        Some("open") => return open(&path).await,
        _ => {}
    }
    let _ = std::fs::remove_file(&path);
    let program = std::env::current_exe()?;
    for (role, what) in [
        ("fill", "killed"),
        ("open", "after a kill"),
        ("open", "after an orderly end"),
    ] {
        println!("{what}:");
        std::process::Command::new(&program)
            .arg(&folder)
            .arg(role)
            .status()?;
    }
    println!("file: {} MB", std::fs::metadata(&path)?.len() >> 20);
    std::fs::remove_file(&path)?;
    Ok(())
}

async fn fill(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(Embedded::open(path, EmbeddedOptions::default()).await?);
    let writers = (0..256).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in (writer..OBJECTS).step_by(256) {
                let key = format!("/registry/pods/namespace-{}/pod-{n}", n % 100);
                let value = Bytes::from(vec![b'x'; VALUE]);
                store.put(&key, value, Expect::Absent, None).await?;
            }
            Ok::<_, windlass_store::StoreError>(())
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await??;
    }
    // As kill -9 would: nothing is closed.
    std::process::abort();
}

#[allow(clippy::print_stdout, reason = "this program's purpose")]
async fn open(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let start = Instant::now();
    let store = Embedded::open(path, EmbeddedOptions::default()).await?;
    let opened = start.elapsed();
    let start = Instant::now();
    let all = store
        .range(RangeRequest {
            prefix: "/registry/pods/",
            ..Default::default()
        })
        .await?;
    println!(
        "  opened in {opened:?}, {} objects listed in {:?}",
        all.items.len(),
        start.elapsed()
    );
    let status = std::fs::read_to_string("/proc/self/status")?;
    let resident = status
        .lines()
        .find(|line| line.starts_with("VmRSS"))
        .unwrap_or_default();
    println!("  {resident}");
    Ok(())
}
