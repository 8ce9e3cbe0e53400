//! Priority and fairness (KEP-1040): a client that floods waits behind itself, not in front of others.
//!
//! Requests are sorted into upstream's default priority levels by who sends them and what they want. Each level
//! has a share of the requests that may be worked on at once; when it is used up, requests wait in one queue per
//! flow (a user), and the queues take turns. Watches and connections count only until they have begun.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use windlass_machinery::status::ApiError;

use crate::authn::{GROUP_MASTERS, GROUP_NODES, GROUP_SERVICE_ACCOUNTS, UserInfo};
use crate::request::RequestInfo;

/// Requests worked on at once, by all levels together: upstream's 400 reading and 200 writing.
const SEATS: usize = 600;
/// Requests that may wait at one level.
const WAITING: usize = 1000;
/// ... and for how long.
const PATIENCE: Duration = Duration::from_secs(15);

/// A level, its flow schema, and its share.
struct Kind {
    level: &'static str,
    schema: &'static str,
    shares: usize,
}

const KINDS: [Kind; 6] = [
    Kind {
        level: "node-high",
        schema: "system-node-high",
        shares: 40,
    },
    Kind {
        level: "system",
        schema: "system-nodes",
        shares: 30,
    },
    Kind {
        level: "leader-election",
        schema: "system-leader-election",
        shares: 10,
    },
    Kind {
        level: "workload-high",
        schema: "kube-controller-manager",
        shares: 40,
    },
    Kind {
        level: "workload-low",
        schema: "service-accounts",
        shares: 100,
    },
    Kind {
        level: "global-default",
        schema: "global-default",
        shares: 20,
    },
];
const NODE_HIGH: usize = 0;
const SYSTEM: usize = 1;
const LEADER_ELECTION: usize = 2;
const WORKLOAD_HIGH: usize = 3;
const WORKLOAD_LOW: usize = 4;
const GLOBAL_DEFAULT: usize = 5;

pub(crate) struct FlowControl {
    levels: Vec<Arc<Level>>,
}

#[derive(Debug)]
struct Level {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: usize,
    waiting: usize,
    /// Flows with somebody waiting, in the order of their turns.
    turns: VecDeque<String>,
    queues: HashMap<String, VecDeque<oneshot::Sender<Seat>>>,
}

/// The right to be worked on; goes to the next one when it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    level: Option<Arc<Level>>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(level) = self.level.take() {
            level.pass_on();
        }
    }
}

