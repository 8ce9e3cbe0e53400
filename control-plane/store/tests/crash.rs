//! The embedded store under kill -9 and on a full disk.
//!
//! Both need a process of their own, which is this program started again with a role as its argument;
//! hence a `main` instead of the test harness.
#![allow(clippy::print_stdout, reason = "reports as the test harness would")]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use windlass_store::{
    Embedded, EmbeddedOptions, Expect, KeyValue, RangeRequest, Revision, Store, StoreError,
};

const ROUNDS: usize = 40;
const WRITERS: usize = 6;

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let role = arguments.get(1).map(String::as_str);
    match (role, arguments.get(2)) {
        (Some("write-until-killed"), Some(path)) => return block_on(write_until_killed(path)),
        (Some("fill"), Some(folder)) => return block_on(fill(folder)),
        // What tools ask of a harness.
        (Some("--list"), _) => return,
        _ => {}
    }
    killed_at_any_moment_nothing_acknowledged_is_lost();
    println!("test killed_at_any_moment_nothing_acknowledged_is_lost ... ok");
    a_full_disk_refuses_writes_and_recovers();
    println!("test a_full_disk_refuses_writes_and_recovers ... ok");
}

fn block_on<F: Future>(future: F) -> F::Output {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(future)
}

fn start(role: &str, path: &Path) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .arg(role)
        .arg(path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("start this program again")
}

// -- kill -9 ----------------------------------------------------------------------------------------------

/// Each writer owns a key and writes 1, 2, 3, ... to it, deleting it now and then; every acknowledgement is
/// a line on the pipe, written with one call, so that none is lost with the process.
async fn write_until_killed(path: &str) {
    // Little history and small steps, so that compaction and checkpoints are cut off too.
    let options = EmbeddedOptions {
        max_history_events: 64,
        checkpoint_bytes: 64 << 10,
        ..Default::default()
    };
    let store = Arc::new(Embedded::open(path.as_ref(), options).await.expect("open"));
    let output = Arc::new(Mutex::new(std::io::stdout()));
    report(
        &output,
        "open",
        store.current_revision().await.expect("revision"),
        0,
    );
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| tokio::spawn(write_forever(store.clone(), output.clone(), writer)))
        .collect();
    for writer in writers {
        writer.await.expect("a writer");
    }
}

async fn write_forever(store: Arc<Embedded>, output: Arc<Mutex<std::io::Stdout>>, writer: usize) {
    let key = format!("/writer/{writer}");
    let count = format!("/count/{writer}");
    let before = store.get(&count, None).await.expect("get");
    let mut n = before.map_or(0, |kv| number(&kv));
    loop {
        n += 1;
        let padded = Bytes::from(format!("{n} {}", "x".repeat((n as usize * 131) % 3_000)));
        let revision = store
            .put(&count, padded.clone(), Expect::Any, None)
            .await
            .expect("put");
        report(&output, &count, revision, n);
        let revision = if n % 5 == 0 {
            match store.delete(&key, Expect::Any).await {
                Ok((revision, _)) => revision,
                Err(StoreError::Conflict { current: None }) => continue,
                Err(error) => panic!("{error}"),
            }
        } else {
            store
                .put(&key, padded, Expect::Any, None)
                .await
                .expect("put")
        };
        report(&output, &key, revision, n);
    }
}

fn report(output: &Mutex<std::io::Stdout>, what: &str, revision: Revision, n: u64) {
    let line = format!("{what} {revision} {n}\n");
    let mut output = output.lock().expect("no panic while it is held");
    // The parent is gone: so is the reason to go on.
    if output
        .write_all(line.as_bytes())
        .and_then(|()| output.flush())
        .is_err()
    {
        std::process::exit(1);
    }
}

fn number(kv: &KeyValue) -> u64 {
    let value = kv.value.to_vec();
    let text = std::str::from_utf8(&value).expect("text");
    text.split(' ')
        .next()
        .and_then(|n| n.parse().ok())
        .expect("a number first")
}

/// What is known of a key: its last write, and the number in it unless that was a deletion.
type Known = HashMap<String, (u64, Option<u64>)>;

fn killed_at_any_moment_nothing_acknowledged_is_lost() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let mut known = Known::new();
    let mut highest = 0;
    let mut lines = 0;
    for round in 0..ROUNDS {
        let mut child = start("write-until-killed", &path);
        let pipe = child.stdout.take().expect("is piped");
        let reader = std::thread::spawn(move || read_acknowledgements(pipe));
        // From "while it opens" to "in the middle of the writes".
        let lifetime = Duration::from_millis((round as u64 * 37) % 211);
        let born = Instant::now();
        while born.elapsed() < lifetime {
            std::thread::yield_now();
        }
        child.kill().expect("kill -9");
        child.wait().expect("wait");
        for (what, revision, n) in reader.join().expect("the reader") {
            lines += 1;
            let goes_on = revision >= highest || what != "open";
            assert!(
                goes_on,
                "round {round}: opened at {revision}, had {highest}"
            );
            highest = highest.max(revision);
            if what != "open" {
                known.insert(what.clone(), (revision, written(&what, n)));
            }
        }
        block_on(verify(&path, round, &mut known, &mut highest));
    }
    assert!(
        lines > ROUNDS * 10,
        "only {lines} acknowledgements in {ROUNDS} rounds"
    );
}

/// What a writer's n-th write leaves of a key.
fn written(key: &str, n: u64) -> Option<u64> {
    let is_deletion = key.starts_with("/writer/") && n.is_multiple_of(5);
    (!is_deletion).then_some(n)
}

