use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::*;
use crate::framework::Plugin;

/// Rejects, and is helped by nodes only.
struct NeedsNode;
impl Plugin for NeedsNode {
    fn name(&self) -> &'static str {
        "NeedsNode"
    }
    fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
        matches!(event, Event::Node(_))
    }
    fn gate(&self, pod: &PodInfo) -> Option<String> {
        pod.spec()
            .scheduling_gates
            .as_ref()
            .map(|_| "gated".to_owned())
    }
}

const BACKOFF: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(10),
};

fn with(plugin: Box<dyn Plugin>) -> Queue {
    Queue::new(Arc::new(Profiles::single(vec![plugin])), BACKOFF)
}

fn queue() -> Queue {
    with(Box::new(NeedsNode))
}

fn pod(uid: &str, priority: i32) -> Arc<PodInfo> {
    PodInfo::new(Arc::new(Pod {
        metadata: ObjectMeta {
            uid: Some(uid.into()),
            ..Default::default()
        },
        spec: Some(PodSpec {
            priority: Some(priority),
            ..Default::default()
        }),
        ..Default::default()
    }))
}

fn node() -> Event {
    Event::Node(Arc::new(Node::default()))
}

fn uid(waiting: Option<Waiting>) -> Option<String> {
    waiting.map(|waiting| waiting.pod.uid.clone())
}

fn reject(queue: &Queue, mut waiting: Waiting, now: Instant) {
    waiting.rejected_by = vec!["NeedsNode"];
    queue.failed(waiting, now);
}

#[test]
fn priority_comes_before_age() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("old", 0), now);
    queue.put(pod("young", 0), now + Duration::from_millis(1));
    queue.put(pod("important", 10), now + Duration::from_millis(2));
    let order: Vec<_> = std::iter::from_fn(|| uid(queue.try_next(now))).collect();
    assert_eq!(order, ["important", "old", "young"]);
}

#[test]
fn a_rejected_pod_waits_for_an_event_that_helps_and_while_it_rests_others_come_first() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 10), now);
    let waiting = queue.try_next(now).unwrap();
    reject(&queue, waiting, now);
    queue.tell(&Event::Namespace, now);
    assert!(queue.try_next(now + Duration::from_secs(60)).is_none());
    queue.put(pod("lesser", 0), now);
    queue.tell(&node(), now);
    assert_eq!(uid(queue.try_next(now)).as_deref(), Some("lesser"));
    // With nobody else to try it need not wait for the end of its second.
    assert_eq!(uid(queue.try_next(now)).as_deref(), Some("a"));
}

#[test]
fn after_an_error_a_pod_rests_to_the_end() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 0), now);
    let waiting = queue.try_next(now).unwrap();
    queue.failed(waiting, now);
    assert!(queue.try_next(now).is_none());
    let rested = queue.try_next(now + BACKOFF.first);
    assert_eq!(uid(rested).as_deref(), Some("a"));
}

#[test]
fn a_pod_that_fits_nowhere_does_not_stay_ahead_of_its_equals() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 0), now);
    let waiting = queue.try_next(now).unwrap();
    queue.put(pod("b", 0), now + Duration::from_millis(1));
    reject(&queue, waiting, now + Duration::from_millis(2));
    queue.tell(&node(), now + BACKOFF.first * 2);
    let order: Vec<_> =
        std::iter::from_fn(|| uid(queue.try_next(now + BACKOFF.first * 2))).collect();
    assert_eq!(order, ["b", "a"]);
}

#[test]
fn an_event_during_the_attempt_is_not_lost() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 0), now);
    let waiting = queue.try_next(now).unwrap();
    queue.tell(&node(), now);
    reject(&queue, waiting, now);
    assert_eq!(
        uid(queue.try_next(now + BACKOFF.first)).as_deref(),
        Some("a")
    );
}

#[test]
fn back_off_doubles_to_ten_seconds() {
    let delays: Vec<_> = (1..=6)
        .map(|attempts| BACKOFF.after(attempts).as_secs())
        .collect();
    assert_eq!(delays, [1, 2, 4, 8, 10, 10]);
}

#[test]
fn a_gated_pod_waits_for_its_gates_and_a_forgotten_one_is_tried_after_five_minutes() {
    let (queue, now) = (queue(), Instant::now());
    let mut gated = Pod::clone(&pod("a", 0).pod);
    gated.spec.as_mut().unwrap().scheduling_gates = Some(vec![]);
    queue.put(PodInfo::new(Arc::new(gated)), now);
    assert!(queue.try_next(now).is_none());
    queue.put(pod("a", 0), now);
    let waiting = queue.try_next(now).unwrap();
    reject(&queue, waiting, now);
    assert!(queue.try_next(now + Duration::from_secs(299)).is_none());
    assert!(queue.try_next(now + MAX_PARKED).is_none(), "made active");
    assert_eq!(uid(queue.try_next(now + MAX_PARKED)).as_deref(), Some("a"));
}

#[test]
fn its_own_status_does_not_wake_a_pod_but_its_spec_does() {
    struct NeedsChange;
    impl Plugin for NeedsChange {
        fn name(&self) -> &'static str {
            "NeedsNode"
        }
        fn wakes(&self, _pod: &PodInfo, event: &Event) -> bool {
            matches!(event, Event::PodChanged)
        }
    }
    let (queue, now) = (with(Box::new(NeedsChange)), Instant::now());
    queue.put(pod("a", 0), now);
    let waiting = queue.try_next(now).unwrap();
    reject(&queue, waiting, now);
    let later = now + Duration::from_secs(60);
    queue.put(pod("a", 0), later);
    assert!(queue.try_next(later).is_none());
    queue.put(pod("a", 1), later);
    assert!(queue.try_next(later).is_some());
}

#[test]
fn a_removed_pod_is_not_tried() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 0), now);
    queue.remove("a");
    assert!(queue.try_next(now).is_none());
}

#[test]
fn the_same_reason_is_told_once_in_five_minutes() {
    let (queue, now) = (queue(), Instant::now());
    queue.put(pod("a", 0), now);
    let mut waiting = queue.try_next(now).unwrap();
    assert!(waiting.is_news("no room", now));
    reject(&queue, waiting, now);
    queue.tell(&node(), now);
    let mut waiting = queue.try_next(now).unwrap();
    assert!(!waiting.is_news("no room", now + Duration::from_secs(299)));
    assert!(waiting.is_news("no room", now + RETOLD));
    assert!(waiting.is_news("no node", now + RETOLD));
}
