//! A resolver's half of DNS, written from RFC 1035 alone, so that the server's library does not check itself; and
//! `dig`, where the machine has it.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

const PATIENCE: Duration = Duration::from_secs(20);
/// What the options of a question offer to take.
const PAYLOAD: u16 = 1_232;
const SOA: u16 = 6;
const OPT: u16 = 41;
const KINDS: [(u16, &str); 10] = [
    (1, "A"),
    (2, "NS"),
    (5, "CNAME"),
    (SOA, "SOA"),
    (12, "PTR"),
    (15, "MX"),
    (16, "TXT"),
    (28, "AAAA"),
    (33, "SRV"),
    (255, "ANY"),
];

/// An answer, as far as it is the same by every client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// As dig has it.
    pub(super) status: &'static str,
    /// `TYPE data`, in order of their texts.
    pub(super) records: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Udp,
    Tcp,
}

/// Asks, and checks what every answer must be.
pub(super) fn ask(server: SocketAddr, way: Way, name: &str, kind: &str) -> Result<Answer> {
    let number = KINDS.iter().find(|(_, it)| *it == kind);
    let (number, _) = number.with_context(|| format!("type {kind}"))?;
    let question = question(name, *number);
    let message = match way {
        Way::Udp => by_udp(server, &question)?,
        Way::Tcp => by_tcp(server, &question)?,
    };
    read(&question, &message)
}

fn question(name: &str, kind: u16) -> Vec<u8> {
    // An id, recursion desired, one question, and options.
    let mut question = vec![0x5a, 0xa5, 1, 0, 0, 1, 0, 0, 0, 0, 0, 1];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    question.push(0);
    question.extend(kind.to_be_bytes());
    question.extend([0, 1]);
    question.push(0);
    question.extend(OPT.to_be_bytes());
    question.extend(PAYLOAD.to_be_bytes());
    question.extend([0; 6]);
    question
}

fn by_udp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(question)?;
    let mut answer = vec![0; usize::from(PAYLOAD) + 1];
    let length = socket.recv(&mut answer).context("no answer by UDP")?;
    ensure!(length <= PAYLOAD.into(), "larger than was offered to take");
    answer.truncate(length);
    Ok(answer)
}

fn by_tcp(server: SocketAddr, question: &[u8]) -> Result<Vec<u8>> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(question.len())?.to_be_bytes();
    stream.write_all(&[&length, question].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length).context("no answer by TCP")?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

fn read(question: &[u8], message: &[u8]) -> Result<Answer> {
    let mut reader = Reader { message, at: 0 };
    ensure!(reader.take(2)? == &question[..2], "another id");
    let flags = reader.u16()?;
    ensure!(flags & 0xf900 == 0x8100, "flags {flags:#06x}");
    ensure!(flags & 0x0200 == 0, "it is truncated");
    let counts = [reader.u16()?, reader.u16()?, reader.u16()?, reader.u16()?];
    ensure!(counts[0] == 1, "{} questions", counts[0]);
    // The question comes back as it was, its letters too, and so does its name in the answers.
    let asked = &question[12..question.len() - 11];
    ensure!(reader.take(asked.len())? == asked, "another question");
    let name = Reader { message, at: 12 }.name()?;
    let mut records = Vec::new();
    for number in 0..counts[1] {
        let (of, text) = reader.record()?;
        ensure!(number > 0 || of == name, "{of} and not {name}");
        let (_, kind, data) = text;
        records.push(format!("{kind} {data}"));
    }
    let mut negative = false;
    for _ in 0..counts[2] {
        let (_, (number, ..)) = reader.record()?;
        negative |= number == SOA;
    }
    let mut options = 0;
    for _ in 0..counts[3] {
        let (_, (number, ..)) = reader.record()?;
        options += usize::from(number == OPT);
    }
    ensure!(options == 1, "{options} records of options");
    ensure!(reader.at == message.len(), "something follows");
    // Without it nobody knows for how long there is nothing (RFC 2308).
    ensure!(negative || !records.is_empty(), "nothing, and no authority");
    records.sort();
    let status = match flags & 15 {
        0 => "NOERROR",
        3 => "NXDOMAIN",
        code => bail!("code {code}"),
    };
    Ok(Answer { status, records })
}

struct Reader<'a> {
    message: &'a [u8],
    at: usize,
}

/// Its type, and that and its content as text.
type Text = (u16, String, String);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let taken = self.message.get(self.at..self.at + count);
        self.at += count;
        taken.context("it ends too early")
    }

    fn u16(&mut self) -> Result<u16> {
        let octets = self.take(2)?;
        Ok(u16::from_be_bytes([octets[0], octets[1]]))
    }

    fn name(&mut self) -> Result<String> {
        let mut name = String::new();
        loop {
            let length = self.take(1)?[0];
            if length & 0xc0 == 0xc0 {
                let low = self.take(1)?[0];
                let earlier = usize::from(length & 0x3f) << 8 | usize::from(low);
                ensure!(earlier + 2 < self.at, "a name that points forward");
                let mut there = Reader {
                    message: self.message,
                    at: earlier,
                };
                return Ok(name + &there.name()?);
            }
            if length == 0 {
                return Ok(if name.is_empty() { ".".into() } else { name });
            }
            name += &String::from_utf8_lossy(self.take(length.into())?);
            name.push('.');
        }
    }

    fn record(&mut self) -> Result<(String, Text)> {
        let name = self.name()?;
        let number = self.u16()?;
        // Class and time to live.
        self.take(6)?;
        let length = usize::from(self.u16()?);
        let end = self.at + length;
        let data = match number {
            1 => <[u8; 4]>::try_from(self.take(4)?)
                .map(Ipv4Addr::from)?
                .to_string(),
            28 => <[u8; 16]>::try_from(self.take(16)?)
                .map(Ipv6Addr::from)?
                .to_string(),
            2 | 5 | 12 => self.name()?,
            16 => {
                let text = self.take(length)?;
                format!("\"{}\"", String::from_utf8_lossy(&text[1..]))
            }
            33 => {
                let (priority, weight, port) = (self.u16()?, self.u16()?, self.u16()?);
                format!("{priority} {weight} {port} {}", self.name()?)
            }
            _ => {
                self.take(length)?;
                String::new()
            }
        };
        ensure!(self.at == end, "{number}: {} of {length} octets", self.at);
        let kind = KINDS.iter().find(|(it, _)| *it == number);
        let kind = kind.map_or_else(|| format!("TYPE{number}"), |(_, kind)| (*kind).to_owned());
        Ok((name, (number, kind, data)))
    }
}

/// The same by dig; nothing where there is none.
pub(super) fn dig(server: SocketAddr, way: Way, name: &str, kind: &str) -> Result<Option<Answer>> {
    let mut dig = Command::new("dig");
    dig.arg(format!("@{}", server.ip())).args([name, kind]);
    dig.args(["+noall", "+comments", "+answer", "+tries=1", "+time=5"]);
    dig.arg(match way {
        Way::Udp => "+notcp",
        Way::Tcp => "+tcp",
    });
    let output = match dig.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        output => output.context("starting dig")?,
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "dig {name} {kind}: {text}");
    let status = ["NOERROR", "NXDOMAIN"]
        .into_iter()
        .find(|status| text.contains(&format!("status: {status},")));
    let status = status.with_context(|| text.clone())?;
    let answers = text.lines().filter(|line| !line.starts_with(';'));
    let mut records: Vec<String> = answers
        .filter_map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            Some(words.get(3..)?.join(" "))
        })
        .collect();
    records.sort();
    Ok(Some(Answer { status, records }))
}