fn read_acknowledgements(pipe: impl std::io::Read) -> Vec<(String, u64, u64)> {
    let mut seen = Vec::new();
    let mut pipe = BufReader::new(pipe);
    let mut line = String::new();
    while pipe.read_line(&mut line).is_ok_and(|length| length > 0) {
        // A line cut off by the kill is no acknowledgement.
        if let Some(whole) = line.strip_suffix('\n') {
            let mut words = whole.split(' ');
            let mut word = || words.next().expect("three words");
            let what = word().to_owned();
            let number = |word: &str| word.parse().expect("a number");
            seen.push((what, number(word()), number(word())));
        }
        line.clear();
    }
    seen
}

async fn verify(path: &Path, round: usize, known: &mut Known, highest: &mut u64) {
    let store = Embedded::open(path, EmbeddedOptions::default())
        .await
        .expect("opens after kill -9");
    let current = store.current_revision().await.expect("revision").0;
    assert!(
        current >= *highest,
        "round {round}: at {current}, {highest} was acknowledged"
    );
    // Each writer can have had one more write under way, and the store may have finished it.
    assert!(
        current <= *highest + WRITERS as u64,
        "round {round}: {current} after {highest}"
    );
    for writer in 0..WRITERS {
        let (key, count) = (format!("/writer/{writer}"), format!("/count/{writer}"));
        let (_, counted) = known.get(&count).copied().unwrap_or_default();
        let counted = counted.unwrap_or_default();
        // Under way: the next count, or what follows the last one.
        for (key, under_way) in [(&count, Some(counted + 1)), (&key, written(&key, counted))] {
            let (revision, acknowledged) = known.get(key).copied().unwrap_or_default();
            let now = store.get(key, None).await.expect("get");
            let number = now.as_ref().map(number);
            let is_either = number == acknowledged || number == under_way;
            assert!(
                is_either,
                "round {round}: {key} is {number:?}, {acknowledged:?} was acknowledged, {under_way:?} under way"
            );
            let now = now.map_or(revision, |kv| kv.mod_revision.0);
            assert!(
                now >= revision,
                "round {round}: {key} went back to {now} from {revision}"
            );
            if now == revision {
                // A deletion under way leaves no revision to see.
                assert!(
                    number == acknowledged || number.is_none(),
                    "round {round}: {key}"
                );
            }
            // Seen once, it must stay.
            known.insert(key.clone(), (now, number));
        }
    }
    let all = store.range(RangeRequest::default()).await.expect("range");
    assert!(all.items.len() <= 2 * WRITERS);
    *highest = current;
}

// -- disk full --------------------------------------------------------------------------------------------

/// Runs out of room in a process with a limit on file sizes, which a file system reports as it reports a
/// full disk: in the middle of whatever write first needs more.
async fn fill(folder: &str) {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    use nix::sys::signal::{SigHandler, Signal, signal};

    let path = Path::new(folder).join("store.redb");
    // Small steps, so that the database meets the limit as well as the log.
    let options = EmbeddedOptions {
        checkpoint_bytes: 256 << 10,
        ..Default::default()
    };
    let store = Embedded::open(&path, options).await.expect("open");
    let put = async |key: &str, size: usize| {
        store
            .put(key, Bytes::from(vec![b'x'; size]), Expect::Any, None)
            .await
    };
    put("/before", 10).await.expect("there is room");
    let mut watch = store.watch("/", Revision(0)).await.expect("watch");

    // SIGXFSZ would end the process before the write could report its error.
    ignore(Signal::SIGXFSZ);
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).expect("getrlimit");
    setrlimit(Resource::RLIMIT_FSIZE, 2 << 20, hard).expect("setrlimit");
    let mut written = 0;
    let error = loop {
        match put(&format!("/fill/{written}"), 50_000).await {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
        assert!(written < 100, "the limit did not hold");
    };
    assert!(matches!(error, StoreError::StorageFull), "{error:?}");
    assert!(written > 0, "nothing could be written");
    // Reads go on; the failed write is not there.
    let current = store.current_revision().await.expect("revision");
    assert_eq!(current, Revision(written + 1));
    assert!(store.get("/before", None).await.expect("get").is_some());
    assert!(
        store
            .get(&format!("/fill/{written}"), None)
            .await
            .expect("get")
            .is_none()
    );
    let error = put("/fill/again", 50_000).await.expect_err("is still full");
    assert!(matches!(error, StoreError::StorageFull), "{error:?}");

    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).expect("setrlimit");
    let room_since = Instant::now();
    let revision = loop {
        match put("/after", 50_000).await {
            Ok(revision) => break revision,
            Err(error) => assert!(room_since.elapsed() < Duration::from_secs(10), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(revision, current.next(), "a refused write took a revision");
    // The watch missed nothing and saw nothing that did not happen.
    let mut seen = Vec::new();
    while seen.last() != Some(&revision) {
        use futures::StreamExt;
        let batch = watch
            .next()
            .await
            .expect("the watch goes on")
            .expect("watch");
        seen.extend(batch.events.iter().map(windlass_store::Event::revision));
    }
    assert!(seen.iter().map(|revision| revision.0).eq(1..=revision.0));
    drop(store);
    let store = Embedded::open(&path, EmbeddedOptions::default())
        .await
        .expect("open again");
    assert_eq!(store.current_revision().await.expect("revision"), revision);
    println!("recovered");

    #[allow(
        unsafe_code,
        reason = "changing a signal's disposition is unsafe in nix"
    )]
    fn ignore(which: Signal) {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { signal(which, SigHandler::SigIgn) }.expect("ignore a signal");
    }
}

fn a_full_disk_refuses_writes_and_recovers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let child = start("fill", folder.path());
    let output = child.wait_with_output().expect("wait");
    assert!(
        output.status.success(),
        "the process failed: {}",
        output.status
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "recovered\n");
}
