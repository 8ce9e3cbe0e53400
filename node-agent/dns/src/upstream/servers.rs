//! Who is asked: the nameservers of the node's resolver configuration, as it is at the moment.
//!
//! A lease of DHCP, a VPN or somebody's hand changes that file under a running server, so it is read again and again:
//! it is often a link to another one, or mounted into a container, where no watch of a folder tells of a change.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt as _};
use hickory_proto::op::ResponseCode;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolverConfig, ResolverOpts};
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::system_conf::parse_resolv_conf;

use super::{Ask, Foreign, Question, Upstreams};

const READ_AGAIN: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(3_600);
/// What is not there may be there soon, whatever its zone says.
const LONGEST_NEGATIVE: Duration = Duration::from_secs(30);

/// A resolver configuration, and which of its servers are none.
#[derive(Clone, Debug)]
pub(crate) struct ResolvConf {
    pub(crate) path: PathBuf,
    /// Addresses that lead back to whoever asks.
    pub(crate) own: Vec<IpAddr>,
}

impl ResolvConf {
    /// Those that it names now; what is returned keeps them true for as long as it is polled.
    pub(crate) async fn open(self) -> (Arc<Upstreams>, impl Future<Output = ()> + Send) {
        let text = self.read().await;
        let upstreams = Upstreams::new(text.as_deref().and_then(|text| self.servers(text)));
        let followed = upstreams.clone();
        let follow = async move { self.follow(&followed, text, READ_AGAIN).await };
        (upstreams, follow)
    }

    async fn follow(&self, upstreams: &Upstreams, mut held: Option<String>, every: Duration) {
        let mut seen = None;
        loop {
            tokio::time::sleep(every).await;
            // One that is just being written may be gone, empty or half for a moment.
            let text = self.read().await;
            if text.is_some() && text != held && text == seen {
                tracing::info!(path = %self.path.display(), "the resolver configuration has changed");
                upstreams.replace(text.as_deref().and_then(|text| self.servers(text)));
                held.clone_from(&text);
            }
            seen = text;
        }
    }

    async fn read(&self) -> Option<String> {
        match tokio::fs::read(&self.path).await {
            Ok(text) => Some(String::from_utf8_lossy(&text).into_owned()),
            Err(error) => {
                tracing::debug!(path = %self.path.display(), %error, "the resolver configuration cannot be read");
                None
            }
        }
    }

    fn servers(&self, text: &str) -> Option<Arc<dyn Ask>> {
        let (config, settings) = named(text, &self.own)?;
        let names: Vec<IpAddr> = config.name_servers().iter().map(|it| it.ip).collect();
        match Servers::new(config, &settings) {
            Ok(servers) => {
                tracing::info!(servers = ?names, "upstream nameservers");
                Some(Arc::new(servers))
            }
            Err(error) => {
                tracing::error!(%error, servers = ?names, "upstream nameservers cannot be asked");
                None
            }
        }
    }
}

/// The nameservers that a resolver configuration names, without `own`: an upstream that is this server itself would ask
/// in circles. `None` where there is no other.
fn named(text: &str, own: &[IpAddr]) -> Option<(ResolverConfig, ResolverOpts)> {
    // Names are asked for as they come, so a search list that cannot be read is no reason to have no servers.
    let is_search = |line: &str| line.starts_with("search") || line.starts_with("domain");
    let lines = text.lines().filter(|line| !is_search(line.trim_start()));
    let text = lines.collect::<Vec<_>>().join("\n");
    let (config, settings) = match parse_resolv_conf(text) {
        Ok(parsed) => parsed,
        Err(error) => {
            tracing::warn!(%error, "no upstream nameservers");
            return None;
        }
    };
    let (_, _, mut servers) = config.into_parts();
    servers.retain(|server| !own.contains(&server.ip));
    if servers.is_empty() {
        tracing::warn!("no upstream nameservers but this one itself");
        return None;
    }
    Some((
        ResolverConfig::from_parts(None, Vec::new(), servers),
        settings,
    ))
}

