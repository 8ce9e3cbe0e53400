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

/// About 2.4 KB, of which pods of one Deployment have all but a tenth in common.
fn pod(number: usize) -> Bytes {
    let uid = |salt: usize| {
        let half = |n: usize| (n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        format!(
            "{:016x}{:016x}",
            half(number * 4 + salt),
            half(number * 4 + salt + 1)
        )
    };
    let time = format!(
        "2026-01-{:02}T{:02}:{:02}:{:02}Z",
        number % 28 + 1,
        number % 24,
        number % 60,
        number % 59
    );
    let owned = r#"f:a{".":{},"f:name":{},"f:image":{},"f:resources":{},"f:env":{},"f:ports":{}}"#
        .repeat(12);
    let text = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"pod-{number}","namespace":"namespace-{}","uid":"{}",
        "creationTimestamp":"{time}","labels":{{"app":"web-{}","pod-template-hash":"{:x}"}},"ownerReferences":[{{"apiVersion":"apps/v1",
        "kind":"ReplicaSet","name":"web-{}","uid":"{}","controller":true}}],"managedFields":[{{"manager":"controller-manager",
        "operation":"Update","apiVersion":"v1","time":"{time}","fieldsType":"FieldsV1","fieldsV1":{{{owned:?}:{{}}}}}}]}},
        "spec":{{"containers":[{{"name":"main","image":"example.test/library/server:1.2.3","resources":{{"requests":{{"cpu":"100m",
        "memory":"128Mi"}}}},"terminationMessagePath":"/dev/termination-log","imagePullPolicy":"IfNotPresent"}}],"restartPolicy":"Always",
        "terminationGracePeriodSeconds":30,"dnsPolicy":"ClusterFirst","schedulerName":"default-scheduler"}},"status":{{"phase":"Pending"}}}}"#,
        number % 100,
        uid(0),
        number % 500,
        number % 500,
        number % 500,
        uid(2),
    );
    Bytes::from(text)
}

async fn fill(path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let store = Arc::new(Embedded::open(path, EmbeddedOptions::default()).await?);
    let writers = (0..256).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for n in (writer..OBJECTS).step_by(256) {
                let key = format!("/registry/pods/namespace-{}/pod-{n}", n % 100);
                let value = pod(n);
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
