use serde_json::json;

use super::*;
use crate::memory::{Condemned, FailedStep, Health};
use crate::snapshot::{Exit, Sandbox};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const NOW: i64 = 1_000;

fn pod(policy: &str, inits: &[(&str, bool)], mains: &[&str]) -> Pod {
    let inits: Vec<_> = inits
        .iter()
        .map(|(name, sidecar)| {
            let policy = sidecar.then_some("Always");
            json!({"name": name, "image": "i", "restartPolicy": policy})
        })
        .collect();
    let mains: Vec<_> = mains
        .iter()
        .map(|name| json!({"name": name, "image": "i"}))
        .collect();
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"restartPolicy": policy, "initContainers": inits, "containers": mains},
    }))
    .unwrap()
}

fn sandbox(id: &str, attempt: u32, ready: bool) -> Sandbox {
    Sandbox {
        id: id.into(),
        attempt,
        ready,
        created: at(1),
        ips: vec!["10.0.0.1".into()],
    }
}

fn container(name: &str, attempt: u32, state: State) -> Container {
    let pod = pod("Always", &[], &[name]);
    let hash = container_hash(&main_slots(&pod).next().unwrap().container);
    Container {
        id: format!("{name}-{attempt}"),
        name: name.into(),
        sandbox: "s".into(),
        attempt,
        state,
        created: at(i64::from(attempt) + 2),
        image: "i".into(),
        image_id: "sha256:1".into(),
        hash,
        log_path: String::new(),
        read_only_below: Vec::new(),
        user: None,
        exit_message: None,
    }
}

fn running() -> State {
    State::Running { since: at(5) }
}

fn exited(code: i32, finished: i64) -> State {
    State::Exited(Exit {
        code,
        reason: String::new(),
        message: String::new(),
        started: Some(at(5)),
        finished: at(finished),
    })
}

fn snapshot(sandboxes: Vec<Sandbox>, containers: Vec<Container>) -> Snapshot {
    let mut snapshot = Snapshot {
        sandboxes,
        containers,
    };
    snapshot.sort();
    snapshot
}

fn steps(pod: &Pod, snapshot: &Snapshot, memory: &Memory) -> Vec<String> {
    plan(pod, snapshot, memory, at(NOW))
        .steps
        .into_iter()
        .map(|step| match step {
            Step::StartSandbox { attempt } => format!("sandbox {attempt}"),
            Step::StartContainer { name, attempt, .. } => format!("start {name} {attempt}"),
            Step::StopContainer { id, .. } => format!("stop {id}"),
            Step::StopSandbox { id } => format!("stop sandbox {id}"),
        })
        .collect()
}

#[test]
fn a_new_pod_gets_its_sandbox_then_its_containers_in_order() {
    let pod = pod("Always", &[("one", false), ("two", false)], &["a", "b"]);
    let memory = Memory::default();
    let live = || vec![sandbox("s", 0, true)];
    for (state, expected) in [
        (snapshot(vec![], vec![]), vec!["sandbox 0"]),
        (snapshot(live(), vec![]), vec!["start one 0"]),
        (
            snapshot(live(), vec![container("one", 0, running())]),
            vec![],
        ),
        (
            snapshot(live(), vec![container("one", 0, exited(0, 9))]),
            vec!["start two 0"],
        ),
        (
            snapshot(
                live(),
                vec![
                    container("one", 0, exited(0, 9)),
                    container("two", 0, exited(0, 9)),
                ],
            ),
            vec!["start a 0"],
        ),
        (
            snapshot(
                live(),
                vec![
                    container("one", 0, exited(0, 9)),
                    container("two", 0, exited(0, 9)),
                    container("a", 0, running()),
                ],
            ),
            vec!["start b 0"],
        ),
        (
            // The runtime may forget init containers; what was begun goes on.
            snapshot(
                live(),
                vec![container("a", 0, running()), container("b", 0, running())],
            ),
            vec![],
        ),
    ] {
        assert_eq!(steps(&pod, &state, &memory), expected, "{state:?}");
    }
}

#[test]
fn only_one_start_is_under_way_at_a_time() {
    let pod = pod("Always", &[], &["a", "b"]);
    let memory = Memory {
        starting: Some("a".into()),
        ..Memory::default()
    };
    assert!(steps(&pod, &snapshot(vec![], vec![]), &memory).is_empty());
    assert!(
        steps(
            &pod,
            &snapshot(vec![sandbox("s", 0, true)], vec![]),
            &memory
        )
        .is_empty()
    );
}

