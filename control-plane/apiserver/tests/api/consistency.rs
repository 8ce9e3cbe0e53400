//! Under concurrent writes: a watch is the replay of the history, and a list is a state that existed.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::server::*;
use crate::watches::Lines;

const WRITERS: usize = 4;
const WRITES: usize = 120;
const NAMES: usize = 7;

fn name_of(object: &Value) -> String {
    object["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn revision_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap()
}

/// Objects by name, from a list.
fn content(list: &Value) -> BTreeMap<String, Value> {
    let items = list["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| (name_of(item), item.clone()))
        .collect()
}

/// Creates, changes and deletes by a fixed but scattered plan. Losing against another writer is part of it.
async fn write(server: &Server, writer: usize) {
    for step in 0..WRITES {
        let number = writer.wrapping_mul(31).wrapping_add(step.wrapping_mul(17)) ^ (step >> 2);
        let name = format!("m{}", number % NAMES);
        let path = format!("{CONFIG_MAPS}/{name}");
        let on = if number.is_multiple_of(3) {
            "yes"
        } else {
            "no"
        };
        let answer = match step % 5 {
            0 | 1 => {
                let mut object = config_map(&name);
                object["metadata"]["labels"] = json!({"on": on});
                server.post(CONFIG_MAPS, &object).await
            }
            2 | 3 => {
                let patch = json!({"metadata": {"labels": {"on": on}}, "data": {"k": format!("{writer}-{step}")}});
                server.patch(&path, "merge", &patch).await
            }
            _ => server.delete(&path, &json!(null)).await,
        };
        assert!(matches!(answer.code, 200 | 201 | 404 | 409), "{answer:?}");
    }
}

/// Applies events to `state` until one of revision `end` or later has come.
async fn replay(watch: &mut Lines, state: &mut BTreeMap<String, Value>, start: u64, end: u64) {
    let mut last = start;
    while last < end {
        let event = watch.next().await.expect("an event");
        let object = &event["object"];
        let revision = revision_of(object);
        assert!(revision > last, "revision {revision} after {last}");
        last = revision;
        let known = state.remove(&name_of(object));
        match event["type"].as_str().unwrap() {
            "ADDED" => assert!(known.is_none(), "{object} was there"),
            "MODIFIED" => assert!(known.is_some(), "{object} was not there"),
            "DELETED" => {
                assert!(known.is_some(), "{object} was not there");
                continue;
            }
            other => panic!("{other}: {object}"),
        }
        state.insert(name_of(object), object.clone());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_watch_is_the_replay_of_the_history() {
    let server = Server::start().await;
    server.post(CONFIG_MAPS, &config_map("m0")).await.ok();
    let selectors = [
        "",
        "&labelSelector=on%3Dyes",
        "&fieldSelector=metadata.name%3Dm3",
    ];
    let mut followers = Vec::new();
    for selector in selectors {
        let list = server
            .get(&format!("{CONFIG_MAPS}?limit=0{selector}"))
            .await
            .ok();
        let start = revision_of(&list);
        let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={start}{selector}");
        followers.push((Lines::open(&server, &path).await, content(&list), start));
    }
    let writers = (0..WRITERS).map(|writer| write(&server, writer));
    futures::future::join_all(writers).await;

    // One last write that every selector sees.
    server
        .delete(&format!("{CONFIG_MAPS}/m3"), &json!(null))
        .await;
    let mut last = config_map("m3");
    last["metadata"]["labels"] = json!({"on": "yes"});
    let end = revision_of(&server.post(CONFIG_MAPS, &last).await.ok());
    for ((mut watch, mut state, start), selector) in followers.into_iter().zip(selectors) {
        replay(&mut watch, &mut state, start, end).await;
        let list = server
            .get(&format!("{CONFIG_MAPS}?limit=0{selector}"))
            .await
            .ok();
        assert_eq!(state, content(&list), "{selector}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn increments_by_many_are_never_lost() {
    let server = Server::start().await;
    server.post(DEPLOYMENTS, &deployment("web")).await.ok();
    let path = format!("{DEPLOYMENTS}/web/scale");
    let increments = (0..8).map(|_| async {
        let mut done = 0;
        while done < 10 {
            let mut scale = server.get(&path).await.ok();
            let replicas = scale["spec"]["replicas"].as_i64().unwrap();
            scale["spec"]["replicas"] = (replicas + 1).into();
            match server.put(&path, &scale).await.code {
                200 => done += 1,
                409 => {}
                code => panic!("{code}"),
            }
        }
    });
    futures::future::join_all(increments).await;
    assert_eq!(server.get(&path).await.ok()["spec"]["replicas"], 81);
}
