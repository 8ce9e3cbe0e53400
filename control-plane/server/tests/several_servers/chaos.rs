//! Anything of three control planes over an etcd of three members may be killed or stand still at any moment, several at
//! once, while users write, scale and run Jobs: what was acknowledged is there, each watch tells everything once and in
//! order, a pod is bound to one node, and each index of a Job has one pod, however often leaders change.
//!
//! A run is a number (the seed) and a length: the same seed injects the same faults in the same order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use nix::sys::signal::Signal::{SIGCONT, SIGSTOP};
use parking_lot::Mutex;
use serde_json::json;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::clients::{Clients, PAUSE, maps};
use crate::cluster::{Cluster, SERVERS};
use crate::hollow::{self, Pods, object};

const MEMBERS: usize = 3;
const COMPLETIONS: i32 = 4;
const BURST: usize = 2;
/// All servers serve, and writes are taken.
const CALM_WITHIN: Duration = Duration::from_secs(60);
const SETTLED_WITHIN: Duration = Duration::from_secs(120);
const STEP: Duration = Duration::from_millis(1_500);

#[derive(Clone, Copy, Debug)]
enum Fault {
    Server,
    TwoServers,
    EveryServer,
    ServerAsItStarts,
    ServerStands,
    Member,
    EveryMember,
    MemberStands,
    MajorityStands,
}

const FAULTS: [Fault; 9] = [
    Fault::Server,
    Fault::TwoServers,
    Fault::EveryServer,
    Fault::ServerAsItStarts,
    Fault::ServerStands,
    Fault::Member,
    Fault::EveryMember,
    Fault::MemberStands,
    Fault::MajorityStands,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "runs for as long as it is told to: WINDLASS_CHAOS=SEED,SECONDS, a minute unless told otherwise"]
