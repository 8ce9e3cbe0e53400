//! Policies may speak of names. Then whoever judges packets has to know what a name is before whoever asked does:
//! an answer that such a policy waits for leaves only when it has been taken over.
//!
//! Nobody is kept from an answer. When there is nobody to tell, or it takes too long, the answer leaves, and the
//! packets to what it names are dropped until it has been told.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use parking_lot::Mutex;
use tokio::sync::watch;
use windlass_domain_names::{DomainMap, DomainPattern, normal};

/// How long an answer waits.
const PATIENCE: Duration = Duration::from_secs(1);
/// What was told is told again when so much more would be said of its life. Less than the grace that whoever is told
/// gives, so that nothing ends in between.
const SLACK: Duration = Duration::from_secs(30);
/// Addresses that are remembered as told.
const REMEMBERED: usize = 16_384;

/// What a name was found to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lesson {
    /// In small letters, without a dot at its end.
    pub name: String,
    /// Each with how long it may be remembered.
    pub addresses: Vec<(IpAddr, Duration)>,
    /// From outside the cluster.
    pub foreign: bool,
}

/// Whoever judges packets.
pub trait Teach: Send + Sync + 'static {
    /// Ends when packets are judged by it; `false` when they will not be.
    fn teach(&self, lesson: Lesson) -> BoxFuture<'_, bool>;
}

/// The names that policies speak of, and what has been told of them since they last said so.
#[derive(Default)]
pub struct Wanted {
    patterns: DomainMap<()>,
    told: Mutex<HashMap<(String, IpAddr), Instant>>,
}

impl Wanted {
    /// What is no pattern is left out: then nobody is waited for.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Arc<Self> {
        let parsed = patterns.into_iter().filter_map(DomainPattern::parse);
        let parsed: Vec<DomainPattern> = parsed.collect();
        Arc::new(Self {
            patterns: parsed.iter().collect(),
            told: Mutex::default(),
        })
    }

    /// The name as it is told, if a policy speaks of it.
    fn name(&self, name: &Name) -> Option<String> {
        if self.patterns.is_empty() {
            return None;
        }
        let name = normal(&name.to_ascii());
        let wanted = self.patterns.matching(&name).next().is_some();
        wanted.then_some(name)
    }

    fn knows(&self, lesson: &Lesson) -> bool {
        let (told, now) = (self.told.lock(), Instant::now());
        lesson.addresses.iter().all(|(address, lives)| {
            told.get(&(lesson.name.clone(), *address))
                .is_some_and(|until| *until + SLACK >= now + *lives)
        })
    }

    fn remember(&self, lesson: &Lesson) {
        let (mut told, now) = (self.told.lock(), Instant::now());
        if told.len() + lesson.addresses.len() > REMEMBERED {
            told.retain(|_, until| *until > now);
            if told.len() + lesson.addresses.len() > REMEMBERED {
                told.clear();
            }
        }
        for (address, lives) in &lesson.addresses {
            told.insert((lesson.name.clone(), *address), now + *lives);
        }
    }
}

#[derive(Clone)]
pub struct Lessons {
    wanted: watch::Receiver<Arc<Wanted>>,
    teacher: Arc<dyn Teach>,
}

impl Lessons {
    pub fn new(wanted: watch::Receiver<Arc<Wanted>>, teacher: Arc<dyn Teach>) -> Self {
        Self { wanted, teacher }
    }

    /// Waits until what these records say of the name has been taken over, if a policy speaks of it.
    pub(crate) async fn give(&self, name: &Name, answers: &[Record], foreign: bool) {
        // The name's own type has no room for a lock across the wait.
        let wanted = self.wanted.borrow().clone();
        let Some(told) = wanted.name(name) else {
            return;
        };
        let lesson = Lesson {
            addresses: addresses(name, answers),
            name: told,
            foreign,
        };
        if lesson.addresses.is_empty() || wanted.knows(&lesson) {
            return;
        }
        let teaching = self.teacher.teach(lesson.clone());
        match tokio::time::timeout(PATIENCE, teaching).await {
            Ok(true) => wanted.remember(&lesson),
            _ => tracing::warn!(
                name = lesson.name,
                "an answer that a policy waits for was not taken over; what it names is not let in yet"
            ),
        }
    }

    /// Ends when policies speak of other names, or somebody else is told from now on.
    pub(crate) async fn changed(&mut self) -> bool {
        self.wanted.changed().await.is_ok()
    }

    pub(crate) fn are_about(&self, name: &Name) -> bool {
        self.wanted.borrow().name(name).is_some()
    }
}

