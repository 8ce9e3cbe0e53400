//! Answers queries: the cluster's names from the zone, everything else from the node's upstreams.

use std::borrow::Cow;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
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
use crate::lessons::{self, Lessons};
use crate::metrics::Metrics;
use crate::sockets::Sockets;
use crate::udp::{self, MAX_PAYLOAD, MIN_PAYLOAD};
use crate::upstream::{ResolvConf, Upstreams};
use crate::zone::{Answer, Zone};

/// How long an idle TCP connection stays open.
const TCP_IDLE: Duration = Duration::from_secs(10);
/// More in a row are a circle, or meant as one.
const MOST_ALIASES: usize = 8;
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
    #[error("serve DNS: {0}")]
    Serve(String),
}

/// Serves cluster DNS until `stop`.
///
/// Queries are answered only after everything that makes records was read once, so that no name of the cluster
/// is denied just because the server is young; then `ready` is called. What policies wait for is told by `lessons`
/// before it is answered.
///
/// # Errors
/// When the domain is no name or the sockets cannot be served.
pub async fn run(
    client: Client,
    options: DnsOptions,
    sockets: Vec<Sockets>,
    metrics: Metrics,
    lessons: Option<Lessons>,
    ready: impl FnOnce(),
    stop: CancellationToken,
) -> Result<(), DnsError> {
    let zone = Zone::new(&options.domain).map_err(|error| DnsError::Domain {
        domain: options.domain.clone(),
        error,
    })?;
    let zone = Arc::new(RwLock::new(zone));
    let resolv_conf = ResolvConf {
        path: options.resolv_conf,
        own: options.own,
    };
    let (upstreams, following) = resolv_conf.open().await;
    let _following = AbortOnDropHandle::new(tokio::spawn(following));

    let (synced, mut sync) = tokio::sync::watch::channel(0);
    let _feed = AbortOnDropHandle::new(tokio::spawn(feed::follow(client, zone.clone(), synced)));
    tokio::select! {
        () = stop.cancelled() => return Ok(()),
        _ = sync.wait_for(|kinds| *kinds == feed::KINDS) => {}
    }
    let handler = Handler {
        zone,
        upstreams,
        metrics,
        lessons: lessons.clone(),
    };
    let remembered = handler.upstreams.clone();
    let _again = lessons
        .map(|lessons| AbortOnDropHandle::new(tokio::spawn(give_again(lessons, remembered))));
    let serving = serve(handler, sockets, stop)?;
    tracing::info!(domain = options.domain, "cluster DNS serves");
    ready();
    serving.await
}

/// A policy that comes, and an agent that comes back, hear of what was answered before.
async fn give_again(mut lessons: Lessons, upstreams: Arc<Upstreams>) {
    loop {
        for (name, records) in upstreams.remembered(|name| lessons.are_about(name)) {
            lessons.give(&name, &records, true).await;
        }
        if !lessons.changed().await {
            return;
        }
    }
}

/// Answers from when this returns; what is returned ends with `stop`.
fn serve(
    handler: Handler,
    sockets: Vec<Sockets>,
    stop: CancellationToken,
) -> Result<impl Future<Output = Result<(), DnsError>>, DnsError> {
    let mut over_udp = JoinSet::new();
    let mut server = Server::new(handler.clone());
    for Sockets { udp, tcp } in sockets {
        let socket = UdpSocket::from_std(udp)?;
        over_udp.spawn(udp::serve(socket, handler.clone(), stop.clone()));
        server.register_listener(TcpListener::from_std(tcp)?, TCP_IDLE, TCP_BUFFER);
    }
    Ok(async move {
        while let Some(ended) = over_udp.join_next().await {
            ended.map_err(|panic| DnsError::Serve(panic.to_string()))??;
        }
        server
            .shutdown_gracefully()
            .await
            .map_err(|e| DnsError::Serve(e.to_string()))
    })
}

#[derive(Clone)]
struct Handler {
    zone: Arc<RwLock<Zone>>,
    upstreams: Arc<Upstreams>,
    metrics: Metrics,
    lessons: Option<Lessons>,
}

/// An answer on its way out.
struct Reply {
    code: ResponseCode,
    authoritative: bool,
    /// The addresses are those of names outside the cluster.
    foreign: bool,
    answers: Vec<Record>,
    /// The start of authority, in negative answers.
    authority: Vec<Record>,
    /// Addresses that whoever asked will want to know next.
    additional: Vec<Record>,
}

impl Reply {
    fn code(code: ResponseCode) -> Self {
        Self {
            code,
            authoritative: false,
            foreign: false,
            answers: Vec::new(),
            authority: Vec::new(),
            additional: Vec::new(),
        }
    }

    /// The same, reached by way of these aliases.
    fn behind(mut self, aliases: Vec<Record>) -> Self {
        if !aliases.is_empty() {
            self.authoritative = true;
            // Without upstreams the alias is all that there is to say.
            if self.code == ResponseCode::Refused {
                self.code = ResponseCode::NoError;
            }
            self.answers.splice(0..0, aliases);
        }
        self
    }
}

