//! The subcommands that ask a running agent over its socket, and print what it says.
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};
use hyper_util::rt::TokioIo;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use windlass_proto::agent::v1;
use windlass_proto::agent::v1::flows_client::FlowsClient;
use windlass_proto::agent::v1::inspection_client::InspectionClient;

use crate::trace;

#[derive(Args)]
pub(crate) struct AskOptions {
    /// The agent's own socket.
    #[arg(long, global = true, default_value = "/run/windlass/agent.sock")]
    socket: PathBuf,
    /// For people, or for programs.
    #[arg(long, short, global = true, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    /// One object a line.
    Json,
}

#[derive(Subcommand)]
pub(crate) enum Question {
    /// The addresses and ports that the datapath serves.
    Services(AskOptions),
    /// The same, with each backend on a line of its own.
    Backends(AskOptions),
    /// The connections that the datapath tracks.
    Connections(AskOptions),
    /// What happens to a packet for a Service, and why.
    Explain {
        /// NAMESPACE/NAME or ADDRESS:PORT
        target: String,
        #[command(flatten)]
        ask: AskOptions,
    },
    /// What Prometheus would read.
    Metrics(AskOptions),
    /// Connections, their ends and drops, as they happen.
    Flows(FlowOptions),
    /// What happens from now on to flows of one end, or between two, each decision in words.
    Trace {
        /// An address, ADDRESS:PORT, a network, NAMESPACE/NAME of a pod or Service, NAMESPACE/, node:NAME
        end: String,
        /// The other end, by the same names: then `end` is who begins.
        other: Option<String>,
        /// tcp, udp, sctp, icmp
        #[arg(long, value_delimiter = ',')]
        protocol: Vec<String>,
        #[command(flatten)]
        ask: AskOptions,
    },
}

#[derive(Args)]
pub(crate) struct FlowOptions {
    /// Go on until interrupted; else for as long as `--for` says.
    #[arg(long, short)]
    follow: bool,
    /// Seconds to listen without `--follow`.
    #[arg(long = "for", default_value_t = 5, value_name = "SECONDS")]
    duration: u64,
    /// Who began it: an address, ADDRESS:PORT, a network, NAMESPACE/NAME of a pod or Service, NAMESPACE/, node:NAME
    #[arg(long)]
    from: Vec<String>,
    /// Whom it is for, by the same names.
    #[arg(long)]
    to: Vec<String>,
    /// Either end, by the same names.
    #[arg(long)]
    with: Vec<String>,
    /// forwarded, translated, dropped, refused, audited, closed
    #[arg(long, value_delimiter = ',')]
    verdict: Vec<String>,
    /// tcp, udp, sctp, icmp
    #[arg(long, value_delimiter = ',')]
    protocol: Vec<String>,
    /// Of so many connections show one; drops are always shown.
    #[arg(long, default_value_t = 1)]
    sample: u32,
    #[command(flatten)]
    ask: AskOptions,
}

pub(crate) async fn ask(question: Question) -> anyhow::Result<()> {
    match question {
        Question::Services(ask) => services(&ask, false).await,
        Question::Backends(ask) => services(&ask, true).await,
        Question::Connections(ask) => connections(&ask).await,
        Question::Explain { target, ask } => explain(target, &ask).await,
        Question::Metrics(ask) => metrics(&ask).await,
        Question::Flows(options) => flows(options).await,
        Question::Trace {
            end,
            other,
            protocol,
            ask,
        } => {
            let mut request = v1::FollowRequest {
                protocol,
                ..v1::FollowRequest::default()
            };
            match other {
                Some(other) => (request.from, request.to) = (vec![end], vec![other]),
                None => request.with = vec![end],
            }
            let sentence = |flow: &v1::Flow| format!("{} {}", when(flow), trace::words(flow));
            follow(request, None, &ask, sentence).await
        }
    }
}

async fn channel(ask: &AskOptions) -> anyhow::Result<Channel> {
    // One call that says nothing is the way to know whether somebody listens.
    let listens = UnixStream::connect(&ask.socket).await;
    listens.with_context(|| format!("no agent answers at {}", ask.socket.display()))?;
    Ok(lazy_channel(ask.socket.clone()))
}

/// To the agent at this socket, which need not be there before something is asked of it.
pub(crate) fn lazy_channel(socket: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is a formality: the connector decides.
    Endpoint::from_static("http://windlass").connect_with_connector_lazy(connector)
}

async fn inspection(ask: &AskOptions) -> anyhow::Result<InspectionClient<Channel>> {
    let client = InspectionClient::new(channel(ask).await?);
    // A node may hold a quarter of a million endpoints.
    Ok(client.max_decoding_message_size(1 << 30))
}

/// To whoever asked, who reads no log.
pub(crate) fn complain(error: &anyhow::Error) {
    let _ = writeln!(std::io::stderr(), "error: {error:#}");
}

