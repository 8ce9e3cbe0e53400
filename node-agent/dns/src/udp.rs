//! Questions by UDP, answered by the task that reads them.
//!
//! A cluster's name is known without waiting, so its answer needs no task, no queue and no second wake-up; only a
//! question that has to wait (for an upstream) gets a task of its own.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::FutureExt;
use hickory_proto::op::{Header, HeaderCounts, MessageType, Metadata, ResponseCode};
use hickory_proto::rr::Record;
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncodable, BinEncoder};
use hickory_server::net::NetError;
use hickory_server::net::runtime::TokioTime;
use hickory_server::net::xfer::Protocol;
use hickory_server::server::{Request, RequestHandler, ResponseHandler, ResponseInfo};
use hickory_server::zone_handler::MessageResponse;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What an answer may have when the question does not say more, in bytes (RFC 1035, 4.2.1).
pub(crate) const MIN_PAYLOAD: u16 = 512;
/// The largest answer: what passes every link unfragmented (DNS flag day 2020), in bytes.
pub(crate) const MAX_PAYLOAD: u16 = 1232;
/// Where a header counts its additional records.
const ADDITIONAL_COUNT: usize = 10;
/// The largest question read, in bytes: a name has 255 at most, the rest is room for options.
const MAX_QUESTION: usize = 4096;

/// Answers what comes in by `socket` until `stop`.
///
/// # Errors
/// When the socket fails, and not just one datagram.
pub(crate) async fn serve(
    socket: UdpSocket,
    handler: impl RequestHandler + Clone,
    stop: CancellationToken,
) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut waiting = JoinSet::new();
    let mut buffer = [0; MAX_QUESTION];
    loop {
        tokio::select! {
            ready = socket.readable() => ready?,
            () = stop.cancelled() => return Ok(()),
        }
        loop {
            match socket.try_recv_from(&mut buffer) {
                Ok((length, from)) => {
                    take(&socket, &handler, &buffer[..length], from, &mut waiting);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => {
                    tracing::debug!(%error, "question not read");
                    break;
                }
            }
        }
        while waiting.try_join_next().is_some() {}
    }
}

/// Answers one question, at once if nothing has to be waited for.
fn take(
    socket: &Arc<UdpSocket>,
    handler: &(impl RequestHandler + Clone),
    message: &[u8],
    from: SocketAddr,
    waiting: &mut JoinSet<()>,
) {
    // Less than a header is no question and gets no answer; an answer to an answer would never end.
    let Ok(header) = Header::read(&mut BinDecoder::new(message)) else {
        return;
    };
    if header.metadata.message_type == MessageType::Response {
        return;
    }
    let request = match Request::from_bytes(message.to_vec(), from, Protocol::Udp) {
        Ok(request) => request,
        Err(error) => {
            tracing::debug!(%error, "question cannot be understood");
            let mut metadata = Metadata::response_from_request(&header.metadata);
            metadata.response_code = ResponseCode::FormErr;
            let counts = HeaderCounts::default();
            if let Ok(bytes) = (Header { metadata, counts }).to_bytes() {
                socket.try_send_to(&bytes, from).ok();
            }
            return;
        }
    };
    let answer = Answer {
        socket: socket.clone(),
        to: from,
        room: request.max_payload().clamp(MIN_PAYLOAD, MAX_PAYLOAD),
    };
    let handler = handler.clone();
    let mut work = async move {
        handler
            .handle_request::<_, TokioTime>(&request, answer)
            .await;
    }
    .boxed();
    if (&mut work).now_or_never().is_none() {
        waiting.spawn(work);
    }
}

/// Where an answer goes.
#[derive(Clone)]
struct Answer {
    socket: Arc<UdpSocket>,
    to: SocketAddr,
    /// Bytes that the client takes; what does not fit is cut off, and says so.
    room: u16,
}

