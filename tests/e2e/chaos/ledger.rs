//! A writer who remembers what was acknowledged, and a reader who follows by the last resourceVersion that it knows:
//! in the end both tell the same story.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use windlass_tests::eventually::pause;
use windlass_tests::kubectl::{kubectl, kubectl_with_input, try_kubectl};
use windlass_tests::proxy::Proxy;

const INTERVAL: Duration = Duration::from_millis(20);
/// Objects that the writer makes, changes and removes in turn.
const OBJECTS: u64 = 3;
/// How long one watch is, in seconds: what a cut-off one had told is told again by the next.
const WATCH: u32 = 2;

/// What the objects of a ledger are.
#[derive(Clone, Copy)]
pub(super) enum Pages {
    ConfigMaps,
    /// Of a definition that is made for them: a server that comes back must know them at once.
    CustomResources,
}

impl Pages {
    fn path(self, namespace: &str) -> String {
        match self {
            Self::ConfigMaps => format!("/api/v1/namespaces/{namespace}/configmaps"),
            Self::CustomResources => {
                format!("/apis/e2e.windlass.dev/v1/namespaces/{namespace}/pages")
            }
        }
    }

    fn object(self, name: &str) -> Value {
        let (api_version, kind) = match self {
            Self::ConfigMaps => ("v1", "ConfigMap"),
            Self::CustomResources => ("e2e.windlass.dev/v1", "Page"),
        };
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name}, "data": {}})
    }
}

/// One write: the object's uid and what is in it.
type Written = (String, String);

#[derive(Default)]
struct Acknowledged {
    /// By revision.
    writes: BTreeMap<u64, Written>,
    /// The uids of objects that were deleted.
    deletions: BTreeSet<String>,
}

#[derive(Default)]
struct Seen {
    /// By revision.
    writes: BTreeMap<u64, Written>,
    deletions: Vec<String>,
}

pub(super) struct Ledger {
    pages: Pages,
    stop: Arc<AtomicBool>,
    writer: Option<JoinHandle<Result<Acknowledged>>>,
    reader: Option<JoinHandle<Result<Seen>>>,
}

impl Ledger {
    pub(super) fn open(namespace: &str, pages: Pages) -> Result<Self> {
        if let Pages::CustomResources = pages {
            kubectl_with_input(&["apply", "-f", "-"], DEFINITION)?;
            let definition = format!("crd/{DEFINED}");
            kubectl(&[
                "wait",
                "--for=condition=Established",
                "--timeout=30s",
                &definition,
            ])?;
        }
        let stop = Arc::new(AtomicBool::new(false));
        let path = pages.path(namespace);
        let (of_writer, of_reader) = (path.clone(), path);
        let (until, also_until) = (stop.clone(), stop.clone());
        let (looks, reader_looks) = mpsc::channel();
        Ok(Self {
            pages,
            stop,
            writer: Some(std::thread::spawn(move || {
                // What was deleted before would not be told. Without a reader there is nothing to write.
                match reader_looks.recv() {
                    Ok(()) => write(pages, &of_writer, &until),
                    Err(_) => Ok(Acknowledged::default()),
                }
            })),
            reader: Some(std::thread::spawn(move || {
                read(&of_reader, &also_until, &looks)
            })),
        })
    }

    /// How many writes were acknowledged, when each was seen once and nothing was done twice.
    pub(super) fn close(mut self) -> Result<usize> {
        self.stop.store(true, Ordering::Relaxed);
        let acknowledged = joined(self.writer.take()).context("writing")?;
        let seen = joined(self.reader.take()).context("watching")?;
        let mut distinct = BTreeSet::new();
        for (revision, written) in &seen.writes {
            ensure!(
                distinct.insert(written),
                "{written:?} again at revision {revision}"
            );
        }
        for (revision, written) in &acknowledged.writes {
            let told = seen.writes.get(revision);
            ensure!(
                told == Some(written),
                "{written:?} was acknowledged at revision {revision}, where the watch told {told:?}"
            );
        }
        for uid in &acknowledged.deletions {
            let times = seen.deletions.iter().filter(|other| *other == uid).count();
            ensure!(times == 1, "{uid} was deleted once and told {times} times");
        }
        Ok(acknowledged.writes.len() + acknowledged.deletions.len())
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // Their proxies end with them, whoever else has failed.
        joined(self.writer.take()).ok();
        joined(self.reader.take()).ok();
        if let Pages::CustomResources = self.pages {
            try_kubectl(&["delete", "crd", DEFINED, "--ignore-not-found"], "").ok();
        }
    }
}

fn joined<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<T> {
    let thread = thread.context("closed already")?;
    thread.join().map_err(|_| anyhow::anyhow!("it panicked"))?
}

