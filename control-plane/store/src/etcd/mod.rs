//! The store on an etcd cluster (3.4 or later), for several API servers that share one state.
//!
//! etcd itself is the model of the trait, so this is mostly a change of types. What it adds: a compare with
//! every write, the value that a failed compare met, and leases that many expiring keys share.

mod call;
mod convert;
mod lease;
mod members;
mod watch;

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use etcd_client::{
    Certificate, Compare, CompareOp, ConnectOptions, DeleteOptions, GetOptions, GetResponse,
    Identity, KvClient, PutOptions, TlsOptions, Txn, TxnOp, TxnOpResponse, TxnResponse,
};

use self::call::{Answer, read, write};
use self::convert::{error, key_value, revision, wire};
use self::lease::Leases;
use self::members::Members;
use crate::{
    Expect, KeyValue, Range, RangeRequest, Result, Revision, Store, StoreError, WatchStream,
};

/// Keys of one answer. A list of everything is read in pages at one revision, so that no answer grows
/// beyond what either side likes to hold in one piece.
const PAGE: usize = 5_000;

/// Values are at most 1.5 MiB by etcd's own default; a page of large ones is large.
const LONGEST_MESSAGE: usize = 1 << 30;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Of connections that wait for an answer: to pings on idle ones etcd answers by closing them.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// How to reach the cluster.
#[derive(Clone, Debug, Default)]
pub struct EtcdOptions {
    /// `https://host:2379`, one for each member.
    pub endpoints: Vec<String>,
    pub tls: Option<EtcdTls>,
}

/// PEM texts.
#[derive(Clone)]
pub struct EtcdTls {
    pub ca: Vec<u8>,
    /// Certificate and key by which etcd knows this client.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl std::fmt::Debug for EtcdTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The key stays out of logs.
        f.debug_struct("EtcdTls")
            .field("has_identity", &self.identity.is_some())
            .finish()
    }
}

/// The store on etcd.
pub struct Etcd {
    members: Members,
    leases: Leases,
}

impl Etcd {
    /// Connects, and asks the cluster for its version.
    ///
    /// # Errors
    /// [`Unavailable`](StoreError::Unavailable) when no member answers.
    pub async fn connect(options: EtcdOptions) -> Result<Self> {
        let mut connect = ConnectOptions::new()
            .with_connect_timeout(CONNECT_TIMEOUT)
            .with_keep_alive(KEEP_ALIVE, CONNECT_TIMEOUT)
            // A member that has lost the others would answer from the past and watch nothing.
            .with_require_leader(true);
        if let Some(tls) = options.tls {
            let mut config = TlsOptions::new().ca_certificate(Certificate::from_pem(tls.ca));
            if let Some((certificate, key)) = tls.identity {
                config = config.identity(Identity::from_pem(certificate, key));
            }
            connect = connect.with_tls(config);
        }
        let members = Members::connect(&options.endpoints, connect);
        let members = members.await.map_err(error)?;
        let status = read(&members.left_out, || {
            let mut maintenance = members.client.maintenance_client();
            async move { maintenance.status().await }
        })
        .await;
        let status = status.map_err(error)?;
        tracing::info!(version = status.version(), "connected to etcd");
        let leases = Leases::new(&members);
        Ok(Self { members, leases })
    }

    fn kv(&self) -> KvClient {
        self.members
            .client
            .kv_client()
            .max_decoding_message_size(LONGEST_MESSAGE)
    }

    async fn ask(&self, key: &[u8], options: GetOptions) -> Answer<GetResponse> {
        read(&self.members.left_out, || {
            let (mut kv, key, options) = (self.kv(), key.to_vec(), options.clone());
            async move { kv.get(key, Some(options)).await }
        })
        .await
    }

    async fn transact(&self, txn: Txn) -> Result<TxnResponse> {
        let response = write(&self.members.left_out, || {
            let (mut kv, txn) = (self.kv(), txn.clone());
            async move { kv.txn(txn).await }
        });
        response.await.map_err(error)
    }

    /// Says which revision the history begins at, after a read was refused for being before it.
    async fn compacted(&self, requested: Revision) -> StoreError {
        watch::compacted_at(&self.members, requested).await
    }

