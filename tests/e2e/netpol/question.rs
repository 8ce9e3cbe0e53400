//! What is asked of the pods, all at once and in every namespace, and what is done with wrong answers.

use std::fs::File;
use std::time::Duration;

use anyhow::{Result, bail};

use super::model::{End, PodName, Traffic};
use super::probe::{self, Probe, Pulse};

/// By which address a pod is asked.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    Direct,
    Service,
    /// A port of the node that asks, or on which the pod runs that asks.
    NodePort,
    /// A port of the node on which the pod runs that is asked for, which leaves the client's address alone.
    ItsNodesPort,
    Balancer,
    /// The address of a balancer that would send the traffic to the pod's node alone.
    LocalBalancer,
}

impl Way {
    /// Beside the pod's own address.
    pub(super) const OTHERS: [Self; 5] = [
        Self::Service,
        Self::NodePort,
        Self::ItsNodesPort,
        Self::Balancer,
        Self::LocalBalancer,
    ];
}

pub(super) struct Question<'a> {
    pub(super) from: End<'a>,
    pub(super) to: &'a PodName,
    pub(super) way: Way,
    pub(super) traffic: Traffic,
    pub(super) probe: Probe,
    pub(super) expected: bool,
}

/// Keeps those that were answered wrongly, and says which they are.
pub(super) fn ask(
    questions: &mut [(File, Vec<Question<'_>>)],
    pause: Duration,
) -> Result<Vec<String>> {
    let pulse = Pulse::new(pause);
    let answers: Vec<Vec<bool>> = std::thread::scope(|scope| {
        let threads: Vec<_> = questions
            .iter()
            .map(|(namespace, questions)| {
                let pulse = &pulse;
                scope.spawn(move || {
                    let probes: Vec<Probe> = questions.iter().map(|it| it.probe).collect();
                    probe::answered(namespace, &probes, pulse)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(answers) => answers,
            Err(_) => bail!("a probing thread panicked"),
        });
        joined.collect::<Result<_>>()
    })?;
    let mut wrong = Vec::new();
    for ((_, questions), answers) in questions.iter_mut().zip(answers) {
        let mut answers = answers.into_iter();
        questions.retain(|question| answers.next() != Some(question.expected));
        wrong.extend(questions.iter().map(Question::differs));
    }
    Ok(wrong)
}

impl Question<'_> {
    fn differs(&self) -> String {
        let Self {
            from,
            to,
            way,
            traffic,
            probe,
            expected,
        } = self;
        let said = if *expected { "does not pass" } else { "passes" };
        let target = probe.target;
        format!("{from:?} -> {to} {traffic:?} ({way:?}, {target}) {said}")
    }
}
