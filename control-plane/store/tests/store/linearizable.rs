//! Histories of clients that work at the same time: one order of all calls must explain what each was told, and must
//! agree with who was answered before whom was asked.
//!
//! Every write tells its revision, so the order of writes is known and need not be searched for. What is left is a moment for
//! each read and each refused write, between two revisions. Taking the earliest that is left is enough: only later calls
//! depend on it, and they gain by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use windlass_store::{Expect, KeyValue, RangeRequest, Revision, Store, StoreError};

const CLIENTS: u64 = 6;
const CALLS: u64 = 120;
const PREFIX: &str = "/linear/";
const KEYS: [&str; 3] = ["/linear/a", "/linear/b", "/linear/c"];

/// What a key holds: the value and its revision, if it exists.
type Held = Option<(Bytes, Revision)>;

#[derive(Debug)]
enum Told {
    /// This revision was made: the key holds the value now, or is gone.
    Wrote {
        key: &'static str,
        expect: Expect,
        value: Option<Bytes>,
        at: Revision,
    },
    /// The key holds this: a read, or a write that was refused for it.
    Saw {
        key: &'static str,
        held: Held,
    },
    /// All keys hold this, and this is the revision.
    SawAll {
        held: BTreeMap<String, (Bytes, Revision)>,
        at: Revision,
    },
    SawRevision(Revision),
}

#[derive(Debug)]
struct Call {
    asked: u64,
    answered: u64,
    told: Told,
}

fn held(kv: &KeyValue) -> (Bytes, Revision) {
    (kv.value.to_vec().into(), kv.mod_revision)
}