/// Whoever reads may have gone (`| head`), which is no fault.
fn say(line: &str) -> bool {
    writeln!(std::io::stdout(), "{line}").is_ok()
}

async fn services(ask: &AskOptions, by_backend: bool) -> anyhow::Result<()> {
    let answer = inspection(ask)
        .await?
        .services(v1::ServicesRequest {})
        .await?;
    for service in answer.into_inner().services {
        let said = match (ask.output, by_backend) {
            (Output::Json, false) => say(&service_json(&service).to_string()),
            (Output::Text, false) => say(&service_line(&service)),
            (_, true) => service.backends.iter().all(|backend| match ask.output {
                Output::Json => {
                    let mut value = backend_json(backend);
                    value["service"] = owner(&service).into();
                    say(&value.to_string())
                }
                Output::Text => say(&format!(
                    "{:<45} {:<9} {} port {}/{} {}",
                    end(&backend.address, backend.port),
                    backend.state,
                    service.address,
                    service.port,
                    service.protocol,
                    owner(&service),
                )),
            }),
        };
        if !said {
            break;
        }
    }
    Ok(())
}

fn owner(service: &v1::ServiceEntry) -> String {
    if service.name.is_empty() {
        return "-".to_owned();
    }
    format!("{}/{}", service.namespace, service.name)
}

fn service_line(service: &v1::ServiceEntry) -> String {
    let active = service
        .backends
        .iter()
        .filter(|it| it.state == "active")
        .count();
    let draining = service.backends.len() - active;
    let mut line = format!(
        "{:<45} {:<4} {active} backend{}",
        end(&service.address, service.port),
        service.protocol,
        if active == 1 { "" } else { "s" },
    );
    let notes = [
        (draining > 0, format!("{draining} draining")),
        (service.outside, "for clients outside".to_owned()),
        (
            service.affinity_seconds > 0,
            format!("affinity {} s", service.affinity_seconds),
        ),
        (service.source_ranges, "source ranges".to_owned()),
        (service.maglev, "maglev".to_owned()),
    ];
    for (_, note) in notes.iter().filter(|(applies, _)| *applies) {
        line.push_str(", ");
        line.push_str(note);
    }
    format!("{line}  {}", owner(service))
}

fn service_json(service: &v1::ServiceEntry) -> Value {
    json!({
        "address": service.address,
        "port": service.port,
        "protocol": service.protocol,
        "namespace": service.namespace,
        "name": service.name,
        "portName": service.port_name,
        "id": service.id,
        "outside": service.outside,
        "affinitySeconds": service.affinity_seconds,
        "sourceRanges": service.source_ranges,
        "dropsWithoutBackend": service.drops_without_backend,
        "maglev": service.maglev,
        "backends": service.backends.iter().map(backend_json).collect::<Vec<_>>(),
    })
}

fn backend_json(backend: &v1::BackendEntry) -> Value {
    json!({
        "address": backend.address,
        "port": backend.port,
        "state": backend.state,
        "id": backend.id,
    })
}

async fn connections(ask: &AskOptions) -> anyhow::Result<()> {
    let answer = inspection(ask)
        .await?
        .connections(v1::ConnectionsRequest {})
        .await?;
    for it in answer.into_inner().connections {
        let line = match ask.output {
            Output::Json => json!({
                "protocol": it.protocol,
                "source": end(&it.source, it.source_port),
                "destination": end(&it.destination, it.destination_port),
                "toSource": end(&it.to_source, it.to_source_port),
                "toDestination": end(&it.to_destination, it.to_destination_port),
                "state": it.state,
                "service": it.service,
                "idleSeconds": it.idle_seconds,
            })
            .to_string(),
            Output::Text => {
                let from = end(&it.source, it.source_port);
                let to = end(&it.destination, it.destination_port);
                let (new_from, new_to) = (
                    end(&it.to_source, it.to_source_port),
                    end(&it.to_destination, it.to_destination_port),
                );
                let becomes = if (&from, &to) == (&new_from, &new_to) {
                    String::new()
                } else {
                    format!(" as {new_from} -> {new_to}")
                };
                format!(
                    "{:<4} {:<11} {from} -> {to}{becomes}, idle {} s",
                    it.protocol, it.state, it.idle_seconds
                )
            }
        };
        if !say(&line) {
            break;
        }
    }
    Ok(())
}

async fn explain(target: String, ask: &AskOptions) -> anyhow::Result<()> {
    let answer = inspection(ask)
        .await?
        .explain(v1::ExplainRequest { target })
        .await;
    let lines = answer
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?
        .into_inner()
        .lines;
    match ask.output {
        Output::Json => {
            say(&json!({ "lines": lines }).to_string());
        }
        Output::Text => {
            say(&lines.join("\n"));
        }
    }
    Ok(())
}

async fn metrics(ask: &AskOptions) -> anyhow::Result<()> {
    let answer = inspection(ask)
        .await?
        .metrics(v1::MetricsRequest {})
        .await?;
    say(answer.into_inner().text.trim_end());
    Ok(())
}

