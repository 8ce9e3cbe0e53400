use serde_json::{Value, json};

use super::*;
use crate::memory::{CrashBackoff, FailedStep, Health};
use crate::model::{container_hash, main_slots};
use crate::snapshot::{Container, Exit, Sandbox, State};

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

const NOW: i64 = 1_000;

fn pod(policy: &str) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 3},
        "spec": {"restartPolicy": policy, "containers": [
            {"name": "a", "image": "img:1", "readinessProbe": {"tcpSocket": {"port": 80}}},
        ]},
    }))
    .unwrap()
}

fn container(attempt: u32, state: State) -> Container {
    Container {
        id: format!("a{attempt}"),
        name: "a".into(),
        sandbox: "s".into(),
        attempt,
        state,
        created: at(2),
        image: "sha256:abc".into(),
        image_id: "sha256:abc".into(),
        hash: container_hash(&main_slots(&pod("Always")).next().unwrap().container),
        log_path: String::new(),
        read_only_below: Vec::new(),
        user: None,
        exit_message: None,
    }
}

fn exited(code: i32) -> State {
    State::Exited(Exit {
        code,
        reason: if code == 0 { "Completed" } else { "Error" }.into(),
        message: String::new(),
        started: Some(at(5)),
        finished: at(NOW - 4),
    })
}

fn status_of(
    pod: &Pod,
    containers: Vec<Container>,
    memory: &Memory,
    outcome: &Outcome,
) -> PodStatus {
    let sandbox = Sandbox {
        id: "s".into(),
        attempt: 0,
        ready: true,
        created: at(1),
        ips: vec!["10.1.1.1".into()],
    };
    let mut snapshot = Snapshot {
        sandboxes: vec![sandbox],
        containers,
    };
    snapshot.sort();
    compute(&Inputs {
        pod,
        snapshot: &snapshot,
        memory,
        allocation: &Allocation::of(pod),
        outcome,
        node_ips: &["192.0.2.1".to_owned()],
        runtime_name: "containerd",
        now: at(NOW),
    })
}

fn json_of(status: &PodStatus) -> Value {
    serde_json::to_value(status).unwrap()
}

fn condition<'a>(status: &'a Value, type_: &str) -> &'a Value {
    let conditions = status["conditions"].as_array().unwrap();
    conditions
        .iter()
        .find(|condition| condition["type"] == type_)
        .unwrap()
}

#[test]
fn a_running_container_is_ready_when_its_probe_says_so() {
    let pod = pod("Always");
    let running = || vec![container(0, State::Running { since: at(900) })];
    let mut memory = Memory::default();
    let before = json_of(&status_of(&pod, running(), &memory, &Outcome::Going));
    assert_eq!(before["phase"], "Running");
    assert_eq!(before["podIP"], "10.1.1.1");
    assert_eq!(before["podIPs"], json!([{"ip": "10.1.1.1"}]));
    assert_eq!(before["hostIP"], "192.0.2.1");
    assert_eq!(before["qosClass"], "BestEffort");
    assert_eq!(before["observedGeneration"], 3);
    assert_eq!(before["containerStatuses"][0]["ready"], false);
    assert_eq!(before["containerStatuses"][0]["started"], true);
    assert_eq!(before["containerStatuses"][0]["image"], "img:1");
    assert_eq!(
        before["containerStatuses"][0]["containerID"],
        "containerd://a0"
    );
    let ready = condition(&before, "Ready");
    assert_eq!(ready["status"], "False");
    assert_eq!(ready["reason"], "ContainersNotReady");
    assert_eq!(ready["message"], "containers with unready status: [a]");
    assert_eq!(condition(&before, "Initialized")["status"], "True");
    assert_eq!(
        condition(&before, "PodReadyToStartContainers")["status"],
        "True"
    );

    let health = Health {
        container_id: "a0".into(),
        started: true,
        ready: true,
        condemned: None,
    };
    memory.health.insert("a".into(), health);
    let after = json_of(&status_of(&pod, running(), &memory, &Outcome::Going));
    assert_eq!(after["containerStatuses"][0]["ready"], true);
    assert_eq!(condition(&after, "Ready")["status"], "True");
    assert_eq!(condition(&after, "Ready")["observedGeneration"], 3);
}

#[test]
fn a_conditions_time_changes_only_with_its_status() {
    let mut pod = pod("Always");
    pod.status = serde_json::from_value(json!({"conditions": [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:07Z"},
        {"type": "Ready", "status": "True", "lastTransitionTime": "1970-01-01T00:00:07Z"},
    ]}))
    .unwrap();
    let status = json_of(&status_of(
        &pod,
        vec![],
        &Memory::default(),
        &Outcome::Going,
    ));
    assert_eq!(
        condition(&status, "PodScheduled")["lastTransitionTime"],
        "1970-01-01T00:00:07Z"
    );
    assert_eq!(
        condition(&status, "Ready")["lastTransitionTime"],
        "1970-01-01T00:16:40Z"
    );
}

#[test]
fn a_deleted_pods_end_is_final_whatever_its_restart_policy() {
    let memory = Memory {
        ended: true,
        ..Memory::default()
    };
    for (code, phase) in [(0, "Succeeded"), (137, "Failed")] {
        let containers = vec![container(0, exited(code))];
        let status = status_of(&pod("Always"), containers, &memory, &Outcome::Going);
        assert_eq!(status.phase.as_deref(), Some(phase));
    }
    let never_started = status_of(&pod("Always"), Vec::new(), &memory, &Outcome::Going);
    assert_eq!(never_started.phase.as_deref(), Some("Failed"));
}

