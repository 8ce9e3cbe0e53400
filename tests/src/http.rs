//! A small HTTP/1.1 client: one connection per request, every time limited, every byte in the test's hands.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// Far above what anything takes, on a machine that is busy with other things too.
const TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("not JSON: {}", self.text()))
    }

    pub fn header(&self, wanted: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(wanted));
        found.map(|(_, value)| value.as_str())
    }
}

pub fn get(address: SocketAddr, path: &str) -> Result<Response> {
    request(address, "GET", path, &[], &[])
}

/// The body of a GET that must succeed, without the newline at its end.
pub fn get_text(address: SocketAddr, path: &str) -> Result<String> {
    let response = get(address, path)?;
    if response.status != 200 {
        bail!(
            "{address}{path} answered {}: {}",
            response.status,
            response.text()
        );
    }
    Ok(response.text().trim_end().to_owned())
}

pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    exchange(address, method, path, headers, body)
        .with_context(|| format!("{method} http://{address}{path}"))
}

fn exchange(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    // A server that refuses a body may answer and close before it has read all of it.
    let written = stream.write_all(body);
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    match parse(&answer) {
        Ok(response) => Ok(response),
        Err(error) => {
            written?;
            read?;
            Err(error)
        }
    }
}

pub(crate) fn parse(answer: &[u8]) -> Result<Response> {
    let end = answer
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .context("no end of headers")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let status = lines
        .next()
        .and_then(|line| line.split(' ').nth(1))
        .context("no status line")?;
    let mut response = Response {
        status: status.parse().context("status code")?,
        headers: lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect(),
        body: answer[end + 4..].to_vec(),
    };
    if response
        .header("transfer-encoding")
        .is_some_and(|value| value.contains("chunked"))
    {
        response.body = dechunk(&response.body)?;
    } else if let Some(length) = response.header("content-length") {
        let length: usize = length.parse().context("content length")?;
        if response.body.len() < length {
            bail!(
                "the connection ended after {} of {length} bytes",
                response.body.len()
            );
        }
    }
    Ok(response)
}

fn dechunk(mut chunked: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let end = chunked
            .windows(2)
            .position(|two| two == b"\r\n")
            .context("cut off in a chunk")?;
        let size = std::str::from_utf8(&chunked[..end])?
            .split(';')
            .next()
            .unwrap_or_default();
        let size = usize::from_str_radix(size.trim(), 16).context("chunk size")?;
        if size == 0 {
            return Ok(whole);
        }
        let start = end + 2;
        whole.extend(
            chunked
                .get(start..start + size)
                .context("cut off in a chunk")?,
        );
        chunked = chunked
            .get(start + size + 2..)
            .context("cut off after a chunk")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined() {
        let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(answer).unwrap().text(), "abcde");
    }

    #[test]
    fn a_cut_off_body_is_an_error() {
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc").is_err());
        assert!(parse(b"HTTP/1.1 200 OK\r\n").is_err());
    }
}