/// Makes, changes and removes objects, each write under the condition that it knows the object's present state. What
/// is acknowledged must be there at the next look; what was cut off may have happened or not.
fn write(pages: Pages, path: &str, stop: &AtomicBool) -> Result<Acknowledged> {
    let proxy = Proxy::start()?;
    let mut acknowledged = Acknowledged::default();
    let (mut last, mut number) = (0, 0_u64);
    // What the acknowledgements say of each object.
    let mut present: BTreeMap<u64, Option<Written>> = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let which = number % OBJECTS;
        let one = format!("{path}/ledger-{which}");
        let Ok(answer) = proxy.get(&one) else {
            pause(INTERVAL);
            continue;
        };
        let object = match answer.status {
            200 => Some(answer.json()?),
            404 => None,
            _ => {
                pause(INTERVAL);
                continue;
            }
        };
        let found = object.as_ref().map(written).transpose()?;
        if let Some(expected) = present.remove(&which) {
            ensure!(
                found == expected,
                "{one} is {found:?} after {expected:?} was acknowledged"
            );
        }
        let remove = number.is_multiple_of(7);
        let outcome = match &object {
            Some(object) if remove => {
                let uid = &object["metadata"]["uid"];
                let condition = json!({"preconditions": {"uid": uid}}).to_string();
                let headers = [("Content-Type", "application/json")];
                proxy.request("DELETE", &one, &headers, condition.as_bytes())
            }
            Some(object) => {
                let mut object = object.clone();
                object["data"]["n"] = number.to_string().into();
                proxy.put_json(&one, object.to_string().as_bytes())
            }
            None => {
                let mut object = pages.object(&format!("ledger-{which}"));
                object["data"]["n"] = number.to_string().into();
                proxy.post_json(path, object.to_string().as_bytes())
            }
        };
        // Cut off, or refused by a server that is about to end.
        let Some(answer) = outcome.ok().filter(|answer| answer.status < 500) else {
            continue;
        };
        ensure!(
            answer.status < 300,
            "{one}, {found:?}: {} {}",
            answer.status,
            answer.text()
        );
        if remove && let Some((uid, _)) = found {
            acknowledged.deletions.insert(uid);
            present.insert(which, None);
        } else {
            let object = answer.json()?;
            let revision = revision(&object)?;
            ensure!(revision > last, "revision {revision} after {last}");
            last = revision;
            let written = written(&object)?;
            ensure!(
                written.1 == number.to_string(),
                "{number} was written, {} acknowledged",
                written.1
            );
            present.insert(which, Some(written.clone()));
            acknowledged.writes.insert(revision, written);
        }
        pause(INTERVAL);
    }
    Ok(acknowledged)
}

/// Follows until everything that was written before the stop has been told.
fn read(path: &str, stop: &AtomicBool, looks: &mpsc::Sender<()>) -> Result<Seen> {
    let proxy = Proxy::start()?;
    let mut seen = Seen::default();
    let mut last = 0;
    loop {
        let stopped = stop.load(Ordering::Relaxed);
        if last == 0 {
            if let Ok(list) = proxy.get(path)
                && list.status == 200
            {
                last = revision(&list.json()?)?;
                looks.send(()).ok();
            }
            ensure!(!stopped || last > 0, "nothing could be read");
            pause(INTERVAL);
            continue;
        }
        let watch = format!("{path}?watch=1&resourceVersion={last}&timeoutSeconds={WATCH}");
        let answer = proxy.get(&watch).ok().filter(|it| it.status < 500);
        let Some(answer) = answer else {
            pause(INTERVAL);
            continue;
        };
        ensure!(
            answer.status == 200,
            "watching from {last}: {} {}",
            answer.status,
            answer.text()
        );
        for line in answer.text().lines() {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let (kind, object) = (&event["type"], &event["object"]);
            ensure!(kind != "ERROR", "watching from {last}: {object}");
            let revision = revision(object)?;
            ensure!(revision > last, "an event of {revision} after {last}");
            last = revision;
            // The one with the cluster's CA, which is not the writer's.
            if object["data"]["n"].is_null() {
                continue;
            }
            let (uid, value) = written(object)?;
            if kind == "DELETED" {
                seen.deletions.push(uid);
            } else {
                seen.writes.insert(revision, (uid, value));
            }
        }
        // The watch began after the last write.
        if stopped {
            return Ok(seen);
        }
    }
}

fn revision(object: &Value) -> Result<u64> {
    let text = object["metadata"]["resourceVersion"].as_str();
    Ok(text.context("no resourceVersion")?.parse()?)
}

fn written(object: &Value) -> Result<Written> {
    let Some(uid) = object["metadata"]["uid"].as_str() else {
        bail!("no uid: {object}");
    };
    let value = object["data"]["n"].as_str().unwrap_or_default();
    Ok((uid.to_owned(), value.to_owned()))
}

const DEFINED: &str = "pages.e2e.windlass.dev";
const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: pages.e2e.windlass.dev}
spec:
  group: e2e.windlass.dev
  scope: Namespaced
  names: {plural: pages, singular: page, kind: Page}
  versions:
    - name: v1
      served: true
      storage: true
      schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
"#;