async fn nobody_notices_chaos_among_servers_and_members() {
    if !windlass_loopback::is_etcd_installed() {
        return;
    }
    let told = std::env::var("WINDLASS_CHAOS").unwrap_or_else(|_| "1,60".to_owned());
    let (seed, seconds) = told.split_once(',').expect("WINDLASS_CHAOS=SEED,SECONDS");
    let mut dice = fastrand::Rng::with_seed(seed.parse().expect("a seed"));
    let time = Duration::from_secs(seconds.parse().expect("seconds"));

    let mut cluster = Cluster::start(MEMBERS).await;
    let clients = Arc::new(Clients::of(&cluster));
    hollow::join(&clients).await;
    let list = clients.maps(0).list(&ListParams::default()).await;
    let from = list.expect("the first server answers").metadata;
    let from = from.resource_version.expect("a list has a version");

    let pods = Arc::new(Pods::default());
    let (seeing, looking) = (clients.clone(), pods.clone());
    let version = from.clone();
    let pods_watch = tokio::spawn(async move {
        let note = |_, event| looking.note(event);
        seeing.watch(hollow::pods, 0, version, note).await
    });
    let seen: Vec<_> = (0..SERVERS)
        .map(|_| Arc::new(Mutex::new(Vec::new())))
        .collect();
    let watches = seen.iter().enumerate().map(|(server, seen)| {
        let (clients, seen, from) = (clients.clone(), seen.clone(), from.clone());
        tokio::spawn(async move {
            let note = |version, _| seen.lock().push(version);
            clients.watch(maps, server, from, note).await
        })
    });
    let watches: Vec<_> = watches.chain([pods_watch]).collect();
    let writers = (0..SERVERS).map(|writer| {
        let clients = clients.clone();
        tokio::spawn(async move { clients.write(writer).await })
    });
    let writers: Vec<_> = writers.collect();
    let stop = CancellationToken::new();
    let (renewing, until_stop) = (clients.clone(), stop.clone());
    let renewal = beside(async move || {
        let renew = hollow::renew(&renewing);
        until_stop.run_until_cancelled(renew).await
    });
    let (running, ran, until_stop) = (clients.clone(), pods.clone(), stop.clone());
    let runs = beside(async move || {
        let run = hollow::run(&running, &ran);
        until_stop.run_until_cancelled(run).await
    });
    let (using, again) = (clients.clone(), dice.fork());
    let user = beside(async move || use_it(&using, again).await);

    let end = Instant::now() + time;
    let (mut injected, mut slowest) = (Vec::new(), Duration::ZERO);
    while Instant::now() < end {
        for _ in 0..BURST {
            let fault = *dice.choice(&FAULTS).expect("there are some");
            eprintln!("chaos: {fault:?}");
            injected.push(fault);
            inject(&mut cluster, fault, &mut dice).await;
            pause(&mut dice, 1_500).await;
        }
        let calm = Instant::now();
        cluster.all_ready().await;
        let count = clients.acknowledged.lock().len();
        while clients.acknowledged.lock().len() < count + 10 {
            let waited = calm.elapsed();
            assert!(
                waited < CALM_WITHIN,
                "seed {seed}, after {injected:?}: nobody can write"
            );
            tokio::time::sleep(PAUSE).await;
        }
        slowest = slowest.max(calm.elapsed());
    }
    clients.stop_writing();
    for writer in writers {
        writer.await.expect("a writer");
    }
    let jobs = user.await.expect("the user");
    settled(&clients, jobs).await;

    let wrong = pods.wrong();
    assert!(
        wrong.is_empty(),
        "seed {seed}, after {injected:?}: {wrong:#?}"
    );
    let acknowledged = clients.acknowledged.lock().clone();
    for (server, seen) in seen.iter().enumerate() {
        let list = clients.maps(server).list(&ListParams::default()).await;
        let there: BTreeSet<String> = list
            .expect("every server answers again")
            .iter()
            .map(ResourceExt::name_any)
            .collect();
        let lost: Vec<_> = acknowledged.difference(&there).collect();
        assert!(
            lost.is_empty(),
            "seed {seed}: server {server} has lost {lost:?}"
        );
        let written: Vec<u64> = versions(&clients, server, &from).await;
        let told = || seen.lock().clone();
        let deadline = Instant::now() + SETTLED_WITHIN;
        while told().len() < written.len() && Instant::now() < deadline {
            tokio::time::sleep(PAUSE).await;
        }
        assert_eq!(
            told(),
            written,
            "seed {seed}: a watch tells each write once and in order"
        );
    }
    for watch in watches {
        assert!(!watch.is_finished(), "{:?}", watch.await);
        watch.abort();
    }
    let list = Api::<Node>::all(clients.client(0))
        .list(&ListParams::default())
        .await;
    for node in list.expect("an answer") {
        let conditions = node
            .status
            .and_then(|status| status.conditions)
            .unwrap_or_default();
        let is_ready = |it: &k8s_openapi::api::core::v1::NodeCondition| {
            it.type_ == "Ready" && it.status == "True"
        };
        assert!(conditions.iter().any(is_ready), "{conditions:?}");
    }
    stop.cancel();
    renewal.await.expect("the nodes");
    runs.await.expect("the nodes");
    eprintln!(
        "chaos: calm within {slowest:?} each time; {} writes kept and told once, {jobs} Jobs",
        acknowledged.len()
    );
}

/// In a thread of its own.
fn beside<T: Send + 'static>(work: impl AsyncFnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || runtime.block_on(work()))
}

/// Of the ConfigMaps that were written since, which nobody changes.
async fn versions(clients: &Clients, server: usize, from: &str) -> Vec<u64> {
    let list = clients.maps(server).list(&ListParams::default()).await;
    let number = |version: &str| version.parse::<u64>().expect("a version is a number here");
    let version =
        |map: &ConfigMap| number(&map.resource_version().expect("an object has a version"));
    let mut versions: Vec<u64> = list.expect("an answer").iter().map(version).collect();
    versions.retain(|version| *version > number(from));
    versions.sort_unstable();
    versions
}

async fn pause(dice: &mut fastrand::Rng, most: u64) {
    tokio::time::sleep(Duration::from_millis(dice.u64(0..most))).await;
}

