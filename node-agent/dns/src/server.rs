//! Answers queries: the cluster's names from the zone, everything else from the node's upstreams.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use hickory_server::Server;
use hickory_server::net::runtime::Time;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponseBuilder;
use kube::Client;
use parking_lot::RwLock;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::feed;
use crate::metrics::Metrics;
use crate::sockets::Sockets;
use crate::udp::{self, MAX_PAYLOAD, MIN_PAYLOAD};
use crate::upstream::Upstreams;
use crate::zone::{Answer, Zone};

/// How long an idle TCP connection stays open.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// Bytes buffered per TCP connection for answers.
const TCP_BUFFER: usize = 64 * 1024;

/// What the server is told.
#[derive(Clone, Debug)]
pub struct DnsOptions {
    /// The cluster's domain, such as `cluster.local`.
    pub domain: String,
    /// Whose nameservers are asked for names outside the cluster.
    pub resolv_conf: PathBuf,
    /// Addresses that lead to cluster DNS itself: as an upstream, they would ask in circles.
    pub own: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    #[error("cluster domain {domain:?} is not a DNS name: {error}")]
    Domain {
        domain: String,
        error: hickory_proto::ProtoError,
    },
    #[error("listen for DNS: {0}")]
    Listen(#[from] std::io::Error),
    #[error("upstream resolvers: {0}")]
    Upstreams(String),
    #[error("serve DNS: {0}")]
    Serve(String),
}

/// Serves cluster DNS until `stop`.
///
/// Queries are answered only after Services and EndpointSlices were read once, so that no name of the cluster
/// is denied just because the server is young; then `ready` is called.
///
/// # Errors
/// When the upstreams cannot be read or the sockets cannot be served.
pub async fn run(
    client: Client,
    options: DnsOptions,
    sockets: Vec<Sockets>,
    metrics: Metrics,
    ready: impl FnOnce(),
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let zone = Zone::new(&options.domain).map_err(|error| DnsError::Domain {
        domain: options.domain.clone(),
        error,
    })?;
    let zone = Arc::new(RwLock::new(zone));
    let upstreams = Upstreams::read(&options.resolv_conf, &options.own)?;

    let (synced, mut sync) = tokio::sync::watch::channel(0);
    let _feed = AbortOnDropHandle::new(tokio::spawn(feed::follow(client, zone.clone(), synced)));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        _ = sync.wait_for(|kinds| *kinds == 2) => {}
    }
    let handler = Handler {
        zone,
        upstreams,
        metrics,
    };
    let mut over_udp = JoinSet::new();
    let mut server = Server::new(handler.clone());
    for Sockets { udp, tcp } in sockets {
        let socket = UdpSocket::from_std(udp)?;
        over_udp.spawn(udp::serve(socket, handler.clone(), stop.clone()));
        server.register_listener(TcpListener::from_std(tcp)?, TCP_IDLE, TCP_BUFFER);
    }
    tracing::info!(domain = options.domain, "cluster DNS serves");
    ready();
    while let Some(ended) = over_udp.join_next().await {
        ended.map_err(|panic| DnsError::Serve(panic.to_string()))??;
    }
    server
        .shutdown_gracefully()
        .await
        .map_err(|e| DnsError::Serve(e.to_string()))
}

#[derive(Clone)]
struct Handler {
    zone: Arc<RwLock<Zone>>,
    upstreams: Option<Arc<Upstreams>>,
    metrics: Metrics,
}

/// An answer on its way out.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    answers: Vec<Record>,
    /// The start of authority, in negative answers.
    authority: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            answers: Vec::new(),
            authority: Vec::new(),
        }
    }
}

impl Handler {
    async fn reply(&self, name: &Name, kind: RecordType) -> Reply {
        let (answer, authority) = {
            let zone = self.zone.read();
            (zone.answer(name, kind), zone.authority())
        };
        let own = |code, answers, authority| Reply {
            code,
            authoritative: true,
            answers,
            authority,
        };
        match answer {
            Answer::Records(records) => own(ResponseCode::NoError, records, Vec::new()),
            Answer::NoData => own(ResponseCode::NoError, Vec::new(), vec![authority]),
            Answer::NoName => own(ResponseCode::NXDomain, Vec::new(), vec![authority]),
            Answer::Foreign => self.forward(name, kind).await,
            Answer::Alias(found) => {
                let (alias, target) = *found;
                let mut answers = vec![alias];
                if kind != RecordType::CNAME {
                    answers.extend(self.complete(&target, kind).await);
                }
                own(ResponseCode::NoError, answers, Vec::new())
            }
        }
    }

    /// The records behind an alias; an alias to an alias is left to the client.
    async fn complete(&self, target: &Name, kind: RecordType) -> Vec<Record> {
        let inside = self.zone.read().answer(target, kind);
        match inside {
            Answer::Records(records) => records,
            Answer::Foreign => self.forward(target, kind).await.answers,
            Answer::Alias(found) => vec![found.0],
            Answer::NoData | Answer::NoName => Vec::new(),
        }
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Reply {
        let Some(upstreams) = &self.upstreams else {
            return Reply::code(ResponseCode::Refused);
        };
        let (foreign, source) = upstreams.lookup((name.clone(), kind)).await;
        self.metrics.forwarded(source);
        Reply {
            code: foreign.code,
            authoritative: false,
            answers: foreign.answers,
            authority: foreign.authority,
        }
    }
}

#[async_trait::async_trait]
impl RequestHandler for Handler {
    async fn handle_request<R: ResponseHandler, T: Time>(
        &self,
        request: &Request,
        mut response_handle: R,
    ) -> ResponseInfo {
        let begin = Instant::now();
        let mut kind = RecordType::ZERO;
        let mut reply = match request.request_info() {
            _ if request.metadata.op_code != OpCode::Query => Reply::code(ResponseCode::NotImp),
            Ok(info) => {
                kind = info.query.query_type();
                self.reply(info.query.original().name(), kind).await
            }
            Err(_) => Reply::code(ResponseCode::FormErr),
        };
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = self.upstreams.is_some();
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(MIN_PAYLOAD, MAX_PAYLOAD));
            edns
        });
        shuffle(&mut reply.answers, request.metadata.id);
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(metadata, &reply.answers, [], &reply.authority, []);
        let sent = response_handle.send_response(response).await;
        let over_udp = request.protocol().is_datagram();
        self.metrics
            .answered(over_udp, kind, reply.code, begin.elapsed());
        match sent {
            Ok(info) => info,
            Err(error) => {
                tracing::debug!(%error, "answer not sent");
                hickory_proto::op::Header {
                    metadata,
                    counts: hickory_proto::op::HeaderCounts::default(),
                }
                .into()
            }
        }
    }
}

/// Turns the answers by the query's random id, so that clients that take the first spread over all.
fn shuffle(answers: &mut [Record], id: u16) {
    let aliases = answers
        .iter()
        .take_while(|r| r.record_type() == RecordType::CNAME)
        .count();
    let rest = &mut answers[aliases..];
    if !rest.is_empty() {
        let by = usize::from(id) % rest.len();
        rest.rotate_left(by);
    }
}