    async fn refused(&self, status: etcd_client::Error, at: Option<Revision>) -> StoreError {
        let requested = at.unwrap_or_default();
        match error(status) {
            StoreError::Compacted { .. } => self.compacted(requested).await,
            StoreError::Future { .. } => {
                let current = self.current_revision().await.unwrap_or_default();
                StoreError::Future { requested, current }
            }
            other => other,
        }
    }

    async fn page(
        &self,
        start: Vec<u8>,
        end: Vec<u8>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<(Vec<KeyValue>, usize, Revision)> {
        let mut options = GetOptions::new().with_range(end).with_limit(limit as i64);
        if let Some(at) = at {
            options = options.with_revision(wire(at)?);
        }
        let response = match self.ask(&start, options).await {
            Ok(response) => response,
            Err(refused) => return Err(self.refused(refused, at).await),
        };
        let items: Result<Vec<KeyValue>> = response.kvs().iter().map(key_value).collect();
        let count = usize::try_from(response.count()).unwrap_or_default();
        Ok((items?, count, at.unwrap_or(revision(response.header()))))
    }
}

#[async_trait]
impl Store for Etcd {
    async fn get(&self, key: &str, at: Option<Revision>) -> Result<Option<KeyValue>> {
        let mut options = GetOptions::new();
        if let Some(at) = at {
            if at == Revision(0) {
                return Err(self.compacted(at).await);
            }
            options = options.with_revision(wire(at)?);
        }
        match self.ask(key.as_bytes(), options).await {
            Ok(response) => response.kvs().first().map(key_value).transpose(),
            Err(refused) => Err(self.refused(refused, at).await),
        }
    }

    async fn range(&self, request: RangeRequest<'_>) -> Result<Range> {
        if request.at == Some(Revision(0)) {
            return Err(self.compacted(Revision(0)).await);
        }
        let end = prefix_end(request.prefix);
        let mut start = match request.start_after {
            Some(after) if after >= request.prefix => after_key(after),
            // etcd wants a key; the first that there can be is this.
            _ if request.prefix.is_empty() => vec![0],
            _ => request.prefix.as_bytes().to_vec(),
        };
        // A page that begins behind the range's end is empty, and etcd would not say so.
        if end != [0] && start >= end {
            let (_, _, revision) = self.page(vec![0], vec![1], 1, request.at).await?;
            return Ok(Range {
                items: Vec::new(),
                revision,
                remaining: 0,
            });
        }
        let limit = if request.limit == 0 {
            usize::MAX
        } else {
            request.limit
        };
        let mut at = request.at;
        let mut items: Vec<KeyValue> = Vec::new();
        loop {
            let wanted = (limit - items.len()).min(PAGE);
            let (page, count, revision) = self.page(start, end.clone(), wanted, at).await?;
            let remaining = count.saturating_sub(page.len());
            items.extend(page);
            if remaining == 0 || items.len() >= limit {
                return Ok(Range {
                    items,
                    revision,
                    remaining,
                });
            }
            at = Some(revision);
            let Some(last) = items.last() else {
                return Ok(Range {
                    items,
                    revision,
                    remaining,
                });
            };
            start = after_key(&last.key);
        }
    }

    async fn put(
        &self,
        key: &str,
        value: Bytes,
        expect: Expect,
        ttl: Option<Duration>,
    ) -> Result<Revision> {
        let options = match ttl {
            Some(ttl) => Some(PutOptions::new().with_lease(self.leases.for_ttl(ttl).await?)),
            None => None,
        };
        let compares = match expect {
            Expect::Any => Vec::new(),
            Expect::Absent => vec![Compare::create_revision(key, CompareOp::Equal, 0)],
            Expect::ModRevision(at) => unchanged_since(key, at)?,
        };
        let txn = Txn::new()
            .when(compares)
            .and_then([TxnOp::put(key, Vec::from(value), options)])
            .or_else([TxnOp::get(key, None)]);
        let response = self.transact(txn).await?;
        if response.succeeded() {
            return Ok(revision(response.header()));
        }
        Err(conflict(&response)?)
    }

