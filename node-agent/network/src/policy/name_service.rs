//! The agent's side of whoever answers DNS to pods: which names matter, and what they are said to be.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures::{
    FutureExt as _, StreamExt as _,
    future::{BoxFuture, Shared},
    stream::BoxStream,
};
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};
use windlass_domain_names::DomainPattern;
use windlass_proto::agent::v1::{
    self,
    names_server::{Names, NamesServer},
};

use super::{controller::PolicyController, names::Lesson};

/// A day: whoever remembers an answer for longer asks again.
const LONGEST: u32 = 86_400;

pub struct NameService {
    policies: PolicyController,
    /// Who listens does so without end, and a server that is to stop would wait for it.
    stopped: Shared<BoxFuture<'static, ()>>,
}

impl NameService {
    /// The service, to be added to the routes of the agent's socket, which is served until `stopped`.
    pub fn server(
        policies: PolicyController,
        stopped: impl Future<Output = ()> + Send + 'static,
    ) -> NamesServer<Self> {
        NamesServer::new(Self {
            policies,
            stopped: stopped.boxed().shared(),
        })
    }
}

#[tonic::async_trait]
impl Names for NameService {
    type WantedStream = BoxStream<'static, Result<v1::WantedNames, Status>>;

    async fn wanted(
        &self,
        _: Request<v1::WantedRequest>,
    ) -> Result<Response<Self::WantedStream>, Status> {
        // An agent that has only just come says nothing of what it does not know yet.
        let known = WatchStream::new(self.policies.domains()).filter_map(std::future::ready);
        let said = known.map(|patterns: BTreeSet<DomainPattern>| {
            let patterns = patterns.iter().map(DomainPattern::to_string);
            Ok(v1::WantedNames {
                patterns: patterns.collect(),
            })
        });
        Ok(Response::new(said.take_until(self.stopped.clone()).boxed()))
    }

    async fn learn(
        &self,
        request: Request<v1::LearnRequest>,
    ) -> Result<Response<v1::LearnResponse>, Status> {
        let v1::LearnRequest {
            name,
            addresses,
            foreign,
        } = request.into_inner();
        let addresses = addresses.into_iter().map(|it| {
            let address: IpAddr = it
                .address
                .parse()
                .map_err(|error| Status::invalid_argument(format!("{}: {error}", it.address)))?;
            let lives = Duration::from_secs(it.seconds.min(LONGEST).into());
            Ok::<_, Status>((address, lives))
        });
        let lesson = Lesson {
            name,
            addresses: addresses.collect::<Result<_, _>>()?,
            foreign,
        };
        match self.policies.learn(lesson).await {
            true => Ok(Response::new(v1::LearnResponse {})),
            false => Err(Status::unavailable("nobody writes the policy tables")),
        }
    }
}
