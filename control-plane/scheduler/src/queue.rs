//! Pods that wait: ready to be tried (by priority, then age), resting after a failure, or parked until
//! something happens that may help them.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    sync::Arc,
    time::Duration,
};

use ahash::{AHashMap, AHashSet};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use crate::{event::Event, pod::PodInfo, profile::Profiles};

/// How long pods rest after a failure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    pub(crate) first: Duration,
    pub(crate) longest: Duration,
}

impl Backoff {
    fn after(self, attempts: u32) -> Duration {
        self.first
            .saturating_mul(1 << attempts.saturating_sub(1).min(10))
            .min(self.longest)
    }
}

/// A parked pod is tried again after this long even if no hint wakes it.
const MAX_PARKED: Duration = Duration::from_secs(300);

/// A reason that has not changed is told again after this long: with each attempt would be a write for each.
const RETOLD: Duration = Duration::from_secs(300);

/// A pod with its history.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) pod: Arc<PodInfo>,
    pub(crate) attempts: u32,
    since: Instant,
    /// Plugins that rejected it in the last attempt.
    pub(crate) rejected_by: Vec<&'static str>,
    /// The number of the last event before it was popped.
    seen: u64,
    /// Why it has no node, as it was told last, and when.
    told: Option<(String, Instant)>,
}

impl Waiting {
    /// Whether a reason is to be told; it counts as told then.
    pub(crate) fn is_news(&mut self, reason: &str, now: Instant) -> bool {
        let told = self.told.as_ref();
        let news = told.is_none_or(|(told, at)| told != reason || now >= *at + RETOLD);
        if news {
            self.told = Some((reason.to_owned(), now));
        }
        news
    }
}

enum Place {
    Active,
    Backoff,
    Parked { until: Instant },
    Gated,
    InFlight,
}

struct Entry {
    waiting: Waiting,
    place: Place,
    /// Distinguishes an entry from its stale copies in the heaps.
    ticket: u64,
}

/// See the module's documentation.
pub(crate) struct Queue {
    state: Mutex<State>,
    wake: Notify,
    profiles: Arc<Profiles>,
}

struct State {
    entries: AHashMap<String, Entry>,
    /// Who is parked: what happens concerns only them, however many others wait.
    parked: AHashSet<String>,
    backoff_of: Backoff,
    active: BinaryHeap<Ranked>,
    /// Pods that something may have helped since they were rejected.
    backoff: Resting,
    /// Pods that an error befell. They rest to the end: what failed may be overloaded.
    recovering: Resting,
    /// Events since the oldest pod in flight was popped: it may have decided on an older view.
    events: Vec<(u64, Event)>,
    /// Pods that are being tried, with the number of the last event before each was popped.
    in_flight: AHashMap<String, u64>,
    clock: u64,
    tickets: u64,
}

/// Pods that rest, with when that ends and the tickets of their entries.
type Resting = BinaryHeap<Reverse<(Instant, u64, String)>>;

/// Position in the active queue (PrioritySort): higher priority first, then longer waiting.
struct Ranked {
    priority: i32,
    since: Instant,
    ticket: u64,
    uid: String,
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> Ordering {
        self.priority
            .cmp(&other.priority)
            .then_with(|| other.since.cmp(&self.since))
            .then_with(|| other.ticket.cmp(&self.ticket))
    }
}
impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Ranked {}

impl Queue {
    pub(crate) fn new(profiles: Arc<Profiles>, backoff: Backoff) -> Self {
        Self {
            state: Mutex::new(State {
                entries: AHashMap::new(),
                parked: AHashSet::new(),
                backoff_of: backoff,
                active: BinaryHeap::new(),
                backoff: Resting::new(),
                recovering: Resting::new(),
                events: Vec::new(),
                in_flight: AHashMap::new(),
                clock: 0,
                tickets: 0,
            }),
            wake: Notify::new(),
            profiles,
        }
    }

    fn gate(&self, pod: &PodInfo) -> bool {
        self.profiles
            .plugins_of(pod)
            .iter()
            .any(|plugin| plugin.gate(pod).is_some())
    }

