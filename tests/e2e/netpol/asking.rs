//! Everybody is asked for everybody, by every way there is, and the model says what must come of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::Value;

use super::model::{End, Family, PodName, Protocol, Traffic};
use super::probe::{Probe, Pulse};
use super::question::{Question, Way, ask};
use super::sctp::{self, Ear};
use super::world::{PORTS, World};

/// After so long without any answer no more are expected. Every later look is as patient as all before it together, so
/// that one of them will do on any machine.
const PAUSE: Duration = Duration::from_millis(300);
/// An answer that is still missing then is so for good.
const AT_LAST: Duration = Duration::from_secs(10);

impl World {
    /// Asks everybody for everybody, and again whoever has given a wrong answer, until all answers are the model's.
    /// Returns how long that took.
    pub(super) fn check(&mut self) -> Result<Duration> {
        self.checked += 1;
        let this = &*self;
        let mut questions = this.questions();
        let started = Instant::now();
        let (mut pause, mut told) = (PAUSE, PAUSE * 4);
        loop {
            let began = Instant::now();
            let mut wrong = ask(&mut questions, pause)?;
            if wrong.is_empty() {
                wrong = this.sctp_differences(pause)?;
            }
            if wrong.is_empty() {
                return Ok(began.duration_since(started));
            }
            if started.elapsed() > told {
                told *= 2;
                eprintln!(
                    "still {} after {:?}, such as {:?}",
                    wrong.len(),
                    started.elapsed(),
                    wrong.first()
                );
            }
            if pause > AT_LAST {
                let policies: Vec<String> =
                    this.model.policies.values().map(Value::to_string).collect();
                bail!(
                    "{} answers are wrong {:?} after the change:\n{}\nunder\n{}",
                    wrong.len(),
                    started.elapsed(),
                    wrong.join("\n"),
                    policies.join("\n")
                );
            }
            // One who hears more than there should be does not wait for the rest: looks may follow each other at once.
            pause = started.elapsed().max(PAUSE);
        }
    }

    /// By the namespace in which they are asked.
    fn questions(&self) -> Vec<(File, Vec<Question<'_>>)> {
        let from_pods = self.namespaces.iter().filter_map(|(pod, namespace)| {
            let node = self.model.pods.get(pod)?.node;
            Some((namespace.try_clone().ok()?, End::Pod(pod), node))
        });
        let from_nodes = self.nodes.iter().enumerate().filter_map(|(index, node)| {
            let file = match &node.netns {
                Some(name) => File::open(format!("/run/netns/{name}")),
                None => File::open("/proc/self/ns/net"),
            };
            Some((file.ok()?, End::Node(index), index))
        });
        let places = from_pods.chain(from_nodes);
        places
            .map(|(namespace, from, node)| {
                let targets = self.model.pods.keys();
                let questions = targets.flat_map(|to| self.questions_about(from, node, to));
                (namespace, questions.collect())
            })
            .collect()
    }