/// Each with a resolver of its own. One resolver of all would wait for those that are silent before it asks again by TCP
/// for what another's datagram did not hold.
struct Servers(Vec<TokioResolver>);

impl Servers {
    fn new(config: ResolverConfig, settings: &ResolverOpts) -> Result<Self, NetError> {
        let (_, _, servers) = config.into_parts();
        let resolvers = servers.into_iter().map(|server| {
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![server]);
            let mut builder = TokioResolver::builder_with_config(config, Default::default());
            let mut settings = settings.clone();
            settings.ndots = 0;
            // `Upstreams` remembers.
            settings.cache_size = 0;
            *builder.options_mut() = settings;
            builder.build()
        });
        Ok(Self(resolvers.collect::<Result<_, _>>()?))
    }
}

impl Ask for Servers {
    /// All at once; the first answer is taken.
    fn ask<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<(Foreign, Duration)>> {
        let answers = self.0.iter().map(|server| ask(server, question));
        let answers: FuturesUnordered<_> = answers.collect();
        let mut answers = answers.filter_map(std::future::ready);
        async move { answers.next().await }.boxed()
    }
}

async fn ask(server: &TokioResolver, (name, kind): &Question) -> Option<(Foreign, Duration)> {
    match server.lookup(name.clone(), *kind).await {
        Ok(found) => {
            let left = found
                .valid_until()
                .saturating_duration_since(Instant::now());
            let answer = Foreign {
                code: ResponseCode::NoError,
                answers: found.answers().to_vec(),
                authority: Vec::new(),
            };
            Some((answer, left.min(LONGEST)))
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(nothing))) => {
            let known = matches!(
                nothing.response_code,
                ResponseCode::NXDomain | ResponseCode::NoError
            );
            if !known {
                return None;
            }
            let ttl = Duration::from_secs(nothing.negative_ttl.unwrap_or(0).into());
            let authority = nothing.soa.map(|soa| soa.into_record_of_rdata());
            let answer = Foreign {
                code: nothing.response_code,
                answers: Vec::new(),
                authority: authority.into_iter().collect(),
            };
            Some((answer, ttl.min(LONGEST_NEGATIVE)))
        }
        Err(error) => {
            tracing::debug!(%name, %kind, %error, "upstream lookup failed");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use hickory_proto::op::{Message, MessageType};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, Record, RecordType};
    use hickory_resolver::config::NameServerConfig;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::sockets::Sockets;

    const MANY: u8 = 60;
    /// What nobody waits for here.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn every_server_but_oneself_is_asked() {
        let own = ["10.96.0.10", "fd00::a"].map(|ip| ip.parse().unwrap());
        for (text, expected) in [
            ("", vec![]),
            ("search example.org\noptions ndots:5\n", vec![]),
            ("nameserver 10.96.0.10\nnameserver fd00::a\n", vec![]),
            (
                "nameserver 10.96.0.10\nnameserver 192.0.2.1\n",
                vec!["192.0.2.1"],
            ),
            (
                "search a..b -\n domain ..\nnameserver 2001:db8::1\nnameserver 192.0.2.1\n",
                vec!["2001:db8::1", "192.0.2.1"],
            ),
        ] {
            let found = named(text, &own).map(|(config, _)| config);
            let found = found.iter().flat_map(|config| config.name_servers());
            let found: Vec<String> = found.map(|it| it.ip.to_string()).collect();
            assert_eq!(found, expected, "{text:?}");
        }
        let (_, settings) = named("nameserver 192.0.2.1\noptions timeout:1", &own).unwrap();
        assert_eq!(settings.timeout, Duration::from_secs(1));
    }

    /// How a nameserver answers by UDP.
    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        Whole,
        /// Many addresses do not fit into a datagram.
        Cut,
        /// Neither does it by TCP.
        Silent,
    }

    /// A nameserver on loopback that knows every name.
    struct Nameserver(SocketAddr);

    impl Nameserver {
        fn start(manner: Manner) -> Self {
            let (Sockets { udp, tcp }, address) = Sockets::free();
            let (udp, tcp) = (
                UdpSocket::from_std(udp).unwrap(),
                TcpListener::from_std(tcp).unwrap(),
            );
            tokio::spawn(async move {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                    if manner != Manner::Silent {
                        let mut answer = answer(&buffer[..length], 1);
                        answer.metadata.truncation = manner == Manner::Cut;
                        let bytes = answer.to_vec().unwrap();
                        udp.send_to(&bytes, from).await.unwrap();
                    }
                }
            });
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = tcp.accept().await {
                    if manner == Manner::Silent {
                        continue;
                    }
                    let length = stream.read_u16().await.unwrap();
                    let mut question = vec![0; length.into()];
                    stream.read_exact(&mut question).await.unwrap();
                    let bytes = answer(&question, MANY).to_vec().unwrap();
                    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
                    stream
                        .write_all(&[&length, &*bytes].concat())
                        .await
                        .unwrap();
                }
            });
            Self(address)
        }
    }

    fn answer(question: &[u8], count: u8) -> Message {
        let mut message = Message::from_vec(question).unwrap();
        let name = message.queries[0].name().clone();
        message.metadata.message_type = MessageType::Response;
        message.edns = None;
        let addresses = (0..count).map(|last| RData::A(A(Ipv4Addr::new(192, 0, 2, last))));
        message.answers = addresses
            .map(|address| Record::from_rdata(name.clone(), 60, address))
            .collect();
        message
    }

    async fn ask(servers: &[Nameserver], timeout: Duration) -> Option<Foreign> {
        let servers = servers.iter().map(|Nameserver(address)| {
            let mut server = NameServerConfig::udp_and_tcp(address.ip());
            for connection in &mut server.connections {
                connection.port = address.port();
            }
            server
        });
        let config = ResolverConfig::from_name_servers(servers.collect());
        let mut settings = ResolverOpts::default();
        settings.timeout = timeout;
        settings.attempts = 1;
        let servers = Servers::new(config, &settings).unwrap();
        let question = (Name::from_ascii("example.org.").unwrap(), RecordType::A);
        servers.ask(&question).await.map(|(found, _)| found)
    }

    #[tokio::test]
    async fn what_was_cut_is_asked_for_again_by_tcp() {
        let found = ask(&[Nameserver::start(Manner::Cut)], LONG).await.unwrap();
        assert_eq!(found.answers.len(), usize::from(MANY));
    }

    #[tokio::test]
    async fn who_asks_again_by_tcp_waits_for_no_silent_server() {
        for manners in [[Manner::Cut, Manner::Silent], [Manner::Silent, Manner::Cut]] {
            let both = manners.map(Nameserver::start);
            let found = tokio::time::timeout(LONG / 2, ask(&both, LONG)).await;
            let found = found.expect("an answer in time").unwrap();
            assert_eq!(found.answers.len(), usize::from(MANY));
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_made_up_for_by_another() {
        let both = [Manner::Silent, Manner::Whole].map(Nameserver::start);
        let found = ask(&both, LONG).await.unwrap();
        assert_eq!(found.answers.len(), 1);
        assert_eq!(ask(&both[..1], Duration::from_secs(1)).await, None);
    }

    #[tokio::test]
    async fn a_changed_configuration_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("resolv.conf");
        let conf = ResolvConf {
            path: path.clone(),
            own: vec!["192.0.2.9".parse().unwrap()],
        };
        let upstreams = Upstreams::new(None);
        let followed = upstreams.clone();
        let follow = async move {
            conf.follow(&followed, None, Duration::from_millis(5)).await;
        };
        let following = tokio::spawn(follow);
        for (text, expected) in [
            ("nameserver 192.0.2.1\n", true),
            ("nameserver 192.0.2.9\n", false),
            ("nameserver 192.0.2.9\nnameserver 192.0.2.2\n", true),
        ] {
            std::fs::write(&path, text).unwrap();
            let changed = async {
                while upstreams.are_there() != expected {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let changed = tokio::time::timeout(Duration::from_secs(30), changed);
            changed.await.expect("the new servers");
        }
        following.abort();
    }
}