/// A number below `limit` that client and step decide.
fn choice(client: u64, step: u64, salt: u64, limit: u64) -> usize {
    let mut mixed = (client << 40) ^ (step << 8) ^ salt;
    for _ in 0..3 {
        mixed = (mixed ^ (mixed >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
    usize::try_from((mixed >> 33) % limit).expect("small")
}

async fn work(store: Arc<dyn Store>, clock: Arc<AtomicU64>, client: u64) -> Vec<Call> {
    let mut calls = Vec::new();
    // What it saw last of each key, by which it decides as a controller would.
    let mut known: BTreeMap<&str, Revision> = BTreeMap::new();
    for step in 0..CALLS {
        let key = KEYS[choice(client, step, 1, 3)];
        let value = Bytes::from(format!("{client}.{step}"));
        let expect = match (choice(client, step, 2, 4), known.get(key)) {
            (0, _) => Expect::Absent,
            (1, _) => Expect::Any,
            (_, Some(revision)) => Expect::ModRevision(*revision),
            (_, None) => Expect::Any,
        };
        let asked = clock.fetch_add(1, Ordering::SeqCst);
        let told = match choice(client, step, 3, 8) {
            0 | 1 => {
                let found = store.get(key, None).await.expect("get");
                Told::Saw {
                    key,
                    held: found.as_ref().map(held),
                }
            }
            2 => {
                let request = RangeRequest {
                    prefix: PREFIX,
                    ..RangeRequest::default()
                };
                let range = store.range(request).await.expect("range");
                let all = range.items.iter();
                Told::SawAll {
                    held: all.map(|kv| (kv.key.to_string(), held(kv))).collect(),
                    at: range.revision,
                }
            }
            3 => Told::SawRevision(store.current_revision().await.expect("revision")),
            4 => match store.delete(key, expect).await {
                Ok((at, _)) => Told::Wrote {
                    key,
                    expect,
                    value: None,
                    at,
                },
                Err(error) => refused(key, error),
            },
            _ => match store.put(key, value.clone(), expect, None).await {
                Ok(at) => Told::Wrote {
                    key,
                    expect,
                    value: Some(value),
                    at,
                },
                Err(error) => refused(key, error),
            },
        };
        let answered = clock.fetch_add(1, Ordering::SeqCst);
        match &told {
            Told::Wrote {
                key,
                value: Some(_),
                at,
                ..
            } => drop(known.insert(key, *at)),
            Told::Saw {
                key,
                held: Some((_, at)),
            } => drop(known.insert(key, *at)),
            Told::Wrote { key, .. } | Told::Saw { key, .. } => drop(known.remove(key)),
            Told::SawAll { .. } | Told::SawRevision(_) => {}
        }
        calls.push(Call {
            asked,
            answered,
            told,
        });
    }
    calls
}

fn refused(key: &'static str, error: StoreError) -> Told {
    let StoreError::Conflict { current } = error else {
        panic!("{error}");
    };
    Told::Saw {
        key,
        held: current.as_deref().map(held),
    }
}

pub(crate) async fn concurrent_clients_agree_on_one_order(store: Arc<dyn Store>) {
    let start = store.current_revision().await.expect("revision");
    let clock = Arc::new(AtomicU64::new(0));
    let clients = (0..CLIENTS).map(|client| {
        let work = work(store.clone(), clock.clone(), client);
        tokio::spawn(work)
    });
    let mut calls = Vec::new();
    for client in futures::future::join_all(clients).await {
        calls.extend(client.expect("a client"));
    }
    check(start, &calls);
}

/// All states that there were: of each key, since which revision it holds what.
struct History {
    start: Revision,
    last: Revision,
    keys: BTreeMap<&'static str, Vec<(Revision, Option<Bytes>)>>,
}

impl History {
    fn of(start: Revision, calls: &[Call]) -> Self {
        let mut writes: Vec<(&Call, Revision)> = calls
            .iter()
            .filter_map(|call| match call.told {
                Told::Wrote { at, .. } => Some((call, at)),
                _ => None,
            })
            .collect();
        writes.sort_by_key(|(_, at)| *at);
        let mut history = Self {
            start,
            last: start,
            keys: BTreeMap::new(),
        };
        for (call, at) in &writes {
            let Told::Wrote {
                key, expect, value, ..
            } = &call.told
            else {
                continue;
            };
            assert_eq!(*at, history.last.next(), "each write makes one revision");
            let before = history.held(key, history.last);
            let is_met = match expect {
                Expect::Any => true,
                Expect::Absent => before.is_none(),
                Expect::ModRevision(wanted) => before.is_some_and(|(_, at)| at == *wanted),
            };
            assert!(is_met, "{call:?} was not refused");
            history.last = *at;
            history
                .keys
                .entry(*key)
                .or_default()
                .push((*at, value.clone()));
        }
        let mut earliest_answer = u64::MAX;
        for (call, _) in writes.iter().rev() {
            assert!(
                call.asked < earliest_answer,
                "{call:?} was asked after a later revision was answered"
            );
            earliest_answer = earliest_answer.min(call.answered);
        }
        history
    }

    fn held(&self, key: &str, at: Revision) -> Held {
        let states = self.keys.get(key)?;
        let after = states.partition_point(|(since, _)| *since <= at);
        let (since, value) = &states[after.checked_sub(1)?];
        value.clone().map(|value| (value, *since))
    }

    fn all(&self, at: Revision) -> BTreeMap<String, (Bytes, Revision)> {
        let keys = KEYS.iter();
        keys.filter_map(|key| Some((key.to_string(), self.held(key, at)?)))
            .collect()
    }
}

fn check(start: Revision, calls: &[Call]) {
    let history = History::of(start, calls);
    assert!(history.last > start, "something was written");
    let mut others: Vec<&Call> = calls
        .iter()
        .filter(|call| !matches!(call.told, Told::Wrote { .. }))
        .collect();
    others.sort_by_key(|call| call.answered);
    // When each was answered, and at which revision its moment is.
    let mut moments: Vec<(u64, Revision)> = Vec::new();
    for call in others {
        let mut earliest = history.start;
        let mut latest = history.last;
        for other in calls {
            if let Told::Wrote { at, .. } = other.told {
                if other.answered < call.asked {
                    earliest = earliest.max(at);
                }
                if other.asked > call.answered {
                    latest = latest.min(Revision(at.0 - 1));
                }
            }
        }
        for (answered, at) in &moments {
            if *answered < call.asked {
                earliest = earliest.max(*at);
            }
        }
        let mut possible = (earliest.0..=latest.0).map(Revision);
        let moment = possible.find(|at| match &call.told {
            Told::Saw { key, held } => history.held(key, *at) == *held,
            Told::SawAll { held, at: told } => at == told && history.all(*at) == *held,
            Told::SawRevision(told) => at == told,
            Told::Wrote { .. } => false,
        });
        let moment = moment
            .unwrap_or_else(|| panic!("no moment from {earliest} to {latest} explains {call:?}"));
        moments.push((call.answered, moment));
    }
}

#[test]
#[should_panic(expected = "explains")]
fn a_read_of_the_past_is_noticed() {
    let value = Some(Bytes::from_static(b"x"));
    let wrote = Told::Wrote {
        key: KEYS[0],
        expect: Expect::Absent,
        value,
        at: Revision(1),
    };
    let saw = Told::Saw {
        key: KEYS[0],
        held: None,
    };
    let call = |asked, told| Call {
        asked,
        answered: asked + 1,
        told,
    };
    check(Revision(0), &[call(0, wrote), call(2, saw)]);
}
