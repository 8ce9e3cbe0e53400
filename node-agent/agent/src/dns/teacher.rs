//! Tells the agent what names are, for policies that speak of them, before pods hear of it. The agent may be away:
//! then nobody is told, and it hears of what was answered when it is back.

use std::path::PathBuf;
use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use tokio::sync::watch;
use tonic::transport::Channel;
use windlass_dns::{Lesson, Lessons, Teach, Wanted};
use windlass_pods::Patience;
use windlass_proto::agent::v1;
use windlass_proto::agent::v1::names_client::NamesClient;

use crate::ask;

struct Agent(NamesClient<Channel>);

impl Teach for Agent {
    fn teach(&self, lesson: Lesson) -> BoxFuture<'_, bool> {
        let addresses = lesson
            .addresses
            .into_iter()
            .map(|(address, lives)| v1::NamedAddress {
                address: address.to_string(),
                seconds: u32::try_from(lives.as_secs()).unwrap_or(u32::MAX),
            });
        let request = v1::LearnRequest {
            name: lesson.name,
            addresses: addresses.collect(),
            foreign: lesson.foreign,
        };
        let mut agent = self.0.clone();
        async move {
            let learned = agent.learn(request).await;
            let learned =
                learned.inspect_err(|error| tracing::debug!(%error, "the agent was not told"));
            learned.is_ok()
        }
        .boxed()
    }
}

/// What the agent at this socket wants to be told, as long as the second part is polled.
pub(super) fn teacher(socket: PathBuf) -> (Lessons, impl Future<Output = ()>) {
    let agent = NamesClient::new(ask::lazy_channel(socket));
    let (says, wanted) = watch::channel(Arc::default());
    let lessons = Lessons::new(wanted, Arc::new(Agent(agent.clone())));
    (lessons, listen(agent, says))
}

async fn listen(mut agent: NamesClient<Channel>, says: watch::Sender<Arc<Wanted>>) {
    let mut pauses = Patience::default();
    loop {
        match agent.wanted(v1::WantedRequest {}).await {
            Ok(answer) => {
                let mut news = answer.into_inner();
                // Until the agent goes.
                while let Ok(Some(v1::WantedNames { patterns })) = news.message().await {
                    pauses = Patience::default();
                    says.send_replace(Wanted::new(patterns.iter().map(String::as_str)));
                }
            }
            Err(error) => tracing::debug!(%error, "the agent does not say which names matter"),
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}
