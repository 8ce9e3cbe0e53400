//! Generated histories on the embedded store against a model that keeps everything and is obviously right.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::suite::events_until;
use bytes::Bytes;
use proptest::prelude::*;
use windlass_packed::Packed;
use windlass_store::{
    Embedded, EmbeddedOptions, Event, Expect, KeyValue, RangeRequest, Revision, Store, StoreError,
};

const KEYS: [&str; 6] = ["/a", "/a/", "/a/b", "/a/c", "/b", "/b/\u{e9}"];
const PREFIXES: [&str; 5] = ["", "/a", "/a/", "/b", "/none"];

#[derive(Clone, Debug)]
enum Operation {
    Put {
        key: usize,
        value: u8,
        expect: Expectation,
    },
    Delete {
        key: usize,
        expect: Expectation,
    },
    Range {
        prefix: usize,
        start_after: Option<usize>,
        limit: usize,
        back: u64,
    },
    Watch {
        prefix: usize,
        back: u64,
    },
    Compact {
        back: u64,
    },
    Reopen,
}

#[derive(Clone, Copy, Debug)]
enum Expectation {
    Any,
    Absent,
    /// The key's present mod revision, minus this.
    Present {
        off_by: u64,
    },
}

fn expectation() -> impl Strategy<Value = Expectation> {
    prop_oneof![
        3 => Just(Expectation::Any),
        1 => Just(Expectation::Absent),
        3 => (0u64..2).prop_map(|off_by| Expectation::Present { off_by }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let key = 0..KEYS.len();
    let prefix = 0..PREFIXES.len();
    prop_oneof![
        12 => (key.clone(), any::<u8>(), expectation())
            .prop_map(|(key, value, expect)| Operation::Put { key, value, expect }),
        6 => (key.clone(), expectation())
            .prop_map(|(key, expect)| Operation::Delete { key, expect }),
        6 => (prefix.clone(), prop::option::of(key), 0usize..4, 0u64..12).prop_map(
            |(prefix, start_after, limit, back)| Operation::Range {
                prefix, start_after, limit, back,
            }
        ),
        4 => (prefix, 0u64..12).prop_map(|(prefix, back)| Operation::Watch { prefix, back }),
        2 => (0u64..8).prop_map(|back| Operation::Compact { back }),
        1 => Just(Operation::Reopen),
    ]
}

/// The whole state at every revision, and every event.
struct Model {
    states: Vec<BTreeMap<&'static str, KeyValue>>,
    events: Vec<Event>,
    compacted: u64,
}

impl Model {
    fn new() -> Self {
        Self {
            states: vec![BTreeMap::new()],
            events: Vec::new(),
            compacted: 0,
        }
    }

    fn current(&self) -> u64 {
        self.events.len() as u64
    }

    fn get(&self, key: &str) -> Option<&KeyValue> {
        self.states.last().and_then(|state| state.get(key))
    }

    fn expect(&self, key: &str, expectation: Expectation) -> Expect {
        let present = self.get(key).map_or(Revision(0), |kv| kv.mod_revision);
        match expectation {
            Expectation::Any => Expect::Any,
            Expectation::Absent => Expect::Absent,
            Expectation::Present { off_by } => {
                Expect::ModRevision(Revision(present.0.saturating_sub(off_by)))
            }
        }
    }

    fn meets(&self, key: &str, expect: Expect) -> bool {
        match (expect, self.get(key)) {
            (Expect::Any, _) | (Expect::Absent, None) => true,
            (Expect::ModRevision(wanted), Some(kv)) => kv.mod_revision == wanted,
            _ => false,
        }
    }

    fn put(&mut self, key: &'static str, value: Bytes) {
        let revision = Revision(self.current() + 1);
        let prev = self.get(key).cloned();
        let kv = KeyValue {
            key: Arc::from(key),
            value: Packed::plain(&value),
            create_revision: prev.as_ref().map_or(revision, |kv| kv.create_revision),
            mod_revision: revision,
        };
        let mut state = self.states.last().cloned().unwrap_or_default();
        state.insert(key, kv.clone());
        self.states.push(state);
        self.events.push(Event::Put { kv, prev });
    }

    fn delete(&mut self, key: &'static str) -> KeyValue {
        let mut state = self.states.last().cloned().unwrap_or_default();
        let prev = state.remove(key).expect("meets() was asked");
        self.states.push(state);
        let revision = Revision(self.current() + 1);
        self.events.push(Event::Delete {
            revision,
            prev: prev.clone(),
        });
        prev
    }
}

async fn replay(operations: Vec<Operation>) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("store.redb");
    let open = async || {
        // A checkpoint every few writes.
        let options = EmbeddedOptions {
            checkpoint_bytes: 500,
            ..Default::default()
        };
        Embedded::open(&path, options).await.expect("open")
    };
    let mut store = open().await;
    let mut model = Model::new();
    for operation in operations {
        match operation {
            Operation::Put { key, value, expect } => {
                let key = KEYS[key];
                let expect = model.expect(key, expect);
                let value = Bytes::from(vec![value; usize::from(value % 7)]);
                let result = store.put(key, value.clone(), expect, None).await;
                if model.meets(key, expect) {
                    model.put(key, value);
                    assert_eq!(result.expect("put").0, model.current());
                } else {
                    assert_conflict(result, model.get(key));
                }
            }
            Operation::Delete { key, expect } => {
                let key = KEYS[key];
                let expect = model.expect(key, expect);
                let result = store.delete(key, expect).await;
                if model.meets(key, expect) && model.get(key).is_some() {
                    let prev = model.delete(key);
                    assert_eq!(result.expect("delete"), (Revision(model.current()), prev));
                } else {
                    assert_conflict(result, model.get(key));
                }
            }
            Operation::Range {
                prefix,
                start_after,
                limit,
                back,
            } => {
                let at = model.current().saturating_sub(back);
                let start_after = start_after.map(|key| KEYS[key]);
                let prefix = PREFIXES[prefix];
                let request = RangeRequest {
                    prefix,
                    start_after,
                    limit,
                    at: Some(Revision(at)),
                };
                let result = store.range(request).await;
                if at < model.compacted {
                    assert_compacted(result);
                    continue;
                }
                let state = &model.states[at as usize];
                let matching: Vec<KeyValue> = state
                    .iter()
                    .filter(|(key, _)| key.starts_with(prefix))
                    .filter(|(key, _)| start_after.is_none_or(|after| **key > after))
                    .map(|(_, kv)| kv.clone())
                    .collect();
                let shown = if limit == 0 {
                    matching.len()
                } else {
                    limit.min(matching.len())
                };
                let range = result.expect("range");
                assert_eq!(range.items, matching[..shown]);
                assert_eq!(range.remaining, matching.len() - shown);
                assert_eq!(range.revision.0, at);
            }
            Operation::Watch { prefix, back } => {
                let from = model.current().saturating_sub(back);
                let prefix = PREFIXES[prefix];
                let result = store.watch(prefix, Revision(from)).await;
                if from < model.compacted {
                    assert_compacted(result.map(drop));
                    continue;
                }
                if from == model.current() {
                    continue;
                }
                let mut watch = result.expect("watch");
                let events = events_until(&mut watch, Revision(model.current())).await;
                let expected: Vec<Event> = model.events[from as usize..]
                    .iter()
                    .filter(|event| event.key().starts_with(prefix))
                    .cloned()
                    .collect();
                assert_eq!(events, expected);
            }
            Operation::Compact { back } => {
                let at = model.current().saturating_sub(back);
                store.compact(Revision(at)).await.expect("compact");
                model.compacted = model.compacted.max(at);
            }
            Operation::Reopen => {
                drop(store);
                store = open().await;
            }
        }
        assert_eq!(
            store.current_revision().await.expect("revision").0,
            model.current()
        );
    }
}

fn assert_conflict<T: std::fmt::Debug>(result: Result<T, StoreError>, expected: Option<&KeyValue>) {
    let error = result.expect_err("the expectation does not hold");
    let StoreError::Conflict { current } = error else {
        panic!("{error}")
    };
    assert_eq!(current.as_deref(), expected);
}

fn assert_compacted<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    assert!(
        matches!(result, Err(StoreError::Compacted { .. })),
        "{result:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 200, ..Default::default() })]

    #[test]
    fn any_history_reads_as_the_model_says(
        operations in prop::collection::vec(operation(), 1..60)
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(replay(operations));
    }
}
