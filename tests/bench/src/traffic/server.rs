//! The server's role: one thread accepts and answers; connections that are kept get a thread of their own.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::http;
use crate::worker;
use windlass_tests::processor;

const PATIENCE: Duration = Duration::from_secs(30);
const BODY: [u8; 64] = [b'.'; 64];

#[derive(clap::Args)]
pub struct Options {
    #[arg(long)]
    netns: PathBuf,
    #[arg(long)]
    port: u16,
}

#[derive(Serialize, Deserialize)]
pub enum Order {
    /// Answered once the server listens.
    Ready,
    /// Processor time so far, in microseconds.
    Cpu,
}

pub fn run(options: &Options) -> Result<()> {
    worker::enter_netns(&options.netns)?;
    processor::share()?;
    let listener = TcpListener::bind(("0.0.0.0", options.port)).context("binding the server")?;
    // Ends with the process: it blocks, so that nothing but the kernel is measured.
    thread::spawn(move || {
        let mut buffer = Vec::new();
        for stream in listener.incoming().flatten() {
            // A client that goes away in between is its own loss.
            let _ = serve(stream, &mut buffer);
        }
    });
    worker::serve(|order| {
        Ok(match order {
            Order::Ready => 0,
            Order::Cpu => processor::time().as_micros() as u64,
        })
    })
}

fn serve(mut stream: TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Which of the namespace's addresses was asked tells a client which endpoint it got.
    let answer = answer(&stream)?;
    let (head, _) = http::read_head(&mut stream, buffer)?;
    let head = &buffer[..head];
    if head.starts_with(b"GET /bulk ") {
        thread::spawn(move || send_for_ever(&mut stream));
        return Ok(());
    }
    stream.write_all(&answer)?;
    if http::header(head, "connection") != Some("close") {
        thread::spawn(move || {
            let mut buffer = Vec::new();
            while http::read_head(&mut stream, &mut buffer).is_ok()
                && stream.write_all(&answer).is_ok()
            {}
        });
    }
    Ok(())
}

fn answer(stream: &TcpStream) -> std::io::Result<Vec<u8>> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nX-Served-By: {}\r\nContent-Length: {}\r\n\r\n",
        stream.local_addr()?.ip(),
        BODY.len()
    )
    .into_bytes();
    answer.extend_from_slice(&BODY);
    Ok(answer)
}

fn send_for_ever(stream: &mut TcpStream) {
    let zeros = vec![0u8; 256 << 10];
    let head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    if stream.write_all(head).is_ok() {
        while stream.write_all(&zeros).is_ok() {}
    }
}