    /// A new pod, or a newer version of a waiting one.
    pub(crate) fn put(&self, pod: Arc<PodInfo>, now: Instant) {
        let gated = self.gate(&pod);
        let mut state = self.state.lock();
        let uid = pod.uid.clone();
        let known = state.entries.get_mut(&uid);
        match known {
            Some(entry) => {
                // Our own writes to its status are not news that could help it.
                let claims = |pod: &PodInfo| {
                    let status = pod.pod.status.as_ref();
                    status.and_then(|status| status.resource_claim_statuses.clone())
                };
                let changed = pod.pod.spec != entry.waiting.pod.pod.spec
                    || claims(&pod) != claims(&entry.waiting.pod)
                    || pod.pod.metadata.labels != entry.waiting.pod.pod.metadata.labels;
                entry.waiting.pod = pod;
                match entry.place {
                    Place::Parked { .. } if changed => {
                        state.hint(&uid, &Event::PodChanged, &self.profiles, now);
                    }
                    Place::Gated if !gated => state.activate(&uid),
                    Place::InFlight if changed => state.record(Event::PodChanged),
                    _ => {}
                }
            }
            None => {
                let waiting = Waiting {
                    pod,
                    attempts: 0,
                    since: now,
                    rejected_by: Vec::new(),
                    seen: 0,
                    told: None,
                };
                state.entries.insert(
                    uid.clone(),
                    Entry {
                        waiting,
                        place: Place::Gated,
                        ticket: 0,
                    },
                );
                if !gated {
                    state.activate(&uid);
                }
            }
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The pod was bound or deleted.
    pub(crate) fn remove(&self, uid: &str) {
        let mut state = self.state.lock();
        state.entries.remove(uid);
        state.parked.remove(uid);
        state.land(uid);
    }

    /// A node was found: from now on no event can help the pod, and were its binding to fail, that is an
    /// error, after which it is tried again in any case.
    pub(crate) fn decided(&self, uid: &str) {
        self.state.lock().land(uid);
    }

    /// Something happened: wakes the parked pods that it may help.
    pub(crate) fn tell(&self, event: &Event, now: Instant) {
        let mut state = self.state.lock();
        state.record(event.clone());
        if state.parked.is_empty() {
            return;
        }
        let parked: Vec<String> = state.parked.iter().cloned().collect();
        for uid in parked {
            state.hint(&uid, event, &self.profiles, now);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// The next pod to try; [`Self::remove`] or [`Self::failed`] must follow.
    pub(crate) async fn next(&self) -> Waiting {
        loop {
            let (waiting, due) = self.state.lock().pop(Instant::now());
            match (waiting, due) {
                (Some(waiting), _) => return waiting,
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

    /// The pod in flight could not be placed: it is parked until a hint, or rests if an event that came
    /// in the meantime may have helped it already. With no plugin to blame it was an error: it rests.
    pub(crate) fn failed(&self, mut waiting: Waiting, now: Instant) {
        let mut state = self.state.lock();
        let uid = waiting.pod.uid.clone();
        let Some(entry) = state.entries.get(&uid) else {
            state.land(&uid);
            return; // deleted meanwhile
        };
        waiting.pod = Arc::clone(&entry.waiting.pod);
        let error = waiting.rejected_by.is_empty();
        let helped = state
            .events
            .iter()
            .filter(|(number, _)| *number > waiting.seen)
            .any(|(_, event)| helps(&waiting, event, &self.profiles));
        let attempts = waiting.attempts;
        // Behind those of its priority that have not been tried since.
        waiting.since = now;
        if let Some(entry) = state.entries.get_mut(&uid) {
            entry.waiting = waiting;
            entry.place = Place::Parked {
                until: now + MAX_PARKED,
            };
            state.parked.insert(uid.clone());
        }
        if error || helped {
            let rested = now + state.backoff_of.after(attempts);
            state.rest(&uid, rested, error);
        }
        state.land(&uid);
        drop(state);
        self.wake.notify_one();
    }

    #[cfg(test)]
    fn try_next(&self, now: Instant) -> Option<Waiting> {
        self.state.lock().pop(now).0
    }
}

fn helps(waiting: &Waiting, event: &Event, profiles: &Profiles) -> bool {
    profiles
        .plugins_of(&waiting.pod)
        .iter()
        .filter(|plugin| waiting.rejected_by.contains(&plugin.name()))
        .any(|plugin| plugin.wakes(&waiting.pod, event))
}

impl State {
    fn record(&mut self, event: Event) {
        self.clock += 1;
        if !self.in_flight.is_empty() {
            self.events.push((self.clock, event));
        }
    }

    /// The attempt is over; events that only it could have missed are dropped.
    fn land(&mut self, uid: &str) {
        if self.in_flight.remove(uid).is_some() {
            self.forget_events();
        }
    }

    fn forget_events(&mut self) {
        let oldest = self.in_flight.values().copied().min();
        match oldest {
            None => self.events.clear(),
            Some(oldest) => self.events.retain(|(number, _)| *number > oldest),
        }
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }

    fn activate(&mut self, uid: &str) {
        let ticket = self.ticket();
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.place = Place::Active;
        entry.ticket = ticket;
        self.parked.remove(uid);
        self.active.push(Ranked {
            priority: entry.waiting.pod.priority,
            since: entry.waiting.since,
            ticket,
            uid: uid.to_owned(),
        });
    }

    fn rest(&mut self, uid: &str, until: Instant, error: bool) {
        let ticket = self.ticket();
        let Some(entry) = self.entries.get_mut(uid) else {
            return;
        };
        entry.place = Place::Backoff;
        entry.ticket = ticket;
        self.parked.remove(uid);
        let resting = match error {
            true => &mut self.recovering,
            false => &mut self.backoff,
        };
        resting.push(Reverse((until, ticket, uid.to_owned())));
    }

    /// The pod that has rested longest, if its rest is over or `now` is not asked.
    fn rested(
        resting: &mut Resting,
        entries: &AHashMap<String, Entry>,
        now: Option<Instant>,
    ) -> Option<String> {
        let is_due = |due: Instant| now.is_none_or(|now| due <= now);
        while resting
            .peek()
            .is_some_and(|Reverse((due, _, _))| is_due(*due))
        {
            let Reverse((_, ticket, uid)) = resting.pop()?;
            if entries
                .get(&uid)
                .is_some_and(|entry| entry.ticket == ticket)
            {
                return Some(uid);
            }
        }
        None
    }

    /// Wakes a parked pod if the event may help it; what rests still goes behind all that are ready.
    fn hint(&mut self, uid: &str, event: &Event, profiles: &Profiles, now: Instant) {
        let Some(entry) = self.entries.get(uid) else {
            return;
        };
        let Place::Parked { until } = entry.place else {
            return;
        };
        if !helps(&entry.waiting, event, profiles) {
            return;
        }
        let parked_at = until.checked_sub(MAX_PARKED).unwrap_or(now);
        let rested = parked_at + self.backoff_of.after(entry.waiting.attempts);
        if rested <= now {
            self.activate(uid);
        } else {
            self.rest(uid, rested, false);
        }
    }

    fn pop(&mut self, now: Instant) -> (Option<Waiting>, Option<Instant>) {
        while let Some(uid) = Self::rested(&mut self.backoff, &self.entries, Some(now))
            .or_else(|| Self::rested(&mut self.recovering, &self.entries, Some(now)))
        {
            self.activate(&uid);
        }
        while let Some(ranked) = self.active.pop() {
            let entry = self.entries.get(&ranked.uid);
            let ready = |entry: &Entry| {
                entry.ticket == ranked.ticket && matches!(entry.place, Place::Active)
            };
            if entry.is_some_and(ready) {
                return (self.take(ranked.uid), None);
            }
        }
        // Nobody else to try: a rest would be for nothing (KEP-5142).
        if let Some(uid) = Self::rested(&mut self.backoff, &self.entries, None) {
            return (self.take(uid), None);
        }
        (None, self.next_due(now))
    }

    fn take(&mut self, uid: String) -> Option<Waiting> {
        let entry = self.entries.get_mut(&uid)?;
        entry.place = Place::InFlight;
        entry.waiting.attempts += 1;
        entry.waiting.seen = self.clock;
        let waiting = entry.waiting.clone();
        self.in_flight.insert(uid, self.clock);
        Some(waiting)
    }

    /// When the next resting pod is due; parked ones that waited too long are made active here.
    fn next_due(&mut self, now: Instant) -> Option<Instant> {
        let resting = self.recovering.peek().map(|Reverse((due, _, _))| *due);
        let until = |uid: &String| match self.entries.get(uid)?.place {
            Place::Parked { until } => Some(until),
            _ => None,
        };
        let stale = self.parked.iter().filter_map(until).min();
        if stale.is_some_and(|until| until <= now) {
            let over: Vec<String> = self
                .parked
                .iter()
                .filter(|uid| until(uid).is_some_and(|until| until <= now))
                .cloned()
                .collect();
            over.iter().for_each(|uid| self.activate(uid));
            return Some(now);
        }
        resting.into_iter().chain(stale).min()
    }
}

#[cfg(test)]
mod tests;
