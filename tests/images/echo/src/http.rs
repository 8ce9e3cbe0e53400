//! An HTTP/1.1 server that knows five paths and no request bodies.

use std::io::{self, BufRead, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::lifecycle::Lifecycle;

/// A client that keeps its connection open may be silent for this long.
const IDLE: Duration = Duration::from_secs(30);
/// More than any client of the tests sends; what comes beyond is not read.
const LONGEST_LINE: u64 = 16 * 1024;

pub(crate) fn serve(listener: TcpListener, name: String, lifecycle: Arc<Lifecycle>) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (name, lifecycle) = (name.clone(), Arc::clone(&lifecycle));
            thread::spawn(move || {
                // A peer that goes away in the middle is its own affair.
                converse(stream, &name, &lifecycle).ok();
            });
        }
    });
}

fn converse(stream: TcpStream, name: &str, lifecycle: &Arc<Lifecycle>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(IDLE))?;
    let peer = stream.peer_addr()?;
    let mut input = BufReader::new(&stream);
    while let Some(request) = read_request(&mut input)? {
        // A connection that is kept without a request in hand may be cut at any time, so draining need not wait.
        let _busy = lifecycle.busy();
        let response = answer(&request, name, peer, lifecycle);
        // While draining, a kept connection ends with its current answer, so that its client moves on.
        let close = request.close || lifecycle.is_draining();
        (&stream).write_all(&response.bytes(close))?;
        if let Some(code) = response.exit {
            std::process::exit(code);
        }
        if close {
            break;
        }
    }
    Ok(())
}

struct Request {
    path: String,
    close: bool,
}

struct Response {
    status: &'static str,
    body: String,
    /// Ends the process when the answer is on its way: how a test makes a container crash.
    exit: Option<i32>,
}

impl Response {
    fn bytes(&self, close: bool) -> Vec<u8> {
        let connection = if close { "close" } else { "keep-alive" };
        format!(
            "HTTP/1.1 {}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: {connection}\r\n\r\n{}",
            self.status,
            self.body.len(),
            self.body
        )
        .into_bytes()
    }
}

fn answer(request: &Request, name: &str, peer: SocketAddr, lifecycle: &Lifecycle) -> Response {
    let ok = |body: String| Response {
        status: "200 OK",
        body,
        exit: None,
    };
    let path = request.path.split('?').next().unwrap_or_default();
    match path {
        "/" | "/hostname" => ok(format!("{name}\n")),
        "/client" => ok(format!("{}\n", peer.ip().to_canonical())),
        "/healthz" => ok("ok\n".into()),
        "/readyz" if lifecycle.is_draining() => Response {
            status: "503 Service Unavailable",
            body: "draining\n".into(),
            exit: None,
        },
        "/readyz" => ok("ok\n".into()),
        _ => match path.strip_prefix("/exit/").map(str::parse) {
            Some(Ok(code)) => Response {
                exit: Some(code),
                ..ok("bye\n".into())
            },
            _ => Response {
                status: "404 Not Found",
                body: "not found\n".into(),
                exit: None,
            },
        },
    }
}

/// `None` when the peer has closed the connection between two requests.
fn read_request(input: &mut impl BufRead) -> io::Result<Option<Request>> {
    let Some(first) = read_line(input)? else {
        return Ok(None);
    };
    let mut words = first.split(' ');
    let (Some(_method), Some(path), Some(version)) = (words.next(), words.next(), words.next())
    else {
        return Err(io::Error::other("not an HTTP request"));
    };
    let mut request = Request {
        path: path.to_owned(),
        close: version == "HTTP/1.0",
    };
    loop {
        let header = read_line(input)?.ok_or(io::ErrorKind::UnexpectedEof)?;
        if header.is_empty() {
            return Ok(Some(request));
        }
        if let Some((name, value)) = header.split_once(':')
            && name.eq_ignore_ascii_case("connection")
        {
            request.close = value.trim().eq_ignore_ascii_case("close");
        }
    }
}

fn read_line(input: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    if io::Read::take(input, LONGEST_LINE).read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> io::Result<Option<Request>> {
        read_request(&mut text.as_bytes())
    }

    #[test]
    fn connections_are_kept_unless_someone_asks_otherwise() {
        assert!(
            !request("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                .unwrap()
                .unwrap()
                .close
        );
        assert!(
            request("GET / HTTP/1.1\r\nconnection: Close\r\n\r\n")
                .unwrap()
                .unwrap()
                .close
        );
        assert!(request("GET / HTTP/1.0\r\n\r\n").unwrap().unwrap().close);
    }

    #[test]
    fn the_end_of_the_stream_is_no_error_between_requests_only() {
        assert!(request("").unwrap().is_none());
        assert!(request("GET / HTTP/1.1\r\nHost: x\r\n").is_err());
        assert!(request("hello\r\n\r\n").is_err());
    }

    #[test]
    fn readiness_ends_with_draining_and_the_service_does_not() {
        let lifecycle = Lifecycle::default();
        let status = |path: &str| {
            let request = Request {
                path: path.into(),
                close: false,
            };
            answer(&request, "pod-1", ([10, 0, 0, 1], 5).into(), &lifecycle).status
        };
        assert_eq!(status("/readyz"), "200 OK");
        lifecycle.drain(Duration::ZERO);
        assert_eq!(status("/readyz"), "503 Service Unavailable");
        assert_eq!(status("/"), "200 OK");
        assert_eq!(status("/nothing"), "404 Not Found");
    }
}
