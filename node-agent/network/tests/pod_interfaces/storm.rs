//! Pods come and go as fast as they can, and the agent is killed in the middle, again and again.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _, stdout};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use serde_json::Value;
use windlass_network::interface::{Namespace, host_interface};
use windlass_network::{AttachmentKey, Attachments, PodName};

use crate::world::*;

/// Tells a process of this test that it is the agent: its node's namespace, its state folder, its pods' namespaces.
const AGENT: &str = "WINDLASS_STORM";
const PODS: usize = 6;
/// After how many ADDs and DELs each agent is killed; the next one is just under way then.
const LIVES: [usize; 8] = [1, 2, 5, 9, 14, 20, 33, 47];

#[tokio::test(flavor = "multi_thread")]
async fn no_address_is_lost_or_given_twice_by_agents_that_are_killed() {
    let node = Node::new().await;
    let pods: Vec<Netns> = (0..PODS).map(|_| Netns::new()).collect();
    for life in LIVES {
        let mut agent = Agent::start(&node, &pods);
        agent.live(life);
        drop(agent);
        let attachments = node.start().await;
        let published = attachments.subscribe().borrow().clone();
        let leased = leases(node.state.path());
        let keys: Vec<&AttachmentKey> = published.keys().collect();
        assert_eq!(leased.iter().map(|(key, _)| key).collect::<Vec<_>>(), keys);
        let addresses: BTreeSet<IpAddr> = leased.iter().map(|(_, address)| *address).collect();
        assert_eq!(addresses.len(), leased.len(), "given twice: {leased:?}");
        let expected: BTreeSet<String> = keys.into_iter().map(host_interface).collect();
        let links: BTreeSet<String> = node.pod_links().await.into_iter().collect();
        // What was half made is nobody's: the runtime asks for it again, or the next collection takes it.
        assert!(links.is_superset(&expected), "{expected:?} of {links:?}");
        // The runtime knows of none of them.
        attachments.gc(&[]).await.expect("GC");
        assert_eq!(node.pod_links().await, [""; 0]);
        assert!(leases(node.state.path()).is_empty());
    }
    // Every pod can be had again, and works.
    let attachments = node.start().await;
    for (number, pod) in pods.iter().enumerate() {
        let made = add(&attachments, &format!("again-{number}"), pod).await;
        reaches(&node.netns, pod, made.link.addresses[0]).await;
    }
}

/// Those that are not released, by their files.
fn leases(state: &Path) -> Vec<(AttachmentKey, IpAddr)> {
    let files = std::fs::read_dir(state.join("leases")).expect("list");
    let mut found = Vec::new();
    for file in files {
        let path = file.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let lease: Value =
            serde_json::from_slice(&std::fs::read(path).expect("read")).expect("JSON");
        if lease["released_at"].is_null() {
            let key = serde_json::from_value(lease["key"].clone()).expect("a key");
            let address =
                serde_json::from_value(lease["addresses"][0].clone()).expect("an address");
            found.push((key, address));
        }
    }
    found.sort();
    found
}

/// An agent in a process of its own, killed when dropped.
struct Agent {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Agent {
    fn start(node: &Node, pods: &[Netns]) -> Self {
        let here = format!("/proc/{}/", std::process::id());
        let seen = |netns: &Netns| {
            netns
                .path
                .display()
                .to_string()
                .replace("/proc/self/", &here)
        };
        let told: Vec<String> = [seen(&node.netns), node.state.path().display().to_string()]
            .into_iter()
            .chain(pods.iter().map(seen))
            .collect();
        let mut process = Command::new(std::env::current_exe().expect("this test"))
            .args(["--ignored", "--exact", "--nocapture", "storm::agent"])
            .env(AGENT, told.join(","))
            .stdout(Stdio::piped())
            .spawn()
            .expect("starting an agent");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        Self { process, output }
    }

    /// Returns when it has answered so often.
    fn live(&mut self, times: usize) {
        let mut done = 0;
        let mut line = String::new();
        while done < times {
            line.clear();
            let length = self.output.read_line(&mut line).expect("its output");
            assert!(length > 0, "the agent ended after {done}");
            done += usize::from(line.ends_with("done\n"));
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "is started by the test above"]
async fn agent() {
    let Ok(told) = std::env::var(AGENT) else {
        return;
    };
    let mut told = told.split(',').map(PathBuf::from);
    let (host, state) = (told.next().expect("a node"), told.next().expect("a folder"));
    let host = Namespace::open(&host).await.expect("the node");
    let attachments = start(host, &state, Arc::default()).await;
    let storms = told.enumerate().map(|(number, pod)| {
        let attachments = attachments.clone();
        tokio::spawn(async move { storm(&attachments, number, &pod).await })
    });
    futures::future::join_all(storms).await;
}

async fn storm(attachments: &Attachments, number: usize, pod: &Path) {
    let say = |what: &dyn std::fmt::Display| writeln!(stdout(), "{what}").expect("a listener");
    // As a runtime, which gives every sandbox an id of its own.
    for sandbox in 0.. {
        let id = format!("storm-{number}-{}-{sandbox}", std::process::id());
        let made = attachments.add(key(&id), pod, PodName::default()).await;
        if let Err(error) = &made {
            // All addresses of a range are resting at some time.
            say(&error);
        }
        say(&"done");
        attachments.del(&key(&id)).await.expect("DEL");
        say(&"done");
    }
}
