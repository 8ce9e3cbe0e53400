//! Leases for keys that expire.
//!
//! A lease for each Event would cost etcd more than the Event: keys that expire at about the same time share
//! one, as upstream's API server does it. So a key lives up to a twentieth longer than it was given, never
//! shorter.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use etcd_client::LeaseClient;
use tokio::sync::Mutex;

use super::call::read;
use super::convert::error;
use super::members::{LeftOut, Members};
use crate::Result;

/// etcd removes a lease's keys in one go, while everything else waits.
const KEYS_PER_LEASE: usize = 1_000;

/// A lease is given to new keys for this part of its time, at most for a minute.
const REUSE: u32 = 20;
const LONGEST_REUSE: Duration = Duration::from_secs(60);

pub(super) struct Leases {
    client: LeaseClient,
    left_out: LeftOut,
    /// The one in use for each time to live, in seconds.
    open: Mutex<HashMap<i64, Lease>>,
}

struct Lease {
    id: i64,
    /// New keys are taken until then.
    until: Instant,
    keys: usize,
}

impl Leases {
    pub(super) fn new(members: &Members) -> Self {
        Self {
            client: members.client.lease_client(),
            left_out: members.left_out.clone(),
            open: Mutex::default(),
        }
    }

    /// A lease whose keys live for at least `ttl` from now.
    pub(super) async fn for_ttl(&self, ttl: Duration) -> Result<i64> {
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1_000))
            .unwrap_or(i64::MAX)
            .max(1);
        let mut open = self.open.lock().await;
        let now = Instant::now();
        open.retain(|_, lease| lease.until > now && lease.keys < KEYS_PER_LEASE);
        if let Some(lease) = open.get_mut(&seconds) {
            lease.keys += 1;
            return Ok(lease.id);
        }
        let reuse = (ttl / REUSE).min(LONGEST_REUSE);
        let granted = seconds.saturating_add(i64::try_from(reuse.as_secs()).unwrap_or_default());
        // Of two that were granted for one call, the other ends without ever having had a key.
        let lease = read(&self.left_out, || {
            let mut client = self.client.clone();
            async move { client.grant(granted, None).await }
        });
        let id = lease.await.map_err(error)?.id();
        open.insert(
            seconds,
            Lease {
                id,
                until: now + Duration::from_secs(reuse.as_secs()),
                keys: 1,
            },
        );
        Ok(id)
    }
}
