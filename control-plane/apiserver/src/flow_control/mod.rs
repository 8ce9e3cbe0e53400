//! Priority and fairness (KEP-1040): a client that floods waits behind itself, not in front of others.
//!
//! FlowSchemas sort requests by who sends them and what they want into priority levels and, within one, into flows.
//! Each level has a share of the requests that may be worked on at once; when it is used up, requests wait in one
//! queue per flow, and the queues take turns. Watches and connections count only until they have begun.
//!
//! Levels lend each other what they do not use. Weaker than upstream: a request takes one seat whatever it costs.

mod dangling;
mod defaults;
mod level;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use windlass_machinery::status::ApiError;

use self::level::Seat;
use self::plan::Plan;
use crate::authn::UserInfo;
use crate::cacher::{Filter, From};
use crate::follower;
use crate::request::RequestInfo;
use crate::server::ApiServer;

pub(crate) const GROUP: &str = "flowcontrol.apiserver.k8s.io";
const LEVELS: &str = "prioritylevelconfigurations";
const SCHEMAS: &str = "flowschemas";
/// How long a request may wait.
const PATIENCE: Duration = Duration::from_secs(15);

pub(crate) struct FlowControl {
    plan: ArcSwap<Plan>,
}

impl FlowControl {
    pub(crate) fn new() -> Self {
        let plan = Plan::new(&defaults::schemas(), &defaults::levels(), None);
        Self {
            plan: ArcSwap::from_pointee(plan),
        }
    }

    /// The limited levels with their own seats, those at work and those who wait.
    pub(crate) fn counts(&self) -> Vec<(String, (usize, usize, usize))> {
        self.plan.load().counts()
    }

    /// Waits for a seat; exempt requests have one at once. Answers with it how the request was classified.
    ///
    /// # Errors
    /// 429 when too many wait already, or it took too long.
    pub(crate) async fn admit(
        &self,
        user: &UserInfo,
        info: &RequestInfo,
    ) -> Result<(Seat, Flow), ApiError> {
        let place = self.plan.load().classify(user, info);
        let Some(level) = place.level else {
            return Ok((Seat::exempt(), place.flow));
        };
        let busy = || ApiError::too_many_requests("too many requests, please try again later", 1);
        match level.ask(&place.key) {
            Ok(Ok(seat)) => Ok((seat, place.flow)),
            Ok(Err(turn)) => match tokio::time::timeout(PATIENCE, turn).await {
                Ok(Ok(seat)) => Ok((seat, place.flow)),
                _ => Err(busy()),
            },
            Err(()) => Err(busy()),
        }
    }
}

/// How a request was classified: the uids of its FlowSchema and priority level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    schema: Arc<str>,
    level: Arc<str>,
}

impl Flow {
    /// The headers by which clients see that the server is fair, and kubectl stops throttling itself.
    pub(crate) fn tell(&self, headers: &mut HeaderMap) {
        const SCHEMA: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");
        const LEVEL: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
        for (name, text) in [(SCHEMA, &self.schema), (LEVEL, &self.level)] {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }
}

/// Makes the objects that every cluster has, and follows all of them from then on.
pub(crate) fn start(server: &Arc<ApiServer>) {
    let complain = |error: &ApiError| tracing::warn!(%error, "priority levels not in step");
    follower::start(server, |server| Box::pin(follow(server)), complain);
}

async fn follow(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let missing = || ApiError::internal("flow control objects are not served");
    let levels = server.cacher(GROUP, LEVELS).ok_or_else(missing)?;
    let schemas = server.cacher(GROUP, SCHEMAS).ok_or_else(missing)?;
    let all_levels = Filter::new(&levels.resource, None, None, None)?;
    let all_schemas = Filter::new(&schemas.resource, None, None, None)?;
    let now = From::Now {
        with_initial: false,
    };
    let of_levels = server.caches.watch(&levels, all_levels.clone(), now)?;
    let of_schemas = server.caches.watch(&schemas, all_schemas.clone(), now)?;
    loop {
        for (plural, wanted) in [(LEVELS, defaults::levels()), (SCHEMAS, defaults::schemas())] {
            let path = format!("/apis/{GROUP}/v1/{plural}");
            let cacher = if plural == LEVELS { &levels } else { &schemas };
            for object in wanted {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                if cacher.get("", name).is_some() {
                    continue;
                }
                server.create_missing(&path, &object).await?;
            }
        }
        server.caches.wait_current().await?;
        let decoded = |entries: Vec<Arc<crate::cacher::Entry>>| {
            entries
                .iter()
                .map(|entry| entry.decode())
                .collect::<Result<Vec<_>, _>>()
        };
        let plan = Plan::new(
            &decoded(schemas.entries(&all_schemas))?,
            &decoded(levels.entries(&all_levels))?,
            Some(&server.flow_control.plan.load()),
        );
        server.flow_control.plan.store(Arc::new(plan));
        dangling::tell(server, &decoded(schemas.entries(&all_schemas))?).await?;
        tokio::select! {
            events = of_levels.next() => drop(events?),
            events = of_schemas.next() => drop(events?),
        }
    }
}
