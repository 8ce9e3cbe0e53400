//! Which flows somebody wants to see.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use windlass_proto::agent::v1::{Flow, FollowRequest, Party};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "{0:?} is no end of a flow: expected an address, ADDRESS:PORT, a network, NAMESPACE/NAME, NAMESPACE/ or node:NAME"
)]
pub struct SelectorError(pub String);

/// One end of a flow, as a user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Network(IpNet),
    /// An address and a port.
    Socket(SocketAddr),
    Node(String),
    Namespace(String),
    /// A pod or a Service.
    Object {
        namespace: String,
        name: String,
    },
}

impl std::str::FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if let Some(node) = text.strip_prefix("node:") {
            return Ok(Self::Node(node.to_owned()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Network(address.into()));
        }
        if let Ok(socket) = text.parse() {
            return Ok(Self::Socket(socket));
        }
        if let Ok(network) = text.parse() {
            return Ok(Self::Network(network));
        }
        match text.split_once('/') {
            Some((namespace, "")) if !namespace.is_empty() => {
                Ok(Self::Namespace(namespace.to_owned()))
            }
            Some((namespace, name)) if !namespace.is_empty() && !name.contains('/') => {
                Ok(Self::Object {
                    namespace: namespace.to_owned(),
                    name: name.to_owned(),
                })
            }
            _ => Err(SelectorError(text.to_owned())),
        }
    }
}

impl Selector {
    fn matches(&self, party: &Party) -> bool {
        match self {
            Self::Network(network) => party
                .address
                .parse()
                .is_ok_and(|address: IpAddr| network.contains(&address)),
            Self::Socket(socket) => {
                let address = party.address.parse();
                address.is_ok_and(|address: IpAddr| address == socket.ip())
                    && party.port == u32::from(socket.port())
            }
            Self::Node(name) => party.node == *name,
            Self::Namespace(namespace) => party.namespace == *namespace,
            Self::Object { namespace, name } => {
                party.namespace == *namespace && (party.pod == *name || party.service == *name)
            }
        }
    }
}

/// A request, understood.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    from: Vec<Selector>,
    to: Vec<Selector>,
    with: Vec<Selector>,
    verdicts: Vec<String>,
    protocols: Vec<String>,
}

impl Filter {
    pub(crate) fn new(request: &FollowRequest) -> Result<Self, SelectorError> {
        let parse = |texts: &[String]| -> Result<Vec<Selector>, SelectorError> {
            texts.iter().map(|text| text.parse()).collect()
        };
        Ok(Self {
            from: parse(&request.from)?,
            to: parse(&request.to)?,
            with: parse(&request.with)?,
            verdicts: request.verdict.clone(),
            protocols: request.protocol.clone(),
        })
    }

    pub(crate) fn admits(&self, flow: &Flow) -> bool {
        let sources: Vec<&Party> = flow.source.iter().collect();
        let targets: Vec<&Party> = flow.destination.iter().chain(&flow.translated).collect();
        let both = [sources.as_slice(), &targets].concat();
        let any = |wanted: &[Selector], parties: &[&Party]| {
            let matches = |party: &&Party| wanted.iter().any(|one| one.matches(party));
            wanted.is_empty() || parties.iter().any(matches)
        };
        let one_of =
            |wanted: &[String], is: &str| wanted.is_empty() || wanted.iter().any(|it| it == is);
        any(&self.from, &sources)
            && any(&self.to, &targets)
            && any(&self.with, &both)
            && one_of(&self.verdicts, &flow.verdict)
            && one_of(&self.protocols, &flow.protocol)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        let party = |address: &str, namespace: &str, pod: &str, service: &str| Party {
            address: address.into(),
            namespace: namespace.into(),
            pod: pod.into(),
            service: service.into(),
            ..Party::default()
        };
        Flow {
            verdict: "translated".into(),
            protocol: "tcp".into(),
            source: Some(party("10.0.0.1", "a", "client", "")),
            destination: Some(Party {
                port: 80,
                ..party("10.96.0.7", "b", "", "web")
            }),
            translated: Some(party("10.0.1.9", "b", "web-1", "")),
            ..Flow::default()
        }
    }

    fn admits(change: impl FnOnce(&mut FollowRequest)) -> bool {
        let mut request = FollowRequest::default();
        change(&mut request);
        Filter::new(&request).unwrap().admits(&flow())
    }

    #[test]
    fn both_ends_and_the_backend_can_be_named() {
        assert!(admits(|_| {}));
        assert!(admits(|it| it.from = vec!["a/client".into()]));
        assert!(!admits(|it| it.from = vec!["a/other".into()]));
        assert!(admits(|it| it.to = vec!["b/web".into()]));
        assert!(admits(|it| it.to = vec!["10.0.1.0/24".into()]));
        assert!(admits(|it| it.to = vec!["x/".into(), "b/".into()]));
        assert!(!admits(|it| it.to = vec!["a/".into()]));
        assert!(admits(|it| it.with = vec!["10.0.0.1".into()]));
        assert!(admits(|it| it.to = vec!["10.96.0.7:80".into()]));
        assert!(!admits(|it| it.to = vec!["10.96.0.7:81".into()]));
        assert!(!admits(|it| it.from = vec!["10.96.0.7:80".into()]));
        assert!(!admits(|it| it.verdict = vec!["dropped".into()]));
        assert!(admits(|it| it.protocol = vec!["udp".into(), "tcp".into()]));
    }

    #[test]
    fn what_is_no_end_of_a_flow_is_refused() {
        for text in ["", "web", "/web", "a/b/c", "/"] {
            assert_eq!(
                text.parse::<Selector>(),
                Err(SelectorError(text.into())),
                "{text}"
            );
        }
    }
}