async fn flows(options: FlowOptions) -> anyhow::Result<()> {
    let limit = (!options.follow).then(|| Duration::from_secs(options.duration));
    let request = v1::FollowRequest {
        from: options.from,
        to: options.to,
        with: options.with,
        verdict: options.verdict,
        protocol: options.protocol,
        sample: options.sample,
    };
    follow(request, limit, &options.ask, flow_line).await
}

async fn follow(
    request: v1::FollowRequest,
    limit: Option<Duration>,
    ask: &AskOptions,
    line: impl Fn(&v1::Flow) -> String,
) -> anyhow::Result<()> {
    let mut client = FlowsClient::new(channel(ask).await?);
    let answer = client.follow(request).await;
    let mut stream = answer
        .map_err(|status| anyhow::anyhow!("{}", status.message()))?
        .into_inner();
    let listen = async {
        while let Some(flow) = stream.message().await? {
            let line = match ask.output {
                Output::Json => flow_json(&flow).to_string(),
                Output::Text => line(&flow),
            };
            if !say(&line) {
                break;
            }
        }
        Ok(())
    };
    match limit {
        None => listen.await,
        // That the time is over is how it should end.
        Some(limit) => tokio::time::timeout(limit, listen).await.unwrap_or(Ok(())),
    }
}

fn end(address: &str, port: u32) -> String {
    if address.contains(':') {
        format!("[{address}]:{port}")
    } else {
        format!("{address}:{port}")
    }
}

fn when(flow: &v1::Flow) -> String {
    let time = Timestamp::from_nanosecond(i128::from(flow.time)).unwrap_or_default();
    format!("{time:.6}")
}

fn flow_line(flow: &v1::Flow) -> String {
    let party = |party: &Option<v1::Party>| party.as_ref().map(party_words).unwrap_or_default();
    let mut line = format!(
        "{} {:<10} {:<4} {} -> {}",
        when(flow),
        flow.verdict,
        flow.protocol,
        party(&flow.source),
        party(&flow.destination),
    );
    if flow.translated.is_some() {
        line.push_str(&format!(" => {}", party(&flow.translated)));
    }
    let notes = [
        ("", &flow.reason),
        ("by ", &flow.policy),
        ("at ", &flow.hook),
    ];
    for (word, note) in notes.iter().filter(|(_, note)| !note.is_empty()) {
        line.push_str(&format!(" {word}{note}"));
    }
    if flow.lost > 0 {
        line.push_str(&format!(" ({} not shown before it)", flow.lost));
    }
    line
}

pub(crate) fn party_words(party: &v1::Party) -> String {
    let address = end(&party.address, party.port);
    let name = match (party.pod.as_str(), party.service.as_str()) {
        ("", "") if party.node.is_empty() => return address,
        ("", "") => format!("node {}", party.node),
        ("", service) => format!("service {}/{service}", party.namespace),
        (pod, _) => format!("{}/{pod}", party.namespace),
    };
    format!("{address} ({name})")
}

fn flow_json(flow: &v1::Flow) -> Value {
    let party = |party: &Option<v1::Party>| {
        party.as_ref().map(|it| {
            json!({
                "address": it.address,
                "port": it.port,
                "namespace": it.namespace,
                "pod": it.pod,
                "service": it.service,
                "node": it.node,
            })
        })
    };
    json!({
        "time": when(flow),
        "node": flow.node,
        "verdict": flow.verdict,
        "protocol": flow.protocol,
        "source": party(&flow.source),
        "destination": party(&flow.destination),
        "translated": party(&flow.translated),
        "reason": flow.reason,
        "policy": flow.policy,
        "hook": flow.hook,
        "bytes": flow.bytes,
        "how": flow.how,
        "lost": flow.lost,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_reads_as_one_line() {
        let flow = v1::Flow {
            time: 1_700_000_000_000_000_000,
            verdict: "dropped".into(),
            protocol: "tcp".into(),
            source: Some(v1::Party {
                address: "fd00::1".into(),
                port: 40_000,
                namespace: "a".into(),
                pod: "client".into(),
                ..v1::Party::default()
            }),
            destination: Some(v1::Party {
                address: "10.96.0.7".into(),
                port: 80,
                namespace: "b".into(),
                service: "web".into(),
                ..v1::Party::default()
            }),
            reason: "policy-denied-ingress".into(),
            policy: "b/deny-all".into(),
            hook: "from-pod".into(),
            lost: 3,
            ..v1::Flow::default()
        };
        assert_eq!(
            flow_line(&flow),
            "2023-11-14T22:13:20.000000Z dropped    tcp  [fd00::1]:40000 (a/client) -> 10.96.0.7:80 (service b/web) \
             policy-denied-ingress by b/deny-all at from-pod (3 not shown before it)"
        );
        assert_eq!(flow_json(&flow)["source"]["pod"], "client");
    }
}
