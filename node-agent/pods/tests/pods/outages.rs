//! The runtime or the API is away.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::{Node, is_ready, sh, state};

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_shows_at_once_and_a_dead_runtime_or_api_is_survived() {
    let Some(mut node) = Node::start().await else {
        return;
    };
    node.create(
        "web",
        json!({"restartPolicy": "Always", "containers": [
            {"name": "c", "command": sh("sleep 100000")},
        ]}),
    );
    node.wait("web", "becomes ready", is_ready).await;

    // --- an exit is in the status within moments ---
    let begun = Instant::now();
    node.kill_container("web");
    node.wait("web", "is not ready any more", |pod| !is_ready(pod))
        .await;
    let unready = begun.elapsed();
    let ended = |pod: &Value| {
        state(pod, "c")["state"]["terminated"].is_object() || state(pod, "c")["restartCount"] == 1
    };
    node.wait("web", "shows the exit", ended).await;
    let took = begun.elapsed();
    eprintln!("not ready after {unready:?}, exit shown after {took:?}");
    // Leftovers are looked for every ten seconds: sooner means that an event said it, on a busy machine as well.
    assert!(
        took < Duration::from_secs(5),
        "by an event, not by a list: {took:?}"
    );
    let pod = node
        .wait("web", "runs again", |pod| {
            state(pod, "c")["restartCount"] == 1 && is_ready(pod)
        })
        .await;
    let id = state(&pod, "c")["containerID"].clone();

    // --- containerd is killed: the container runs on, and what ends meanwhile is found ---
    node.containerd.kill();
    tokio::time::sleep(Duration::from_millis(700)).await;
    node.containerd.launch().await;
    node.create(
        "after",
        json!({"containers": [{"name": "c", "command": sh("sleep 100000")}]}),
    );
    node.wait("after", "becomes ready", is_ready).await;
    let pod = node.api.get("pods", "web").unwrap();
    assert_eq!(state(&pod, "c")["containerID"], id);
    assert!(is_ready(&pod));

    // --- and exits are heard again, even one that came before the agent listened again ---
    let begun = Instant::now();
    node.kill_container("after");
    node.wait("after", "is not ready any more", |pod| !is_ready(pod))
        .await;
    let took = begun.elapsed();
    eprintln!("not ready after {took:?}, just after the restart");
    assert!(
        took < Duration::from_secs(5),
        "not by the slow lists: {took:?}"
    );

    // --- the API is away: exits are remembered and told when it is back ---
    node.api.set_down(true);
    node.kill_container("web");
    tokio::time::sleep(Duration::from_millis(500)).await;
    node.api.set_down(false);
    node.wait("web", "tells the second end", |pod| {
        state(pod, "c")["lastState"]["terminated"]["exitCode"] == 137
    })
    .await;
    node.end().await;
}
