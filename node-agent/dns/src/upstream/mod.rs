//! Names outside the cluster: asked of the node's nameservers, remembered, and answered from memory when these
//! are slow or away.
//!
//! An answer that is asked for again shortly before it expires is fetched anew behind the client's back, and an
//! expired one is better than none (RFC 8767). One question is asked once, however many clients wait for it.

mod servers;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, Record, RecordType};
use indexmap::IndexMap;
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

pub(crate) use self::servers::ResolvConf;

/// Answers kept; the oldest fall out by chance.
const REMEMBERED: usize = 10_000;
/// Questions that wait for an answer at a time; more are refused, so that nobody can pile them up without end.
const WAITING: usize = 1_000;
/// How long after its end an answer is still better than none. RFC 8767 proposes one to three days; addresses in
/// a cloud change owners sooner.
const STALE_FOR: Duration = Duration::from_secs(3_600);
/// RFC 8767, section 5: when a client is given what is stale rather than nothing.
const PATIENCE: Duration = Duration::from_millis(1_800);
/// RFC 8767, section 4: what a stale answer says about its life, in seconds.
const STALE_TTL: u32 = 30;
/// Of an answer's life, what must be over before it is fetched ahead.
const PREFETCH_AFTER: f64 = 0.9;

pub(crate) type Question = (Name, RecordType);

/// What the outside says.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Foreign {
    pub(crate) code: ResponseCode,
    pub(crate) answers: Vec<Record>,
    pub(crate) authority: Vec<Record>,
}

impl Foreign {
    fn failure() -> Self {
        Self {
            code: ResponseCode::ServFail,
            answers: Vec::new(),
            authority: Vec::new(),
        }
    }

    /// With every record's time to live brought to `seconds` at the most.
    fn living(mut self, seconds: u32) -> Self {
        for record in self.answers.iter_mut().chain(&mut self.authority) {
            record.ttl = record.ttl.min(seconds);
        }
        self
    }
}

/// Where an answer came from, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Upstream,
    Memory,
    Stale,
}

#[derive(Clone)]
struct Memory {
    answer: Foreign,
    since: Instant,
    lives: Duration,
}

/// Who can be asked; a trait so that the rules of this file are tested without a network.
pub(crate) trait Ask: Send + Sync + 'static {
    /// `None`: no answer worth remembering.
    fn ask<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<(Foreign, Duration)>>;
}

type Pending = Shared<oneshot::Receiver<Option<Foreign>>>;

pub(crate) struct Upstreams {
    /// None: there is nobody to ask.
    servers: RwLock<Option<Arc<dyn Ask>>>,
    /// How long a client waits before it is given what is stale.
    patience: Duration,
    memory: Mutex<IndexMap<Question, Memory>>,
    pending: Mutex<HashMap<Question, Pending>>,
}

impl Upstreams {
    pub(crate) fn new(servers: Option<Arc<dyn Ask>>) -> Arc<Self> {
        Self::with_patience(servers, PATIENCE)
    }

    pub(crate) fn with_patience(servers: Option<Arc<dyn Ask>>, patience: Duration) -> Arc<Self> {
        Arc::new(Self {
            servers: RwLock::new(servers),
            patience,
            memory: Mutex::default(),
            pending: Mutex::default(),
        })
    }

    /// Whether there is somebody to ask.
    pub(crate) fn are_there(&self) -> bool {
        self.servers.read().is_some()
    }

    /// Asks others from now on. What the former ones have said is forgotten: another network has other names.
    pub(crate) fn replace(&self, servers: Option<Arc<dyn Ask>>) {
        *self.servers.write() = servers;
        self.memory.lock().clear();
    }

    pub(crate) async fn lookup(self: &Arc<Self>, question: Question) -> (Foreign, Source) {
        let known = self.memory.lock().get(&question).cloned();
        let Some(known) = known else {
            let answer = self.fetch(question).await;
            return (answer.unwrap_or_else(Foreign::failure), Source::Upstream);
        };
        let age = known.since.elapsed();
        if age < known.lives {
            if age.as_secs_f64() > known.lives.as_secs_f64() * PREFETCH_AFTER {
                // Not waited for.
                drop(self.fetch(question));
            }
            let left = known.lives.saturating_sub(age).as_secs().max(1);
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            return (known.answer.living(left), Source::Memory);
        }
        match tokio::time::timeout(self.patience, self.fetch(question)).await {
            Ok(Some(fresh)) => (fresh, Source::Upstream),
            _ if age < known.lives + STALE_FOR => (known.answer.living(STALE_TTL), Source::Stale),
            _ => (Foreign::failure(), Source::Upstream),
        }
    }