#[test]
fn restart_policies_decide_what_follows_an_end() {
    for (policy, code, expected, outcome) in [
        ("Always", 0, vec!["start a 1"], Outcome::Going),
        ("Always", 1, vec!["start a 1"], Outcome::Going),
        ("OnFailure", 0, vec!["stop sandbox s"], Outcome::Done),
        ("OnFailure", 1, vec!["start a 1"], Outcome::Going),
        ("Never", 0, vec!["stop sandbox s"], Outcome::Done),
        ("Never", 1, vec!["stop sandbox s"], Outcome::Done),
    ] {
        let pod = pod(policy, &[], &["a"]);
        let state = snapshot(
            vec![sandbox("s", 0, true)],
            vec![container("a", 0, exited(code, 900))],
        );
        let memory = Memory::default();
        assert_eq!(steps(&pod, &state, &memory), expected, "{policy} {code}");
        assert_eq!(
            plan(&pod, &state, &memory, at(NOW)).outcome,
            outcome,
            "{policy} {code}"
        );
    }
}

#[test]
fn a_crashed_container_waits_for_its_back_off() {
    let pod = pod("Always", &[], &["a"]);
    let ended = at(NOW - 4);
    let mut memory = Memory::default();
    memory
        .crashes
        .insert("a".into(), CrashBackoff::next(None, at(900), at(900)));
    let state = snapshot(
        vec![sandbox("s", 0, true)],
        vec![container("a", 3, exited(1, ended.as_second()))],
    );
    let waiting = plan(&pod, &state, &memory, at(NOW));
    assert!(waiting.steps.is_empty());
    assert_eq!(waiting.wake_at, Some(at(NOW + 6)));
    let due = plan(&pod, &state, &memory, at(NOW + 6));
    assert!(
        matches!(&due.steps[..], [Step::StartContainer { attempt: 4, after: Some(end), .. }]
        if *end == ended)
    );
}

#[test]
fn a_failed_start_is_tried_again_later_and_does_not_hold_up_the_others() {
    let pod = pod("Always", &[], &["a", "b"]);
    let mut memory = Memory::default();
    memory.failed(
        "a",
        FailedStep::ImagePull,
        "no such image".into(),
        at(NOW - 1),
    );
    let state = snapshot(vec![sandbox("s", 0, true)], vec![]);
    let plan = plan(&pod, &state, &memory, at(NOW));
    assert_eq!(steps(&pod, &state, &memory), ["start b 0"]);
    assert_eq!(
        plan.wake_at,
        Some(at(NOW + 1)),
        "when ErrImagePull turns into ImagePullBackOff"
    );
}

#[test]
fn a_dead_sandbox_is_replaced_and_everything_runs_again_in_the_new_one() {
    let pod = pod("Always", &[("one", false)], &["a"]);
    let memory = Memory::default();
    let dead = snapshot(
        vec![sandbox("s", 0, false)],
        vec![
            container("one", 0, exited(0, 9)),
            container("a", 0, exited(137, 900)),
        ],
    );
    assert_eq!(steps(&pod, &dead, &memory), ["sandbox 1"]);

    let still_running = snapshot(
        vec![sandbox("s", 0, false)],
        vec![container("a", 0, running())],
    );
    assert_eq!(steps(&pod, &still_running, &memory), ["stop sandbox s"]);

    let renewed = snapshot(
        vec![sandbox("s", 0, false), sandbox("s2", 1, true)],
        vec![
            container("one", 0, exited(0, 9)),
            container("a", 0, exited(137, 900)),
        ],
    );
    assert_eq!(steps(&pod, &renewed, &memory), ["start one 1"]);
}

#[test]
fn sidecars_start_before_and_end_after_the_main_containers() {
    let pod = pod("Never", &[("proxy", true), ("log", true)], &["a"]);
    let memory = Memory::default();
    let live = || vec![sandbox("s", 0, true)];
    let both = || {
        vec![
            container("proxy", 0, running()),
            container("log", 0, running()),
        ]
    };
    let with = |more: Vec<Container>| snapshot(live(), [both(), more].concat());

    let one = snapshot(live(), vec![container("proxy", 0, running())]);
    assert_eq!(steps(&pod, &one, &memory), ["start log 0"]);
    assert_eq!(steps(&pod, &with(vec![]), &memory), ["start a 0"]);

    let ended = with(vec![container("a", 0, exited(0, 900))]);
    assert_eq!(steps(&pod, &ended, &memory), ["stop log-0"]);
    assert_eq!(plan(&pod, &ended, &memory, at(NOW)).outcome, Outcome::Done);

    let crashed = snapshot(
        live(),
        vec![
            container("proxy", 0, exited(1, 900)),
            container("log", 0, running()),
            container("a", 0, running()),
        ],
    );
    assert_eq!(steps(&pod, &crashed, &memory), ["start proxy 1"]);
}

#[test]
fn a_sidecar_with_a_startup_probe_holds_the_next_until_it_passes() {
    let mut pod = pod("Always", &[("proxy", true)], &["a"]);
    let inits = pod.spec.as_mut().unwrap().init_containers.as_mut().unwrap();
    inits[0].startup_probe = Some(Default::default());
    let state = snapshot(
        vec![sandbox("s", 0, true)],
        vec![container("proxy", 0, running())],
    );
    let mut memory = Memory::default();
    assert!(steps(&pod, &state, &memory).is_empty());
    let health = Health {
        container_id: "proxy-0".into(),
        started: true,
        ready: true,
        condemned: None,
    };
    memory.health.insert("proxy".into(), health);
    assert_eq!(steps(&pod, &state, &memory), ["start a 0"]);
}