impl Handler {
    async fn reply(&self, name: &Name, kind: RecordType) -> Reply {
        // A client's resolver does not follow aliases, so all of a chain is given, whoever each part belongs to.
        let mut aliases = Vec::new();
        let mut name = Cow::Borrowed(name);
        loop {
            let (answer, authority) = {
                let zone = self.zone.read();
                (zone.answer(&name, kind), zone.authority())
            };
            let own = |code, answers, authority| Reply {
                authoritative: true,
                answers,
                authority,
                ..Reply::code(code)
            };
            let reply = match answer {
                Answer::Records(records) => own(ResponseCode::NoError, records, Vec::new()),
                Answer::NoData => own(ResponseCode::NoError, Vec::new(), vec![authority]),
                Answer::NoName => own(ResponseCode::NXDomain, Vec::new(), vec![authority]),
                Answer::Foreign => self.forward(&name, kind).await,
                Answer::Alias(found) => {
                    let (alias, target) = *found;
                    aliases.push(alias);
                    if [RecordType::CNAME, RecordType::ANY].contains(&kind) {
                        own(ResponseCode::NoError, Vec::new(), Vec::new())
                    } else if aliases.len() == MOST_ALIASES {
                        own(ResponseCode::ServFail, Vec::new(), Vec::new())
                    } else {
                        name = Cow::Owned(target);
                        continue;
                    }
                }
            };
            return reply.behind(aliases);
        }
    }

    async fn forward(&self, name: &Name, kind: RecordType) -> Reply {
        if !self.upstreams.are_there() {
            return Reply::code(ResponseCode::Refused);
        }
        let (mut foreign, source) = self.upstreams.lookup((name.clone(), kind)).await;
        self.metrics.forwarded(source);
        // What is remembered is in the letters of whoever asked first.
        for record in foreign.answers.iter_mut().filter(|it| it.name == *name) {
            record.name = name.clone();
        }
        Reply {
            foreign: true,
            answers: foreign.answers,
            authority: foreign.authority,
            ..Reply::code(foreign.code)
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
        let version = request.edns.as_ref().map_or(0, Edns::version);
        let mut reply = match request.request_info() {
            _ if version > 0 => Reply::code(ResponseCode::BADVERS),
            _ if request.metadata.op_code != OpCode::Query => Reply::code(ResponseCode::NotImp),
            Ok(info) => {
                kind = info.query.query_type();
                if is_answered(info.query.query_class(), kind) {
                    self.reply(info.query.original().name(), kind).await
                } else {
                    Reply::code(ResponseCode::Refused)
                }
            }
            Err(_) => Reply::code(ResponseCode::FormErr),
        };
        if let (Some(lessons), Ok(info)) = (&self.lessons, request.request_info())
            && lessons::names_addresses(kind)
        {
            let name = info.query.original().name();
            lessons.give(name, &reply.answers, reply.foreign).await;
        }
        let mut metadata = Metadata::response_from_request(&request.metadata);
        metadata.response_code = reply.code;
        metadata.authoritative = reply.authoritative;
        metadata.recursion_available = self.upstreams.are_there();
        let edns = request.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(asked.max_payload().clamp(MIN_PAYLOAD, MAX_PAYLOAD));
            edns
        });
        shuffle(&mut reply.answers, request.metadata.id);
        let over_udp = request.protocol().is_datagram();
        if reply.authoritative {
            reply.additional = self.zone.read().additional(&reply.answers);
        }
        if over_udp && !reply.additional.is_empty() {
            // What is not asked for must not make an answer that has no room for it a truncated one (RFC 2181, 9).
            let records = reply.answers.iter().chain(&reply.additional);
            let room = usize::from(request.max_payload().clamp(MIN_PAYLOAD, MAX_PAYLOAD));
            if request.as_slice().len() + length(records) > room {
                reply.additional.clear();
            }
        }
        let mut builder = MessageResponseBuilder::from_message_request(request);
        if let Some(edns) = &edns {
            builder.edns(edns);
        }
        let response = builder.build(
            metadata,
            &reply.answers,
            &reply.authority,
            [],
            &reply.additional,
        );
        let sent = response_handle.send_response(response).await;
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

/// Only the Internet's names are known, and nobody gets a zone as a whole.
fn is_answered(class: DNSClass, kind: RecordType) -> bool {
    matches!(class, DNSClass::IN | DNSClass::ANY)
        && !matches!(kind, RecordType::AXFR | RecordType::IXFR)
}

/// What these take on the wire at the most, in bytes.
fn length<'a>(records: impl Iterator<Item = &'a Record>) -> usize {
    let lengths = records.map(|record| record.to_bytes().map_or(usize::MAX, |bytes| bytes.len()));
    lengths.fold(0, usize::saturating_add)
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

#[cfg(test)]
mod tests;