    fn questions_about<'a>(
        &'a self,
        from: End<'a>,
        node: usize,
        to: &'a PodName,
    ) -> Vec<Question<'a>> {
        let pod = &self.model.pods[to];
        let mut questions = Vec::new();
        for (family, port) in both(Family::ALL, PORTS) {
            let Some(address) = family.of(&pod.addresses) else {
                continue;
            };
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let traffic = Traffic {
                    family,
                    protocol,
                    port,
                };
                let expected = self.model.allows(from, End::Pod(to), traffic);
                let direct = (Way::Direct, SocketAddr::new(address, port), expected);
                let other = self.another_way(from, node, to, traffic);
                questions.extend([Some(direct), other].into_iter().flatten().map(
                    |(way, target, expected)| Question {
                        from,
                        to,
                        way,
                        traffic,
                        probe: Probe { target, protocol },
                        expected,
                    },
                ));
            }
        }
        questions
    }

    /// A way to a pod by one of its Services, and whether it must be open. Each state that is checked takes another
    /// one, and every state all of them, between other pods.
    fn another_way(
        &self,
        from: End<'_>,
        node: usize,
        to: &PodName,
        traffic: Traffic,
    ) -> Option<(Way, SocketAddr, bool)> {
        let services = self.services.get(to)?;
        let (family, key) = (traffic.family, (traffic.port, traffic.protocol));
        let expected = self.model.allows(from, End::Pod(to), traffic);
        let at =
            |addresses: &[IpAddr], port: u16| Some(SocketAddr::new(family.of(addresses)?, port));
        let pair = format!("{from:?}{to}{traffic:?}");
        let turn = pair.bytes().map(usize::from).sum::<usize>() + self.checked;
        match Way::OTHERS[turn % Way::OTHERS.len()] {
            Way::NodePort => {
                let port = *services.everywhere.node_ports.get(&key)?;
                let target = at(&self.model.nodes[node], port)?;
                Some((Way::NodePort, target, expected))
            }
            Way::ItsNodesPort => {
                let port = *services.local.node_ports.get(&key)?;
                let target = at(&self.model.nodes[self.model.pods[to].node], port)?;
                let expected = self.model.allows_by_its_node(from, to, traffic, port);
                Some((Way::ItsNodesPort, target, expected))
            }
            Way::Balancer => {
                let target = at(&services.everywhere.balancers, traffic.port)?;
                Some((Way::Balancer, target, expected))
            }
            Way::LocalBalancer => {
                let target = at(&services.local.balancers, traffic.port)?;
                Some((Way::LocalBalancer, target, expected))
            }
            way @ (Way::Direct | Way::Service) => {
                let target = at(&services.everywhere.addresses, traffic.port)?;
                Some((way, target, expected))
            }
        }
    }

    fn sctp_differences(&self, pause: Duration) -> Result<Vec<String>> {
        let names: Vec<PodName> = self.namespaces.keys().cloned().collect();
        let mut ears = names
            .iter()
            .map(|name| Ear::open(&self.namespaces[name]))
            .collect::<Result<Vec<_>>>()?;
        let mut asked = BTreeMap::new();
        for from in &names {
            let mut targets = Vec::new();
            for (index, to) in names.iter().enumerate() {
                for (family, port) in both(Family::ALL, PORTS) {
                    let Some(address) = family.of(&self.model.pods[to].addresses) else {
                        continue;
                    };
                    let mark = self.mark.get() + 1;
                    self.mark.set(mark);
                    targets.push((SocketAddr::new(address, port), mark));
                    let traffic = Traffic {
                        family,
                        protocol: Protocol::Sctp,
                        port,
                    };
                    asked.insert(mark, (from, index, traffic));
                }
            }
            sctp::send(&self.namespaces[from], &targets)?;
        }
        let expected = |(from, to, traffic): &(&PodName, usize, Traffic)| {
            let to = End::Pod(&names[*to]);
            self.model.allows(End::Pod(from), to, *traffic)
        };
        let enough = asked.values().filter(|it| expected(it)).count();
        let heard = sctp::listen(&mut ears, enough, &Pulse::new(pause));
        let wrong = asked.iter().filter(|(mark, it)| {
            let (_, to, traffic) = it;
            heard[*to].contains(&(traffic.port, **mark)) != expected(it)
        });
        Ok(wrong
            .map(|(_, it)| {
                let (from, to, traffic) = it;
                let is = expected(it);
                format!("{from} -> {} {traffic:?}: should be {is}", names[*to])
            })
            .collect())
    }
}

/// Each of these with each of those.
fn both<A: Copy, B: Copy, const N: usize, const M: usize>(
    these: [A; N],
    those: [B; M],
) -> impl Iterator<Item = (A, B)> {
    these
        .into_iter()
        .flat_map(move |this| those.map(|that| (this, that)))
}
