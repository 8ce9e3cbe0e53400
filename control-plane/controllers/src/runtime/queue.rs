//! A work queue: each key at most once in the queue, never in two workers at once, with delays and
//! back-off per key (5 ms doubling to 1000 s, upstream's default limiter).
//!
//! A key added while a worker holds it runs once more afterwards, so no change is lost; a key added ten
//! times while it waits runs once.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    hash::Hash,
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use windlass_informers::{Cached, Informer, Key, Subscription};

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// See the module's documentation.
pub(crate) struct Queue<K> {
    state: Mutex<State<K>>,
    wake: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Waiting in `ready`, or to be put there when its worker is done.
    dirty: AHashSet<K>,
    processing: AHashSet<K>,
    delayed: BinaryHeap<Reverse<Delayed<K>>>,
    failures: AHashMap<K, u32>,
    sequence: u64,
}

struct Delayed<K> {
    due: Instant,
    sequence: u64,
    key: K,
}

impl<K> PartialEq for Delayed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl<K> Eq for Delayed<K> {}
impl<K> PartialOrd for Delayed<K> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<K> Ord for Delayed<K> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

impl Queue<Key> {
    /// Enqueues every object of a kind when it changes.
    pub(crate) fn follow<K: Cached>(self: &Arc<Self>, informer: &Informer<K>) -> Subscription {
        self.follow_to(informer, |object| Some(Key::of(object)))
    }

    /// Enqueues what an object that changes names, where it names anything.
    pub(crate) fn follow_to<K: Cached>(
        self: &Arc<Self>,
        informer: &Informer<K>,
        of: impl Fn(&K) -> Option<Key> + Send + Sync + 'static,
    ) -> Subscription {
        let queue = Arc::clone(self);
        informer.on_change(move |change| {
            if let Some(key) = of(change.object()) {
                queue.add(key);
            }
        })
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State::new()),
            wake: Notify::new(),
        })
    }

    /// Has the key worked on as soon as a worker is free.
    pub(crate) fn add(&self, key: K) {
        self.state.lock().enter(key);
        self.wake.notify_one();
    }

    /// Has the key worked on after a delay.
    pub(crate) fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        self.state.lock().delay(key, Instant::now() + delay);
        // The waiting worker may sleep longer than this delay.
        self.wake.notify_one();
    }

    /// Retries the key, each time later than before.
    pub(crate) fn add_rate_limited(&self, key: K) {
        let delay = self.state.lock().fail(&key);
        self.add_after(key, delay);
    }

    /// The key succeeded: its next failure starts with a short delay.
    pub(crate) fn forget(&self, key: &K) {
        self.state.lock().failures.remove(key);
    }

    /// The next key; must be followed by [`Self::done`] with it.
    pub(crate) async fn next(&self) -> K {
        loop {
            let (key, due) = self.state.lock().take(Instant::now());
            match (key, due) {
                (Some(key), _) => {
                    // Another worker may sleep while more keys are ready.
                    self.wake.notify_one();
                    return key;
                }
                (None, Some(due)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(due) => {}
                        () = self.wake.notified() => {}
                    }
                }
                (None, None) => self.wake.notified().await,
            }
        }
    }

    /// Gives the key back; if it was added meanwhile, it is ready again.
    pub(crate) fn done(&self, key: &K) {
        if self.state.lock().give_back(key) {
            self.wake.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash> State<K> {
    fn new() -> Self {
        Self {
            ready: VecDeque::new(),
            dirty: AHashSet::new(),
            processing: AHashSet::new(),
            delayed: BinaryHeap::new(),
            failures: AHashMap::new(),
            sequence: 0,
        }
    }

    fn delay(&mut self, key: K, due: Instant) {
        self.sequence += 1;
        self.delayed.push(Reverse(Delayed {
            due,
            sequence: self.sequence,
            key,
        }));
    }

    fn fail(&mut self, key: &K) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures += 1;
        backoff(*failures)
    }

    /// Whether the key is ready once more.
    fn give_back(&mut self, key: &K) -> bool {
        self.processing.remove(key);
        let again = self.dirty.contains(key);
        if again {
            self.ready.push_back(key.clone());
        }
        again
    }

    fn enter(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    /// The next ready key, else when the next delayed one is due.
    fn take(&mut self, now: Instant) -> (Option<K>, Option<Instant>) {
        while self
            .delayed
            .peek()
            .is_some_and(|Reverse(delayed)| delayed.due <= now)
        {
            if let Some(Reverse(delayed)) = self.delayed.pop() {
                self.enter(delayed.key);
            }
        }
        let Some(key) = self.ready.pop_front() else {
            return (
                None,
                self.delayed.peek().map(|Reverse(delayed)| delayed.due),
            );
        };
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        (Some(key), None)
    }
}

fn backoff(failures: u32) -> Duration {
    BASE_DELAY
        .saturating_mul(1 << (failures - 1).min(24))
        .min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_added_often_runs_once() {
        let (mut state, now) = (State::new(), Instant::now());
        for _ in 0..5 {
            state.enter("a");
        }
        state.enter("b");
        assert_eq!(state.take(now), (Some("a"), None));
        assert_eq!(state.take(now), (Some("b"), None));
        assert!(!state.give_back(&"a"));
        assert_eq!(state.take(now), (None, None));
    }

    #[test]
    fn a_key_added_while_worked_on_runs_again_but_not_at_the_same_time() {
        let (mut state, now) = (State::new(), Instant::now());
        state.enter("a");
        assert_eq!(state.take(now), (Some("a"), None));
        state.enter("a");
        assert_eq!(state.take(now), (None, None));
        assert!(state.give_back(&"a"));
        assert_eq!(state.take(now), (Some("a"), None));
    }

    #[test]
    fn delays_are_kept_and_the_earliest_comes_first() {
        let (mut state, now) = (State::new(), Instant::now());
        let after = |seconds| now + Duration::from_secs(seconds);
        state.delay("late", after(10));
        state.delay("soon", after(1));
        assert_eq!(state.take(now), (None, Some(after(1))));
        assert_eq!(state.take(after(1)), (Some("soon"), None));
        assert_eq!(state.take(after(9)), (None, Some(after(10))));
        assert_eq!(state.take(after(10)), (Some("late"), None));
    }

    #[test]
    fn failures_back_off_until_the_key_is_forgotten() {
        let mut state = State::new();
        let delays: Vec<_> = (0..3).map(|_| state.fail(&"a").as_millis()).collect();
        assert_eq!(delays, [5, 10, 20]);
        state.failures.remove("a");
        assert_eq!(state.fail(&"a").as_millis(), 5);
        assert_eq!(backoff(100), MAX_DELAY);
    }

    #[tokio::test]
    async fn every_sleeping_worker_is_woken_when_many_keys_come_at_once() {
        let queue = Queue::new();
        let workers: Vec<_> = (0..3)
            .map(|_| {
                let queue = Arc::clone(&queue);
                tokio::spawn(async move { queue.next().await })
            })
            .collect();
        tokio::task::yield_now().await;
        for key in 0..2 {
            queue.add(key);
        }
        queue.add_after(2, Duration::from_millis(1));
        let mut keys = Vec::new();
        for worker in workers {
            keys.push(worker.await.unwrap());
        }
        keys.sort_unstable();
        assert_eq!(keys, [0, 1, 2]);
    }
}