async fn inject(cluster: &mut Cluster, fault: Fault, dice: &mut fastrand::Rng) {
    let first = dice.usize(0..SERVERS);
    let second = (first + dice.usize(1..SERVERS)) % SERVERS;
    let every: Vec<usize> = (0..SERVERS).collect();
    match fault {
        Fault::Server => kill(cluster, &[first], dice).await,
        Fault::TwoServers => kill(cluster, &[first, second], dice).await,
        Fault::EveryServer => kill(cluster, &every, dice).await,
        Fault::ServerAsItStarts => {
            for _ in 0..3 {
                kill(cluster, &[first], dice).await;
                pause(dice, 1_000).await;
            }
        }
        // Longer than a leader keeps its lease without a word, or not.
        Fault::ServerStands => {
            cluster.signal(first, SIGSTOP);
            pause(dice, 25_000).await;
            cluster.signal(first, SIGCONT);
        }
        Fault::Member => kill_members(cluster, &[first], dice).await,
        Fault::EveryMember => kill_members(cluster, &every, dice).await,
        Fault::MemberStands => stop_members(cluster, &[first], dice).await,
        Fault::MajorityStands => stop_members(cluster, &[first, second], dice).await,
    }
}

async fn kill(cluster: &mut Cluster, servers: &[usize], dice: &mut fastrand::Rng) {
    for server in servers {
        cluster.kill(*server);
    }
    pause(dice, 3_000).await;
    for server in servers {
        cluster.begin(*server);
    }
}

async fn kill_members(cluster: &mut Cluster, members: &[usize], dice: &mut fastrand::Rng) {
    for member in members {
        cluster.etcd[*member].kill();
    }
    pause(dice, 3_000).await;
    for member in members {
        cluster.etcd[*member].restart().expect("it started before");
    }
}

async fn stop_members(cluster: &Cluster, members: &[usize], dice: &mut fastrand::Rng) {
    for member in members {
        cluster.signal_member(*member, SIGSTOP);
    }
    pause(dice, 8_000).await;
    for member in members {
        cluster.signal_member(*member, SIGCONT);
    }
}

/// A user who scales and runs Jobs, as long as others write; returns how many Jobs.
async fn use_it(clients: &Clients, mut dice: fastrand::Rng) -> usize {
    let container = json!({"name": "c", "image": "hollow"});
    let labels = json!({"app": "web"});
    let web: Deployment = object(json!({"metadata": {"name": "web"}, "spec": {"replicas": 3,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [container]}}}}));
    clients
        .tell(async |client| {
            deployments(client)
                .create(&PostParams::default(), &web)
                .await
        })
        .await;
    let mut jobs = 0;
    while clients.are_writing() {
        let template = json!({"spec": {"restartPolicy": "Never", "containers": [container]}});
        let job: Job = object(json!({"metadata": {"name": format!("job-{jobs}")},
            "spec": {"completions": COMPLETIONS, "parallelism": 2, "completionMode": "Indexed", "template": template}}));
        clients
            .tell(async |client| {
                let jobs = Api::namespaced(client, "default");
                jobs.create(&PostParams::default(), &job).await
            })
            .await;
        jobs += 1;
        let scale = json!({"spec": {"replicas": dice.i32(1..10)}});
        clients
            .tell(async |client| {
                let patch = Patch::Merge(&scale);
                deployments(client)
                    .patch("web", &PatchParams::default(), &patch)
                    .await
            })
            .await;
        tokio::time::sleep(STEP).await;
    }
    jobs
}

fn deployments(client: Client) -> Api<Deployment> {
    Api::namespaced(client, "default")
}

/// Every Job is done, and there are as many pods as were asked for last.
async fn settled(clients: &Clients, jobs: usize) {
    let deadline = Instant::now() + SETTLED_WITHIN;
    loop {
        let client = clients.client(0);
        let done = Api::<Job>::namespaced(client.clone(), "default");
        let done = done.list(&ListParams::default()).await.map_or(0, |list| {
            let is_done = |job: &&Job| {
                job.status
                    .as_ref()
                    .is_some_and(|it| it.succeeded == Some(COMPLETIONS))
            };
            list.iter().filter(is_done).count()
        });
        let pods = hollow::pods(client.clone());
        let pods = pods.list(&ListParams::default().labels("app=web")).await;
        let pods = pods.map_or(0, |list| list.items.len());
        let web = deployments(client).get("web").await.ok();
        let wanted = web.as_ref().and_then(|web| web.spec.as_ref()?.replicas);
        let ready = web
            .as_ref()
            .and_then(|web| web.status.as_ref()?.ready_replicas);
        if done == jobs && wanted.is_some() && ready == wanted && i32::try_from(pods).ok() == wanted
        {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "{done} of {jobs} Jobs done; {pods} pods, {ready:?} ready, of {wanted:?}"
        );
        tokio::time::sleep(STEP).await;
    }
}