#[async_trait::async_trait]
impl ResponseHandler for Answer {
    async fn send_response<'a>(
        &mut self,
        response: MessageResponse<
            '_,
            'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
            impl Iterator<Item = &'a Record> + Send + 'a,
        >,
    ) -> Result<ResponseInfo, NetError> {
        let mut bytes = Vec::with_capacity(usize::from(MIN_PAYLOAD));
        let options = match response.edns() {
            Some(edns) => Record::from(edns).to_bytes()?,
            None => Vec::new(),
        };
        let info = {
            let mut encoder = BinEncoder::new(&mut bytes);
            encoder.set_max_size(self.room - options.len() as u16);
            response.destructive_emit(&mut encoder)?
        };
        // What is cut off must not be the sign that the server speaks EDNS (RFC 6891, 7): it has a place of its own.
        if info.truncation && !options.is_empty() && !bytes.ends_with(&options) {
            bytes.extend(options);
            let count = u16::from_be_bytes([bytes[ADDITIONAL_COUNT], bytes[ADDITIONAL_COUNT + 1]]);
            bytes[ADDITIONAL_COUNT..][..2].copy_from_slice(&(count + 1).to_be_bytes());
        }
        match self.socket.try_send_to(&bytes, self.to) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.socket.send_to(&bytes, self.to).await?
            }
            sent => sent?,
        };
        Ok(info)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use hickory_proto::op::{Message, OpCode, Query};
    use hickory_proto::rr::rdata::A;
    use hickory_proto::rr::{Name, RData, RecordType};
    use hickory_server::net::runtime::Time;
    use hickory_server::zone_handler::MessageResponseBuilder;
    use tokio::sync::Semaphore;

    use super::*;

    /// Has as many addresses for a name as its first label says; that of `slow.` is known when `upstream` says so.
    #[derive(Clone)]
    struct Names {
        upstream: Arc<Semaphore>,
    }

    #[async_trait::async_trait]
    impl RequestHandler for Names {
        async fn handle_request<R: ResponseHandler, T: Time>(
            &self,
            request: &Request,
            mut response_handle: R,
        ) -> ResponseInfo {
            let name = Name::from(request.queries.queries()[0].name());
            let first = String::from_utf8_lossy(name.iter().next().unwrap()).into_owned();
            let count = match first.parse() {
                Ok(count) => count,
                Err(_) => {
                    let _told = self.upstream.acquire().await.unwrap();
                    1
                }
            };
            let address = RData::A(A(Ipv4Addr::new(192, 0, 2, 1)));
            let records = vec![Record::from_rdata(name, 5, address); count];
            let metadata = Metadata::response_from_request(&request.metadata);
            let builder = MessageResponseBuilder::from_message_request(request);
            let response = builder.build(metadata, &records, [], [], []);
            response_handle.send_response(response).await.unwrap()
        }
    }

    struct Client {
        socket: UdpSocket,
        upstream: Arc<Semaphore>,
        stop: CancellationToken,
    }

    impl Client {
        async fn start() -> Self {
            let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            socket.connect(server.local_addr().unwrap()).await.unwrap();
            let upstream = Arc::new(Semaphore::new(0));
            let stop = CancellationToken::new();
            let names = Names {
                upstream: upstream.clone(),
            };
            tokio::spawn(serve(server, names, stop.clone()));
            Self {
                socket,
                upstream,
                stop,
            }
        }

        async fn ask(&self, id: u16, name: &str) {
            let mut message = Message::new(id, MessageType::Query, OpCode::Query);
            let name = Name::from_ascii(name).unwrap();
            message.add_query(Query::query(name, RecordType::A));
            self.socket.send(&message.to_vec().unwrap()).await.unwrap();
        }

        async fn heard(&self) -> Message {
            let mut buffer = [0; 2048];
            let read = self.socket.recv(&mut buffer);
            let length = tokio::time::timeout(Duration::from_secs(30), read).await;
            Message::from_vec(&buffer[..length.expect("an answer").unwrap()]).unwrap()
        }
    }

    impl Drop for Client {
        fn drop(&mut self) {
            self.stop.cancel();
        }
    }

    #[tokio::test]
    async fn a_question_that_waits_holds_up_no_other() {
        let client = Client::start().await;
        client.ask(1, "slow.").await;
        client.ask(2, "3.").await;
        let answer = client.heard().await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (2, 3));
        client.upstream.add_permits(1);
        assert_eq!(client.heard().await.metadata.id, 1);
    }

    #[tokio::test]
    async fn an_answer_without_room_says_that_it_was_cut() {
        let client = Client::start().await;
        client.ask(1, "100.").await;
        let answer = client.heard().await;
        assert!(answer.metadata.truncation);
        assert!(answer.to_vec().unwrap().len() <= usize::from(MIN_PAYLOAD));
    }

    #[tokio::test]
    async fn what_is_no_question_is_told_so_or_gets_nothing() {
        let client = Client::start().await;
        // Too short for a header; an answer; a header that promises a question which is not there.
        client.socket.send(&[0; 5]).await.unwrap();
        let mut header = [0u8; 12];
        header[..3].copy_from_slice(&[0, 7, 0x80]);
        client.socket.send(&header).await.unwrap();
        header[..6].copy_from_slice(&[0, 8, 0, 0, 0, 1]);
        client.socket.send(&header).await.unwrap();
        let answer = client.heard().await;
        assert_eq!(answer.metadata.id, 8);
        assert_eq!(answer.metadata.response_code, ResponseCode::FormErr);
    }
}
