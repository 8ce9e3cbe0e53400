//! `windlass.dev/echo`: what the tests and the first five minutes talk to.
//!
//! HTTP on 8080 answers with the pod's name; 9000 (or each `--echo`) sends back what it gets, over TCP and UDP. At SIGTERM it
//! reports itself unready and goes on serving while anything is in hand, at least for `--drain` seconds: the
//! way in which a well-behaved server leaves a load balancer.
#![allow(
    clippy::print_stdout,
    reason = "a container logs to its standard output"
)]

mod echo;
mod http;
mod lifecycle;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use lifecycle::Lifecycle;

struct Options {
    http: u16,
    echo: Vec<u16>,
    drain: Duration,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\nusage: echo [--http PORT] [--echo PORT]... [--drain SECONDS]");
            return ExitCode::from(2);
        }
    };
    match serve(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(options: &Options) -> io::Result<()> {
    // Before any thread starts, so that all of them leave SIGTERM to this one.
    let signals = lifecycle::block_signals()?;
    let lifecycle = Arc::new(Lifecycle::default());
    let name = pod_name()?;

    http::serve(listen(options.http)?, name.clone(), Arc::clone(&lifecycle));
    for port in &options.echo {
        echo::serve_tcp(listen(*port)?, Arc::clone(&lifecycle));
        echo::serve_udp(udp_socket(*port)?);
    }
    println!(
        "{name} listens: http {}, tcp and udp echo {:?}",
        options.http, options.echo
    );

    let signal = signals.wait()?;
    println!("{signal}: draining");
    lifecycle.drain(options.drain);
    println!("bye");
    Ok(())
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options {
        http: 8080,
        echo: Vec::new(),
        drain: Duration::from_secs(1),
    };
    while let Some(word) = words.next() {
        let value = words
            .next()
            .ok_or_else(|| format!("`{word}` needs a value"))?;
        let number: u16 = value
            .parse()
            .map_err(|_| format!("`{value}` is no number"))?;
        match word.as_str() {
            "--http" => options.http = number,
            "--echo" => options.echo.push(number),
            "--drain" => options.drain = Duration::from_secs(number.into()),
            _ => return Err(format!("unknown option `{word}`")),
        }
    }
    if options.echo.is_empty() {
        options.echo.push(9000);
    }
    Ok(options)
}

/// A pod's host name is its name.
fn pod_name() -> io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?
        .trim()
        .to_owned())
}

/// On all addresses of both families, where the kernel has IPv6.
fn listen(port: u16) -> io::Result<TcpListener> {
    TcpListener::bind(&any(port)[..])
}

fn udp_socket(port: u16) -> io::Result<UdpSocket> {
    UdpSocket::bind(&any(port)[..])
}

fn any(port: u16) -> [SocketAddr; 2] {
    [
        (Ipv6Addr::UNSPECIFIED, port).into(),
        (Ipv4Addr::UNSPECIFIED, port).into(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(line: &str) -> impl Iterator<Item = String> {
        line.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn options_have_defaults_and_are_checked() {
        let options = parse(words("--http 80 --drain 5")).unwrap();
        assert_eq!((options.http, options.echo), (80, vec![9000]));
        assert_eq!(options.drain, Duration::from_secs(5));
        let options = parse(words("--echo 80 --echo 81")).unwrap();
        assert_eq!(options.echo, [80, 81]);
        assert!(parse(words("--http")).is_err());
        assert!(parse(words("--http x")).is_err());
        assert!(parse(words("--port 80")).is_err());
    }
}