    async fn delete(&self, key: &str, expect: Expect) -> Result<(Revision, KeyValue)> {
        let compares = match expect {
            // An absent key cannot be deleted: nothing meets both.
            Expect::Absent => vec![
                Compare::create_revision(key, CompareOp::Equal, 0),
                Compare::create_revision(key, CompareOp::Greater, 0),
            ],
            Expect::Any => vec![Compare::create_revision(key, CompareOp::Greater, 0)],
            Expect::ModRevision(at) => unchanged_since(key, at)?,
        };
        let delete = TxnOp::delete(key, Some(DeleteOptions::new().with_prev_key()));
        let txn = Txn::new()
            .when(compares)
            .and_then([delete])
            .or_else([TxnOp::get(key, None)]);
        let response = self.transact(txn).await?;
        if !response.succeeded() {
            return Err(conflict(&response)?);
        }
        let responses = response.op_responses();
        let prev = responses.iter().find_map(|response| match response {
            TxnOpResponse::Delete(deleted) => deleted.prev_kvs().first(),
            _ => None,
        });
        let prev = prev.ok_or_else(|| unexpected("a deletion without what was deleted"))?;
        Ok((revision(response.header()), key_value(prev)?))
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream> {
        let current = self.current_revision().await?;
        if from > current {
            return Err(StoreError::Future {
                requested: from,
                current,
            });
        }
        watch::open(&self.members, prefix, from).await
    }

    async fn current_revision(&self) -> Result<Revision> {
        // A read that is not `serializable` asks the majority, whatever it reads.
        let options = GetOptions::new().with_count_only();
        let response = self.ask(&[0], options).await.map_err(error)?;
        Ok(revision(response.header()))
    }

    async fn oldest_revision(&self) -> Result<Revision> {
        match watch::compacted_at(&self.members, Revision(1)).await {
            StoreError::Compacted {
                compacted,
                requested,
            } if compacted > requested.next() => Ok(compacted),
            // Nothing has been compacted: history begins with etcd's own first revision.
            StoreError::Compacted { .. } => Ok(Revision(1)),
            error => Err(error),
        }
    }

    fn is_shared(&self) -> bool {
        true
    }

    async fn compact(&self, at: Revision) -> Result<()> {
        if at == Revision(0) {
            return Ok(());
        }
        let wired = wire(at)?;
        let compacted = read(&self.members.left_out, || {
            let mut kv = self.kv();
            async move { kv.compact(wired, None).await }
        });
        match compacted.await {
            Ok(_) => Ok(()),
            Err(refused) => match error(refused) {
                // Another API server was there first.
                StoreError::Compacted { .. } => Ok(()),
                StoreError::Future { .. } => {
                    let current = self.current_revision().await?;
                    Err(StoreError::Future {
                        requested: at,
                        current,
                    })
                }
                other => Err(other),
            },
        }
    }
}

/// The key exists, and its last write is this one. Revision 0, which etcd takes for "absent", is met by none.
fn unchanged_since(key: &str, at: Revision) -> Result<Vec<Compare>> {
    Ok(vec![
        Compare::mod_revision(key, CompareOp::Equal, wire(at)?),
        Compare::create_revision(key, CompareOp::Greater, 0),
    ])
}

fn conflict(response: &TxnResponse) -> Result<StoreError> {
    let responses = response.op_responses();
    let current = responses.iter().find_map(|response| match response {
        TxnOpResponse::Get(found) => found.kvs().first(),
        _ => None,
    });
    let current = current.map(key_value).transpose()?.map(Box::new);
    Ok(StoreError::Conflict { current })
}

fn unexpected(what: &str) -> StoreError {
    StoreError::Unavailable(format!("etcd answered with {what}"))
}

/// The first key after all that begin with the prefix; `[0]` is etcd's word for "to the end".
fn prefix_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // UTF-8 has no byte 0xff, so the last byte can always be raised.
    match end.last_mut() {
        Some(last) => *last += 1,
        None => end.push(0),
    }
    end
}

fn after_key(key: &str) -> Vec<u8> {
    let mut after = key.as_bytes().to_vec();
    after.push(0);
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_its_successor() {
        assert_eq!(prefix_end("/a/"), b"/a0");
        assert_eq!(prefix_end(""), [0]);
        assert!(prefix_end("/\u{10ffff}") > "/\u{10ffff}\u{10ffff}".as_bytes().to_vec());
    }
}