#[test]
fn an_ended_container_shows_what_comes_next() {
    let crashed = |policy: &str, code: i32, backoff: bool, outcome: Outcome| {
        let mut memory = Memory::default();
        if backoff {
            memory
                .crashes
                .insert("a".into(), CrashBackoff::next(None, at(900), at(900)));
        }
        json_of(&status_of(
            &pod(policy),
            vec![container(2, exited(code))],
            &memory,
            &outcome,
        ))
    };
    let looping = crashed("Always", 1, true, Outcome::Going);
    let container = &looping["containerStatuses"][0];
    assert_eq!(looping["phase"], "Running");
    assert_eq!(container["state"]["waiting"]["reason"], "CrashLoopBackOff");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=a pod=p_n(u)"
    );
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 1);
    assert_eq!(container["restartCount"], 2);

    let about_to_start = crashed("Always", 1, false, Outcome::Going);
    assert_eq!(
        about_to_start["containerStatuses"][0]["state"]["terminated"]["exitCode"],
        1
    );

    let succeeded = crashed("Never", 0, false, Outcome::Done);
    assert_eq!(succeeded["phase"], "Succeeded");
    assert_eq!(condition(&succeeded, "Ready")["reason"], "PodCompleted");
    assert_eq!(
        condition(&succeeded, "Initialized")["reason"],
        "PodCompleted"
    );

    let failed = crashed("Never", 3, false, Outcome::Done);
    assert_eq!(failed["phase"], "Failed");
    assert_eq!(
        failed["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Error"
    );
    assert_eq!(condition(&failed, "Ready")["reason"], "PodFailed");

    let late = crashed(
        "Always",
        137,
        false,
        Outcome::Failed(crate::memory::Verdict::deadline_exceeded()),
    );
    assert_eq!(
        (&late["phase"], &late["reason"]),
        (&json!("Failed"), &json!("DeadlineExceeded"))
    );
}

#[test]
fn a_failed_start_shows_its_reason_and_a_failed_pull_turns_into_back_off() {
    let pod = pod("Always");
    for (step, age, reason) in [
        (FailedStep::ImagePull, 0, "ErrImagePull"),
        (FailedStep::ImagePull, 5, "ImagePullBackOff"),
        (FailedStep::ImageName, 0, "InvalidImageName"),
        (FailedStep::ImageNeverPull, 0, "ErrImageNeverPull"),
        (FailedStep::Config, 0, "CreateContainerConfigError"),
        (FailedStep::Create, 0, "CreateContainerError"),
    ] {
        let mut memory = Memory::default();
        memory.failed("a", step, "why".into(), at(NOW - age));
        let status = json_of(&status_of(&pod, vec![], &memory, &Outcome::Going));
        assert_eq!(status["phase"], "Pending", "{reason}");
        assert_eq!(
            status["containerStatuses"][0]["state"]["waiting"]["reason"],
            reason
        );
    }
    let status = json_of(&status_of(
        &pod,
        vec![],
        &Memory::default(),
        &Outcome::Going,
    ));
    assert_eq!(
        status["containerStatuses"][0]["state"]["waiting"]["reason"],
        "ContainerCreating"
    );
}

#[test]
fn the_end_stays_on_record_when_the_runtime_forgot_the_container() {
    let mut pod = pod("Never");
    pod.status = serde_json::from_value(json!({
        "phase": "Succeeded",
        "startTime": "1970-01-01T00:00:07Z",
        "podIPs": [{"ip": "10.9.9.9"}],
        "containerStatuses": [{
            "name": "a", "image": "img:1", "imageID": "sha256:abc", "ready": false,
            "restartCount": 1, "containerID": "containerd://a1",
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        }],
    }))
    .unwrap();
    let snapshot = Snapshot::default();
    let status = json_of(&compute(&Inputs {
        allocation: &Allocation::of(&pod),
        pod: &pod,
        snapshot: &snapshot,
        memory: &Memory::default(),
        outcome: &Outcome::Done,
        node_ips: &[],
        runtime_name: "containerd",
        now: at(NOW),
    }));
    assert_eq!(status["phase"], "Succeeded");
    assert_eq!(status["startTime"], "1970-01-01T00:00:07Z");
    assert_eq!(status["podIP"], "10.9.9.9");
    assert_eq!(
        status["containerStatuses"][0]["state"]["terminated"]["reason"],
        "Completed"
    );
    assert_eq!(status["containerStatuses"][0]["restartCount"], 1);
    assert_eq!(status["containerStatuses"][0]["imageID"], "sha256:abc");
}

#[test]
fn readiness_gates_hold_the_pod_back() {
    let mut pod = pod("Always");
    let spec = pod.spec.as_mut().unwrap();
    spec.containers[0].readiness_probe = None;
    spec.readiness_gates = serde_json::from_value(json!([{"conditionType": "ex.com/ok"}])).unwrap();
    let running = || vec![container(0, State::Running { since: at(900) })];
    let status = json_of(&status_of(
        &pod,
        running(),
        &Memory::default(),
        &Outcome::Going,
    ));
    assert_eq!(condition(&status, "ContainersReady")["status"], "True");
    assert_eq!(
        condition(&status, "Ready")["reason"],
        "ReadinessGatesNotReady"
    );
    pod.status =
        serde_json::from_value(json!({"conditions": [{"type": "ex.com/ok", "status": "True"}]}))
            .unwrap();
    let status = json_of(&status_of(
        &pod,
        running(),
        &Memory::default(),
        &Outcome::Going,
    ));
    assert_eq!(condition(&status, "Ready")["status"], "True");
}