/// The addresses that the name is, by way of its aliases. A record of another name has no say in that.
fn addresses(name: &Name, answers: &[Record]) -> Vec<(IpAddr, Duration)> {
    let mut names = vec![name];
    // Each round follows one alias more, however they stand.
    for _ in answers {
        let alias = answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target)
                if names.contains(&&record.name) && !names.contains(&&target.0) =>
            {
                Some(&target.0)
            }
            _ => None,
        });
        match alias {
            Some(target) => names.push(target),
            None => break,
        }
    }
    let of_name = answers
        .iter()
        .filter(|record| names.contains(&&record.name));
    of_name
        .filter_map(|record| {
            let address = match &record.data {
                RData::A(address) => address.0.into(),
                RData::AAAA(address) => address.0.into(),
                _ => return None,
            };
            Some((address, Duration::from_secs(record.ttl.into())))
        })
        .collect()
}

/// Whether answers of this type may name addresses.
pub(crate) fn names_addresses(kind: RecordType) -> bool {
    matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use hickory_proto::rr::rdata::{A, AAAA, CNAME};

    use super::*;

    #[derive(Default)]
    struct Pupil {
        heard: Mutex<Vec<Lesson>>,
        deaf: bool,
    }

    impl Teach for Pupil {
        fn teach(&self, lesson: Lesson) -> BoxFuture<'_, bool> {
            async move {
                if self.deaf {
                    return std::future::pending().await;
                }
                self.heard.lock().push(lesson);
                true
            }
            .boxed()
        }
    }

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    fn a(of: &str, last: u8, ttl: u32) -> Record {
        Record::from_rdata(name(of), ttl, RData::A(A::new(192, 0, 2, last)))
    }

    fn alias(of: &str, target: &str) -> Record {
        Record::from_rdata(name(of), 60, RData::CNAME(CNAME(name(target))))
    }

    fn lessons(pupil: &Arc<Pupil>) -> (Lessons, watch::Sender<Arc<Wanted>>) {
        let (wanted, patterns) = watch::channel(Wanted::new(["*.example.org"]));
        (Lessons::new(patterns, pupil.clone()), wanted)
    }

    #[tokio::test]
    async fn only_what_policies_speak_of_is_told_and_that_once() {
        let pupil = Arc::new(Pupil::default());
        let (lessons, wanted) = lessons(&pupil);
        lessons
            .give(&name("example.org."), &[a("example.org.", 1, 60)], true)
            .await;
        lessons.give(&name("www.example.org."), &[], true).await;
        assert!(pupil.heard.lock().is_empty());
        let six = RData::AAAA(AAAA::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));
        let both = [
            a("WWW.example.org.", 1, 60),
            Record::from_rdata(name("www.example.org."), 60, six),
        ];
        for _ in 0..3 {
            lessons.give(&name("WWW.Example.org."), &both, true).await;
        }
        let told = Lesson {
            name: "www.example.org".into(),
            addresses: vec![
                ([192, 0, 2, 1].into(), Duration::from_secs(60)),
                (
                    [0x2001, 0xdb8, 0, 0, 0, 0, 0, 1].into(),
                    Duration::from_secs(60),
                ),
            ],
            foreign: true,
        };
        assert_eq!(
            std::mem::take(&mut *pupil.heard.lock()),
            std::slice::from_ref(&told)
        );
        // It would live longer than was told; then, whoever is told has forgotten.
        lessons
            .give(
                &name("www.example.org."),
                &[a("www.example.org.", 1, 600)],
                true,
            )
            .await;
        assert_eq!(pupil.heard.lock().len(), 1);
        wanted.send_replace(Wanted::new(["www.example.org"]));
        lessons.give(&name("www.example.org."), &both, true).await;
        assert_eq!(pupil.heard.lock().last(), Some(&told));
    }

    #[tokio::test]
    async fn an_alias_leads_to_addresses_and_strangers_have_no_say() {
        let pupil = Arc::new(Pupil::default());
        let (lessons, _wanted) = lessons(&pupil);
        let records = [
            a("other.net.", 9, 60),
            alias("b.example.net.", "c.example.net."),
            alias("a.example.org.", "b.example.net."),
            // A circle.
            alias("c.example.net.", "a.example.org."),
            a("c.example.net.", 1, 60),
        ];
        lessons.give(&name("a.example.org."), &records, true).await;
        let addresses = &pupil.heard.lock()[0].addresses;
        assert_eq!(
            *addresses,
            [([192, 0, 2, 1].into(), Duration::from_secs(60))]
        );
    }

    #[tokio::test]
    async fn nobody_waits_for_ever() {
        let pupil = Arc::new(Pupil {
            deaf: true,
            ..Pupil::default()
        });
        let (lessons, _wanted) = lessons(&pupil);
        lessons
            .give(
                &name("www.example.org."),
                &[a("www.example.org.", 1, 60)],
                true,
            )
            .await;
    }
}
