//! The server as its clients see it: what stands on the wire.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use hickory_proto::op::{Message, MessageType, Query};
use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::{A, CNAME};

use super::*;
use crate::upstream::{Ask, Foreign, Question};
use crate::zone::TTL;
use crate::zone::tests::zone;

const PATIENCE: Duration = Duration::from_secs(30);

/// Everybody else's names.
struct Outside;

impl Ask for Outside {
    fn ask<'a>(&'a self, question: &'a Question) -> BoxFuture<'a, Option<(Foreign, Duration)>> {
        async move {
            let (name, kind) = question;
            let address =
                |name: &Name| Record::from_rdata(name.clone(), 60, RData::A(A::new(192, 0, 2, 1)));
            let example = Name::from_ascii("example.org.").ok()?;
            let (code, answers) = match (name.to_ascii().to_lowercase().as_str(), kind) {
                ("broken.example.org.", _) => return None,
                ("missing.example.org.", _) => (ResponseCode::NXDomain, Vec::new()),
                ("example.org.", RecordType::A) => (ResponseCode::NoError, vec![address(name)]),
                ("alias.example.org.", RecordType::A) => {
                    let alias = RData::CNAME(CNAME(example.clone()));
                    let alias = Record::from_rdata(name.clone(), 60, alias);
                    (ResponseCode::NoError, vec![alias, address(&example)])
                }
                _ => (ResponseCode::NoError, Vec::new()),
            };
            let foreign = Foreign {
                code,
                answers,
                authority: Vec::new(),
            };
            Some((foreign, Duration::from_secs(60)))
        }
        .boxed()
    }
}

