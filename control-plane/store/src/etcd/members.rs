//! The members of the cluster that answer.
//!
//! One that stands still, because its machine is suspended, its disk hangs or its packets are dropped, takes connections and
//! calls as ever and answers none: of three members it would hold up every third call, again after each of its
//! connections was given up. So each is asked all the time by a connection of its own, and gets no call while it is silent.
//! Who is away altogether is not: a call to it fails before it has left, and goes to another.

use std::collections::HashSet;
use std::time::Duration;

use etcd_client::{Client, ConnectOptions};
use futures::future::join_all;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::call::Answer;

const INTERVAL: Duration = Duration::from_secs(1);
/// How late an answer may be on a busy machine.
const PATIENCE: Duration = Duration::from_secs(3);

/// Changes whenever a member is left out: whoever waits for an answer may wait for that one's.
pub(super) type LeftOut = watch::Receiver<()>;

pub(super) struct Members {
    /// Spreads calls over those that are not silent.
    pub(super) client: Client,
    pub(super) left_out: LeftOut,
    /// Ends with this.
    _vigil: JoinSet<()>,
}

impl Members {
    /// Returns once each has answered or proved silent.
    pub(super) async fn connect(endpoints: &[String], options: ConnectOptions) -> Answer<Self> {
        let client = Client::connect(endpoints, Some(options.clone())).await?;
        let mut each = Vec::with_capacity(endpoints.len());
        for endpoint in endpoints {
            let alone = Client::connect([endpoint], Some(options.clone())).await?;
            each.push((endpoint.clone(), alone));
        }
        let (tell, left_out) = watch::channel(());
        let mut vigil = Vigil {
            client: client.clone(),
            each,
            silent: HashSet::new(),
            left_out: tell,
        };
        vigil.round().await?;
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(INTERVAL).await;
                if let Err(error) = vigil.round().await {
                    tracing::error!(%error, "etcd's members cannot be told apart any more");
                    return;
                }
            }
        });
        Ok(Self {
            client,
            left_out,
            _vigil: tasks,
        })
    }
}

struct Vigil {
    client: Client,
    each: Vec<(String, Client)>,
    silent: HashSet<String>,
    left_out: watch::Sender<()>,
}

impl Vigil {
    async fn round(&mut self) -> Answer<()> {
        let asked = self.each.iter().map(|(_, alone)| answers(alone));
        let answers = join_all(asked).await;
        let (speaking, quiet): (Vec<_>, Vec<_>) = (self.each.iter().zip(answers))
            .map(|((endpoint, _), answers)| (endpoint, answers))
            .partition(|(_, answers)| *answers);
        for (endpoint, _) in speaking {
            if self.silent.remove(endpoint) {
                tracing::info!(%endpoint, "a member of etcd answers again");
                self.client.add_endpoint(endpoint).await?;
            }
        }
        for (endpoint, _) in quiet {
            // Of none at all, one is as good as the others.
            if self.silent.len() + 1 == self.each.len() || !self.silent.insert(endpoint.clone()) {
                continue;
            }
            tracing::warn!(%endpoint, "a member of etcd is silent and gets no calls");
            self.client.remove_endpoint(endpoint).await?;
            self.left_out.send_replace(());
        }
        Ok(())
    }
}

/// A refusal is an answer too, and so is that there is nobody.
async fn answers(member: &Client) -> bool {
    let mut maintenance = member.maintenance_client();
    let asked = tokio::time::timeout(PATIENCE, maintenance.status());
    asked.await.is_ok()
}