impl Level {
    fn new(seats: usize) -> Self {
        let state = State {
            free: seats,
            waiting: 0,
            turns: VecDeque::new(),
            queues: HashMap::new(),
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// A seat at once, or a place in the flow's queue; `Err` when too many wait already.
    fn ask(self: &Arc<Self>, flow: &str) -> Result<Result<Seat, oneshot::Receiver<Seat>>, ()> {
        let mut state = self.state.lock();
        if state.free > 0 {
            state.free -= 1;
            return Ok(Ok(Seat {
                level: Some(self.clone()),
            }));
        }
        if state.waiting >= WAITING {
            return Err(());
        }
        let (sender, receiver) = oneshot::channel();
        state.waiting += 1;
        let queue = state.queues.entry(flow.to_owned()).or_default();
        queue.push_back(sender);
        if queue.len() == 1 {
            state.turns.push_back(flow.to_owned());
        }
        Ok(Err(receiver))
    }

    /// Gives a seat that has become free to the flow whose turn it is.
    fn pass_on(self: &Arc<Self>) {
        loop {
            let next = self.state.lock().next();
            let Some(sender) = next else { return };
            match sender.send(Seat {
                level: Some(self.clone()),
            }) {
                Ok(()) => return,
                // Has given up waiting. The seat must not pass itself on from within its own drop.
                Err(mut seat) => seat.level = None,
            }
        }
    }
}

impl State {
    /// The next one to be served; without one the seat is free.
    fn next(&mut self) -> Option<oneshot::Sender<Seat>> {
        let Some(flow) = self.turns.pop_front() else {
            self.free += 1;
            return None;
        };
        let queue = self.queues.get_mut(&flow)?;
        let sender = queue.pop_front();
        if queue.is_empty() {
            self.queues.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        self.waiting -= 1;
        sender
    }
}

impl FlowControl {
    pub(crate) fn new() -> Self {
        let total: usize = KINDS.iter().map(|kind| kind.shares).sum();
        let levels = KINDS
            .iter()
            .map(|kind| Arc::new(Level::new((SEATS * kind.shares).div_ceil(total))))
            .collect();
        Self { levels }
    }

    /// Waits for a seat; exempt requests have one at once. Adds the headers that tell the client its flow.
    ///
    /// # Errors
    /// 429 when too many wait already, or it took too long.
    pub(crate) async fn admit(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> Result<(Seat, Flow), ApiError> {
        let Some(index) = classify(user, info) else {
            return Ok((
                Seat { level: None },
                Flow {
                    schema: "exempt",
                    level: "exempt",
                },
            ));
        };
        let kind = &KINDS[index];
        let flow = Flow {
            schema: kind.schema,
            level: kind.level,
        };
        let busy = || ApiError::too_many_requests("too many requests, please try again later", 1);
        match self.levels[index].ask(&user.name) {
            Ok(Ok(seat)) => Ok((seat, flow)),
            Ok(Err(turn)) => match tokio::time::timeout(PATIENCE, turn).await {
                Ok(Ok(seat)) => Ok((seat, flow)),
                _ => Err(busy()),
            },
            Err(()) => Err(busy()),
        }
    }
}

/// How a request was classified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    schema: &'static str,
    level: &'static str,
}

impl Flow {
    /// The headers by which clients see that the server is fair, and kubectl stops throttling itself.
    pub(crate) fn tell(self, headers: &mut HeaderMap) {
        const SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
        const LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
        for (name, text) in [(SCHEMA, self.schema), (LEVEL, self.level)] {
            headers.insert(name, HeaderValue::from_static(text));
        }
    }
}

/// The level of a request; `None` is exempt.
fn classify(user: &UserInfo, info: &RequestInfo) -> Option<usize> {
    if user.in_group(GROUP_MASTERS) || crate::health::is_public(info) {
        return None;
    }
    let lease = info.group == "coordination.k8s.io" && info.resource == "leases";
    if user.in_group(GROUP_NODES) {
        let heartbeat = lease || (info.group.is_empty() && info.resource == "nodes");
        return Some(if heartbeat { NODE_HIGH } else { SYSTEM });
    }
    let component = ["system:kube-controller-manager", "system:kube-scheduler"]
        .contains(&user.name.as_str())
        || user.in_group("system:serviceaccounts:kube-system");
    if component {
        return Some(if lease {
            LEADER_ELECTION
        } else {
            WORKLOAD_HIGH
        });
    }
    Some(if user.in_group(GROUP_SERVICE_ACCOUNTS) {
        WORKLOAD_LOW
    } else {
        GLOBAL_DEFAULT
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_does_not_reach_nodes_and_leases() {
        let info = |resource: &str, group: &str| RequestInfo {
            is_resource: true,
            resource: resource.to_owned(),
            group: group.to_owned(),
            ..RequestInfo::default()
        };
        let pods = info("pods", "");
        let leases = info("leases", "coordination.k8s.io");
        let node = UserInfo::new("system:node:a", &[GROUP_NODES]);
        assert_eq!(classify(&node, &leases), Some(NODE_HIGH));
        assert_eq!(classify(&node, &pods), Some(SYSTEM));
        let scheduler = UserInfo::new("system:kube-scheduler", &[]);
        assert_eq!(classify(&scheduler, &leases), Some(LEADER_ELECTION));
        let account = UserInfo::service_account("x", "y", "");
        assert_eq!(classify(&account, &pods), Some(WORKLOAD_LOW));
        assert_eq!(
            classify(&UserInfo::new("jane", &[]), &pods),
            Some(GLOBAL_DEFAULT)
        );
        assert_eq!(
            classify(&UserInfo::new("root", &[GROUP_MASTERS]), &pods),
            None
        );
    }

    #[tokio::test]
    async fn flows_take_turns_and_a_seat_is_never_lost() {
        let level = Arc::new(Level::new(1));
        let first = level.ask("a").unwrap().unwrap();
        let mut order = Vec::new();
        for flow in ["flood", "flood", "flood", "quiet"] {
            order.push((flow, level.ask(flow).unwrap().unwrap_err()));
        }
        // One of the flood gives up; its turn goes to somebody who still waits.
        order.remove(1);
        drop(first);
        let (_, turn) = order.remove(0);
        let seat = turn.await.unwrap();
        drop(seat);
        let quiet = order.pop().unwrap();
        assert_eq!(quiet.0, "quiet");
        let seat = quiet.1.await.unwrap();
        drop(seat);
        drop(order.remove(0).1.await.unwrap());
        assert_eq!(level.state.lock().free, 1);
        assert_eq!(level.state.lock().waiting, 0);
    }
}