#[test]
fn a_failed_init_container_is_repeated_or_ends_the_pod() {
    let failed = |policy: &str| {
        let pod = pod(policy, &[("one", false)], &["a"]);
        let state = snapshot(
            vec![sandbox("s", 0, true)],
            vec![container("one", 0, exited(1, 900))],
        );
        let plan = plan(&pod, &state, &Memory::default(), at(NOW));
        (steps(&pod, &state, &Memory::default()), plan.outcome)
    };
    assert_eq!(
        failed("Always"),
        (vec!["start one 1".into()], Outcome::Going)
    );
    assert_eq!(
        failed("Never"),
        (vec!["stop sandbox s".into()], Outcome::Done)
    );
}

#[test]
fn condemned_and_outdated_containers_are_stopped_once() {
    let pod = pod("Always", &[], &["a", "b"]);
    let mut outdated = container("b", 0, running());
    outdated.hash = "other".into();
    let state = snapshot(
        vec![sandbox("s", 0, true)],
        vec![container("a", 0, running()), outdated],
    );
    let mut memory = Memory::default();
    let health = |id: &str| Health {
        container_id: id.into(),
        started: true,
        ready: false,
        condemned: Some(Condemned {
            message: "probe".into(),
            grace: None,
        }),
    };
    memory.health.insert("a".into(), health("a-0"));
    assert_eq!(steps(&pod, &state, &memory), ["stop a-0", "stop b-0"]);

    memory.stopping = vec!["a-0".into(), "b-0".into()];
    assert!(steps(&pod, &state, &memory).is_empty());

    memory.stopping.clear();
    memory.health.insert("a".into(), health("an-older-one"));
    assert_eq!(steps(&pod, &state, &memory), ["stop b-0"]);
}

#[test]
fn restarts_that_only_the_api_remembers_are_counted_on() {
    let mut pod = pod("Always", &[], &["a"]);
    pod.status = serde_json::from_value(json!({"containerStatuses": [{
        "name": "a", "image": "i", "imageID": "", "ready": false, "restartCount": 7,
        "containerID": "containerd://gone",
    }]}))
    .unwrap();
    let state = snapshot(vec![sandbox("s", 0, true)], vec![]);
    assert_eq!(steps(&pod, &state, &Memory::default()), ["start a 8"]);
}

#[test]
fn a_pod_that_ended_is_never_started_again() {
    let mut pod = pod("Always", &[], &["a"]);
    pod.status = serde_json::from_value(json!({"phase": "Failed"})).unwrap();
    let memory = Memory::default();
    assert!(steps(&pod, &snapshot(vec![], vec![]), &memory).is_empty());
    let state = snapshot(
        vec![sandbox("s", 0, true)],
        vec![container("a", 0, running())],
    );
    assert_eq!(steps(&pod, &state, &memory), ["stop a-0"]);
}

#[test]
fn a_pod_past_its_deadline_is_wound_down() {
    let mut pod = pod("Always", &[], &["a"]);
    pod.spec.as_mut().unwrap().active_deadline_seconds = Some(10);
    let start = at(NOW - 10).to_string();
    pod.status = serde_json::from_value(json!({"startTime": start})).unwrap();
    let state = snapshot(
        vec![sandbox("s", 0, true)],
        vec![container("a", 0, running())],
    );
    let plan_at = |now: i64| plan(&pod, &state, &Memory::default(), at(now));
    assert_eq!(plan_at(NOW - 1).outcome, Outcome::Going);
    assert_eq!(plan_at(NOW - 1).wake_at, Some(at(NOW)));
    assert_eq!(
        plan_at(NOW).outcome,
        Outcome::Failed(Verdict::deadline_exceeded())
    );
    assert_eq!(steps(&pod, &state, &Memory::default()), ["stop a-0"]);
}

#[test]
fn a_pod_is_stopped_from_its_main_containers_to_its_first_sidecar() {
    let pod = pod(
        "Always",
        &[("one", false), ("proxy", true), ("log", true)],
        &["a", "b"],
    );
    let running = |names: &[&str]| {
        let containers = names
            .iter()
            .map(|name| container(name, 0, running()))
            .collect();
        let state = snapshot(vec![sandbox("s", 0, true)], containers);
        let names: Vec<String> = next_to_stop(&pod, &state)
            .iter()
            .map(|container| container.name.clone())
            .collect();
        names.join(" ")
    };
    assert_eq!(running(&["proxy", "log", "a", "b"]), "a b");
    assert_eq!(running(&["proxy", "log", "b"]), "b");
    assert_eq!(running(&["proxy", "log"]), "log");
    assert_eq!(running(&["proxy"]), "proxy");
    assert_eq!(
        running(&["proxy", "one"]),
        "one",
        "an init container that still runs goes first"
    );
    assert_eq!(running(&["removed-from-spec"]), "removed-from-spec");
    assert_eq!(running(&[]), "");
}
