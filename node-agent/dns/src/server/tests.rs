//! The server as its clients see it: what stands on the wire.

mod coredns;

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
        Self::start_with(zone, None)
    }

    fn start_with(zone: Zone, lessons: Option<Lessons>) -> Self {
        let (sockets, server) = Sockets::free();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let handler = Handler {
            zone: Arc::new(RwLock::new(zone)),
            upstreams: Upstreams::with_patience(Some(Arc::new(Outside)), PATIENCE),
            metrics: Metrics::default(),
            lessons,
        };
        let serving = {
            let _entered = runtime.enter();
            serve(handler, vec![sockets], CancellationToken::new()).unwrap()
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

#[test]
fn questions_on_one_connection_need_not_wait_for_each_other() {
    let client = Client::start(zone());
    let names = [
        "example.org.",
        "web.shop.svc.cluster.local.",
        "none.shop.svc.cluster.local.",
        "example.org.",
    ];
    let mut all = Vec::new();
    for (id, name) in (1..).zip(names) {
        let mut message = question(name, RecordType::A);
        message.metadata.id = id;
        let bytes = message.to_vec().unwrap();
        all.extend(u16::try_from(bytes.len()).unwrap().to_be_bytes());
        all.extend(bytes);
    }
    let mut stream = TcpStream::connect(client.server).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // In the middle of a length, of a question, and all the rest.
    for part in [&all[..1], &all[1..20], &all[20..]] {
        stream.write_all(part).unwrap();
    }
    for (id, _) in (1..).zip(names) {
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(Message::from_vec(&answer).unwrap().metadata.id, id);
    }
}

#[test]
fn options_that_mean_nothing_here_change_no_answer() {
    let client = Client::start(zone());
    let mut asked = question("web.shop.svc.cluster.local.", RecordType::A)
        .to_vec()
        .unwrap();
    // OPT for 1,232 octets: where the client is (RFC 7871), a cookie (RFC 7873), and one that nobody knows.
    asked[11] = 1;
    asked.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 29]);
    asked.extend([0, 8, 0, 7, 0, 1, 24, 0, 198, 51, 100]);
    asked.extend([0, 10, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    asked.extend([255, 1, 0, 2, 9, 9]);
    for answer in [client.udp(&asked), client.tcp(&asked)] {
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert_eq!(data(&answer.answers), ["10.96.0.7"]);
        let options = answer.edns.expect("EDNS").options().as_ref().len();
        assert_eq!(options, 0, "what is not understood is not repeated");
    }
}

#[test]
fn a_name_from_memory_is_in_the_letters_of_the_question() {
    let client = Client::start(zone());
    for name in ["example.org.", "eXAmple.oRG.", "EXAMPLE.org."] {
        let asked = Name::from_ascii(name).unwrap();
        let answer = client.ask(name, RecordType::A);
        assert!(answer.answers[0].name.eq_case(&asked), "{answer}");
    }
}

/// Lets nothing be known before it is told to.
struct Gate {
    heard: std::sync::mpsc::Sender<crate::Lesson>,
    opens: tokio::sync::Semaphore,
}

impl crate::Teach for Gate {
    fn teach(&self, lesson: crate::Lesson) -> BoxFuture<'_, bool> {
        async move {
            self.heard.send(lesson).unwrap();
            let opened = self.opens.acquire().await;
            opened.unwrap().forget();
            true
        }
        .boxed()
    }
}

#[test]
fn an_answer_that_a_policy_waits_for_leaves_when_it_is_in_force() {
    let (heard, hears) = std::sync::mpsc::channel();
    let gate = Arc::new(Gate {
        heard,
        opens: tokio::sync::Semaphore::new(0),
    });
    let (_says, wanted) = tokio::sync::watch::channel(crate::Wanted::new(["*.example.org"]));
    let lessons = Lessons::new(wanted, gate.clone());
    let client = Client::start_with(zone(), Some(lessons));
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.connect(client.server).unwrap();
    let ask = |name: &str| {
        let question = question(name, RecordType::A).to_vec().unwrap();
        socket.send(&question).unwrap();
    };
    let mut answer = [0; 512];
    ask("alias.example.org.");
    let lesson = hears.recv_timeout(PATIENCE).unwrap();
    assert_eq!(lesson.name, "alias.example.org");
    assert_eq!(
        lesson.addresses[0].0,
        std::net::IpAddr::from([192, 0, 2, 1])
    );
    assert!(lesson.foreign);
    // Others are answered meanwhile, so this one would have been.
    ask("example.org.");
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let length = socket.recv(&mut answer).unwrap();
    let first = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!(first.queries[0].name().to_ascii(), "example.org.");
    gate.opens.add_permits(1);
    let length = socket.recv(&mut answer).unwrap();
    let second = Message::from_vec(&answer[..length]).unwrap();
    assert_eq!(second.queries[0].name().to_ascii(), "alias.example.org.");
    assert_eq!(second.answers.len(), 2);
}