struct Client {
    server: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Client {
    fn start(zone: Zone) -> Self {
        let free = Sockets::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let server = free.udp.local_addr().unwrap();
        drop(free);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handler = Handler {
            zone: Arc::new(RwLock::new(zone)),
            upstreams: Some(Upstreams::new(Box::new(Outside), PATIENCE)),
            metrics: Metrics::default(),
        };
        let serving = {
            let _entered = runtime.enter();
            let sockets = vec![Sockets::bind(server).unwrap()];
            serve(handler, sockets, CancellationToken::new()).unwrap()
        };
        runtime.spawn(async move { serving.await.unwrap() });
        Self {
            server,
            _runtime: runtime,
        }
    }

    fn udp(&self, question: &[u8]) -> Vec<u8> {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect(self.server).unwrap();
        socket.send(question).unwrap();
        let mut answer = vec![0; 65_535];
        let length = socket.recv(&mut answer).unwrap();
        answer.truncate(length);
        answer
    }

    fn tcp(&self, question: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.server).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = u16::try_from(question.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, question].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    fn ask(&self, name: &str, kind: RecordType) -> Message {
        let question = question(name, kind).to_vec().unwrap();
        let [udp, tcp] = [self.udp(&question), self.tcp(&question)]
            .map(|answer| Message::from_vec(&answer).unwrap());
        let [one, other] = [&udp, &tcp].map(|answer| data(&answer.answers));
        assert_eq!(one, other, "{name} {kind}: UDP and TCP");
        tcp
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(7, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, version: u8, payload: u16) -> Vec<u8> {
    let mut edns = Edns::new();
    edns.set_version(version).set_max_payload(payload);
    message.edns = Some(edns);
    message.to_vec().unwrap()
}

fn data(records: &[Record]) -> Vec<String> {
    let mut texts: Vec<_> = records
        .iter()
        .map(|record| record.data.to_string())
        .collect();
    texts.sort();
    texts
}

#[test]
fn a_chain_of_aliases_is_given_whole() {
    use ResponseCode::{NXDomain, NoError, ServFail};
    let client = Client::start(zone());
    let web = "web.shop.svc.cluster.local.";
    let near = "near.shop.svc.cluster.local.";
    for (name, code, expected) in [
        ("near", NoError, vec!["10.96.0.7", web]),
        ("chain", NoError, vec!["10.96.0.7", near, web]),
        (
            "away",
            NoError,
            vec!["192.0.2.1", "alias.example.org.", "example.org."],
        ),
        // RFC 6604: the code is that of the last name.
        ("nowhere", NXDomain, vec!["none.shop.svc.cluster.local."]),
        ("lost", NXDomain, vec!["missing.example.org."]),
        ("ill", ServFail, vec!["broken.example.org."]),
    ] {
        let answer = client.ask(&format!("{name}.shop.svc.cluster.local."), RecordType::A);
        assert_eq!(answer.metadata.response_code, code, "{name}");
        assert_eq!(data(&answer.answers), expected, "{name}");
        assert!(answer.metadata.authoritative, "{name}");
        // In the order in which a client reads them.
        assert_eq!(answer.answers[0].record_type(), RecordType::CNAME, "{name}");
    }
    let circle = client.ask("round.shop.svc.cluster.local.", RecordType::A);
    assert_eq!(circle.metadata.response_code, ServFail);
    let alone = client.ask("chain.shop.svc.cluster.local.", RecordType::CNAME);
    assert_eq!(data(&alone.answers), [near]);
}

#[test]
fn what_is_not_there_is_told_for_how_long() {
    let client = Client::start(zone());
    for (name, kind, code) in [
        (
            "none.shop.svc.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
        (
            "web.shop.svc.cluster.local.",
            RecordType::MX,
            ResponseCode::NoError,
        ),
        // As a search path has it.
        (
            "web.shop.svc.cluster.local.shop.svc.cluster.local.",
            RecordType::A,
            ResponseCode::NXDomain,
        ),
    ] {
        let answer = client.ask(name, kind);
        assert_eq!(
            (answer.metadata.response_code, answer.answers.len()),
            (code, 0),
            "{name}"
        );
        let RData::SOA(soa) = &answer.authorities[0].data else {
            panic!("{name}: {:?}", answer.authorities);
        };
        assert_eq!((soa.minimum, answer.authorities[0].ttl), (TTL, TTL));
    }
}

#[test]
fn a_service_record_brings_the_addresses_of_its_targets() {
    let client = Client::start(zone());
    let answer = client.ask("_pg._tcp.db.shop.svc.cluster.local.", RecordType::SRV);
    assert_eq!(answer.answers.len(), 2);
    assert_eq!(
        data(&answer.additionals),
        ["10.244.0.2", "10.244.0.3", "fd00:244::2"]
    );
}

#[test]
fn the_case_of_a_question_comes_back() {
    let client = Client::start(zone());
    let name = "wEb.SHop.sVC.cLUSter.loCAL.";
    for kind in [RecordType::A, RecordType::AAAA] {
        let answer = client.ask(name, kind);
        let asked = Name::from_ascii(name).unwrap();
        assert!(answer.queries[0].name().eq_case(&asked));
        assert!(
            answer.answers[0].name.eq_case(&asked),
            "{}",
            answer.answers[0]
        );
    }
}

#[test]
fn edns_is_spoken_in_its_only_version() {
    let client = Client::start(zone());
    let name = "web.shop.svc.cluster.local.";
    let plain = Message::from_vec(&client.udp(&question(name, RecordType::A).to_vec().unwrap()));
    assert!(plain.unwrap().edns.is_none());
    let answer = client.udp(&with_edns(question(name, RecordType::A), 0, 4096));
    let answer = Message::from_vec(&answer).unwrap();
    assert_eq!(answer.edns.unwrap().max_payload(), MAX_PAYLOAD);
    let answer = client.udp(&with_edns(question(name, RecordType::A), 1, 4096));
    // Its higher bits are in the options, the last record: root, OPT, payload, and then these.
    assert_eq!(answer[3] & 0xf, 0);
    assert_eq!(answer[answer.len() - 6], 1, "BADVERS is 16");
}

#[test]
fn what_does_not_fit_is_cut_and_had_by_tcp() {
    const ENDPOINTS: usize = 120;
    let mut zone = zone();
    let endpoints: Vec<_> = (0..ENDPOINTS)
        .map(|last| serde_json::json!({"addresses": [format!("10.244.9.{last}")]}))
        .collect();
    let slice = serde_json::json!({
        "metadata": {"name": "many", "namespace": "shop", "labels": {"kubernetes.io/service-name": "idle"}},
        "addressType": "IPv4", "endpoints": endpoints, "ports": [{"name": "pg", "port": 1, "protocol": "TCP"}],
    });
    zone.set_slice(&serde_json::from_value(slice).unwrap());
    let client = Client::start(zone);
    let asked = question("idle.shop.svc.cluster.local.", RecordType::A);
    for (payload, room) in [
        (None, 512),
        (Some(100), 512),
        (Some(1_000), 1_000),
        (Some(4_096), 1_232),
    ] {
        let bytes = match payload {
            None => asked.to_vec().unwrap(),
            Some(payload) => with_edns(asked.clone(), 0, payload),
        };
        let answer = client.udp(&bytes);
        assert!(answer.len() <= room, "{payload:?}: {}", answer.len());
        // As many as there is room for: one more takes 16 octets, and before it is packed as much as its name.
        let enough = room - asked.to_vec().unwrap().len();
        assert!(answer.len() > enough, "{payload:?}: {}", answer.len());
        let answer = Message::from_vec(&answer).unwrap();
        assert!(answer.metadata.truncation, "{payload:?}");
        assert_eq!(answer.edns.is_some(), payload.is_some(), "{payload:?}");
    }
    let answer = Message::from_vec(&client.tcp(&asked.to_vec().unwrap())).unwrap();
    assert_eq!(
        (answer.answers.len(), answer.metadata.truncation),
        (ENDPOINTS, false)
    );
}

#[test]
fn other_classes_and_whole_zones_are_refused() {
    let client = Client::start(zone());
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let answer = Message::from_vec(&client.udp(&chaos.to_vec().unwrap())).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let transfer = question("cluster.local.", RecordType::AXFR)
        .to_vec()
        .unwrap();
    let answer = Message::from_vec(&client.tcp(&transfer)).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
}
