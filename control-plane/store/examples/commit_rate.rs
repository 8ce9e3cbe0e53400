//! Commits per second of the embedded store on the disk under a folder, beside a bare fdatasync there:
//!
//! ```text
//! cargo run --release -p windlass-store --example commit_rate -- FOLDER
//! ```

use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use windlass_store::{Embedded, EmbeddedOptions, Expect, Store};

const VALUE: usize = 1_500;
const TIME: Duration = Duration::from_secs(4);

#[tokio::main]
#[allow(clippy::print_stdout, reason = "this program's purpose")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args().nth(1).ok_or("usage: commit_rate FOLDER")?;
    let folder = Path::new(&folder).join(format!("commit-rate-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    println!("fdatasync alone: {:.0}/s", fdatasync_rate(&folder)?);
    for clients in [1, 32, 128] {
        let path = folder.join(format!("{clients}.redb"));
        let store = Arc::new(Embedded::open(&path, EmbeddedOptions::default()).await?);
        let mut times = measure(store, clients).await?;
        times.sort();
        let rate = times.len() as f64 / TIME.as_secs_f64();
        let percentile =
            |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
        println!(
            "{clients} clients: {rate:.0} writes/s, p50 {:.1} ms, p99 {:.1} ms",
            percentile(50),
            percentile(99)
        );
    }
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn fdatasync_rate(folder: &Path) -> std::io::Result<f64> {
    let mut file = std::fs::File::create(folder.join("plain"))?;
    let value = [b'x'; VALUE];
    let start = Instant::now();
    let mut count = 0;
    while start.elapsed() < TIME {
        file.write_all(&value)?;
        file.sync_data()?;
        count += 1;
    }
    Ok(f64::from(count) / TIME.as_secs_f64())
}

async fn measure(
    store: Arc<Embedded>,
    clients: usize,
) -> Result<Vec<Duration>, Box<dyn std::error::Error>> {
    let end = Instant::now() + TIME;
    let clients: Vec<_> = (0..clients)
        .map(|client| {
            let store = store.clone();
            tokio::spawn(async move {
                let value = Bytes::from(vec![b'x'; VALUE]);
                let mut times = Vec::new();
                while Instant::now() < end {
                    let key = format!("/registry/configmaps/{client}/{}", times.len());
                    let start = Instant::now();
                    store.put(&key, value.clone(), Expect::Absent, None).await?;
                    times.push(start.elapsed());
                }
                Ok::<_, windlass_store::StoreError>(times)
            })
        })
        .collect();
    let mut times = Vec::new();
    for client in clients {
        times.extend(client.await??);
    }
    Ok(times)
}