    /// What is remembered of these names' addresses, as it would be answered now.
    pub(crate) fn remembered(&self, of: impl Fn(&Name) -> bool) -> Vec<(Name, Vec<Record>)> {
        let memory = self.memory.lock();
        let living = memory.iter().filter_map(|((name, kind), held)| {
            let left = held.lives.checked_sub(held.since.elapsed())?.as_secs();
            let wanted = matches!(kind, RecordType::A | RecordType::AAAA) && of(name);
            wanted.then(|| (name, held, u32::try_from(left).unwrap_or(u32::MAX)))
        });
        living
            .map(|(name, held, left)| (name.clone(), held.answer.clone().living(left).answers))
            .collect()
    }

    /// Asks the servers, or joins who does. The question is answered even if nobody polls this.
    fn fetch(
        self: &Arc<Self>,
        question: Question,
    ) -> impl Future<Output = Option<Foreign>> + Send + use<> {
        let pending = self.join(question);
        async move {
            match pending {
                Some(pending) => pending.await.ok().flatten(),
                None => None,
            }
        }
    }

    fn join(self: &Arc<Self>, question: Question) -> Option<Pending> {
        let servers = self.servers.read().clone()?;
        let mut pending = self.pending.lock();
        if let Some(asked) = pending.get(&question) {
            return Some(asked.clone());
        }
        if pending.len() >= WAITING {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        let receiver = receiver.shared();
        pending.insert(question.clone(), receiver.clone());
        let upstreams = self.clone();
        tokio::spawn(async move {
            let found = servers.ask(&question).await;
            let answer = found.as_ref().map(|(answer, _)| answer.clone());
            let are_asked = |now: &Arc<dyn Ask>| Arc::ptr_eq(now, &servers);
            let still = upstreams.servers.read().as_ref().is_some_and(are_asked);
            if let Some((answer, lives)) = found.filter(|_| still) {
                upstreams.remember(question.clone(), answer, lives);
            }
            upstreams.pending.lock().remove(&question);
            // Nobody may wait any more.
            let _ = sender.send(answer);
        });
        Some(receiver)
    }

    fn remember(&self, question: Question, answer: Foreign, lives: Duration) {
        if lives.is_zero() {
            return;
        }
        let memory = Memory {
            answer,
            since: Instant::now(),
            lives,
        };
        let mut all = self.memory.lock();
        if all.len() >= REMEMBERED && !all.contains_key(&question) {
            // The place of the oldest is given to the youngest each time, so this forgets in no strict order.
            all.swap_remove_index(0);
        }
        all.insert(question, memory);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;
    use tokio::sync::Semaphore;

    use super::*;

    /// Answers with its number of questions as the last byte of an address, once it is let.
    struct Server {
        asked: Arc<AtomicUsize>,
        let_through: Arc<Semaphore>,
        lives: Duration,
        fails: Arc<std::sync::atomic::AtomicBool>,
    }

    impl Ask for Server {
        fn ask<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<(Foreign, Duration)>> {
            async move {
                let number = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
                let permit = self.let_through.acquire().await.unwrap();
                permit.forget();
                if self.fails.load(Ordering::SeqCst) {
                    return None;
                }
                Some((
                    answer(&question.0, u8::try_from(number).unwrap(), 60),
                    self.lives,
                ))
            }
            .boxed()
        }
    }

    fn answer(name: &Name, last: u8, ttl: u32) -> Foreign {
        let address = RData::A(A::new(192, 0, 2, last));
        Foreign {
            code: ResponseCode::NoError,
            answers: vec![Record::from_rdata(name.clone(), ttl, address)],
            authority: Vec::new(),
        }
    }

    struct World {
        upstreams: Arc<Upstreams>,
        asked: Arc<AtomicUsize>,
        let_through: Arc<Semaphore>,
        fails: Arc<std::sync::atomic::AtomicBool>,
    }

    fn world(lives: Duration, permits: usize) -> World {
        let asked = Arc::new(AtomicUsize::new(0));
        let let_through = Arc::new(Semaphore::new(permits));
        let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let server = Server {
            asked: asked.clone(),
            let_through: let_through.clone(),
            lives,
            fails: fails.clone(),
        };
        World {
            upstreams: Upstreams::with_patience(Some(Arc::new(server)), Duration::from_millis(20)),
            asked,
            let_through,
            fails,
        }
    }

    fn question() -> Question {
        (Name::from_ascii("example.org.").unwrap(), RecordType::A)
    }

    fn age(upstreams: &Upstreams, by: Duration) {
        for memory in upstreams.memory.lock().values_mut() {
            memory.since = memory.since.checked_sub(by).unwrap();
        }
    }

    #[tokio::test]
    async fn an_answer_is_remembered_and_its_life_counts_down() {
        let world = world(Duration::from_secs(60), 9);
        let name = question().0;
        let first = world.upstreams.lookup(question()).await;
        assert_eq!(first, (answer(&name, 1, 60), Source::Upstream));
        age(&world.upstreams, Duration::from_secs(20));
        let (again, source) = world.upstreams.lookup(question()).await;
        assert_eq!(source, Source::Memory);
        assert!((39..=40).contains(&again.answers[0].ttl), "{again:?}");
        assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn one_question_is_asked_once_for_all_who_wait() {
        let world = world(Duration::from_secs(60), 0);
        let lookups: Vec<_> = (0..20)
            .map(|_| {
                let upstreams = world.upstreams.clone();
                tokio::spawn(async move { upstreams.lookup(question()).await })
            })
            .collect();
        while world.asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        world.let_through.add_permits(1);
        for lookup in lookups {
            assert_eq!(lookup.await.unwrap().0.code, ResponseCode::NoError);
        }
        assert_eq!(world.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn an_answer_in_use_is_fetched_before_it_ends() {
        let world = world(Duration::from_secs(100), 9);
        world.upstreams.lookup(question()).await;
        age(&world.upstreams, Duration::from_secs(95));
        let (old, source) = world.upstreams.lookup(question()).await;
        assert_eq!((old.answers[0].ttl, source), (4, Source::Memory));
        while world.asked.load(Ordering::SeqCst) < 2 || !world.upstreams.pending.lock().is_empty() {
            tokio::task::yield_now().await;
        }
        let (new, source) = world.upstreams.lookup(question()).await;
        assert_eq!(source, Source::Memory);
        assert_eq!(new, answer(&question().0, 2, 60));
    }

    #[tokio::test]
    async fn what_has_ended_is_given_when_nobody_answers() {
        let world = world(Duration::from_secs(60), 1);
        world.upstreams.lookup(question()).await;
        age(&world.upstreams, Duration::from_secs(61));
        // Nobody answers at all.
        let (stale, source) = world.upstreams.lookup(question()).await;
        assert_eq!(source, Source::Stale);
        assert_eq!(stale, answer(&question().0, 1, 30));
        // They answer with an error.
        world.fails.store(true, Ordering::SeqCst);
        world.let_through.add_permits(9);
        assert_eq!(world.upstreams.lookup(question()).await.1, Source::Stale);
        // It is too old.
        age(&world.upstreams, STALE_FOR);
        let (gone, _) = world.upstreams.lookup(question()).await;
        assert_eq!(gone.code, ResponseCode::ServFail);
        // They are back.
        world.fails.store(false, Ordering::SeqCst);
        let (fresh, source) = world.upstreams.lookup(question()).await;
        assert_eq!(
            (fresh.code, source),
            (ResponseCode::NoError, Source::Upstream)
        );
    }

    #[tokio::test]
    async fn other_servers_are_asked_anew() {
        let world = world(Duration::from_secs(60), 9);
        world.upstreams.lookup(question()).await;
        let other = Server {
            asked: Arc::new(AtomicUsize::new(6)),
            let_through: Arc::new(Semaphore::new(1)),
            lives: Duration::from_secs(60),
            fails: Arc::default(),
        };
        world.upstreams.replace(Some(Arc::new(other)));
        let (found, source) = world.upstreams.lookup(question()).await;
        assert_eq!(
            (found, source),
            (answer(&question().0, 7, 60), Source::Upstream)
        );
        world.upstreams.replace(None);
        assert!(!world.upstreams.are_there());
        let (gone, _) = world.upstreams.lookup(question()).await;
        assert_eq!(gone.code, ResponseCode::ServFail);
    }

    #[tokio::test]
    async fn memory_is_bounded() {
        let world = world(Duration::from_secs(60), 0);
        for number in 0..REMEMBERED + 10 {
            let name = Name::from_ascii(format!("n{number}.example.org.")).unwrap();
            let kept = answer(&name, 1, 60);
            world
                .upstreams
                .remember((name, RecordType::A), kept, Duration::from_secs(60));
        }
        assert_eq!(world.upstreams.memory.lock().len(), REMEMBERED);
    }
}
