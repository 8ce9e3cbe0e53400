//! The flow log on the agent's socket.

use std::pin::Pin;

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::error::RecvError;
use tonic::{Request, Response, Status};
use windlass_proto::agent::v1::flows_server::{Flows, FlowsServer};
use windlass_proto::agent::v1::{Flow, FollowRequest};

use crate::log::FlowLog;
use crate::selector::Filter;

pub struct FlowService(FlowLog);

impl FlowService {
    /// The service, to be added to the routes of the agent's socket.
    pub fn server(log: FlowLog) -> FlowsServer<Self> {
        FlowsServer::new(Self(log))
    }
}

#[tonic::async_trait]
impl Flows for FlowService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Flow, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let request = request.into_inner();
        let filter =
            Filter::new(&request).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let listener = self.0.listen(request.sample.max(1)).await;
        let flows = stream::unfold((listener, 0), |(mut listener, mut lost)| async move {
            loop {
                match listener.flows.recv().await {
                    Ok(flow) => {
                        let mut flow = Flow::clone(&flow);
                        flow.lost += lost;
                        return Some((flow, (listener, 0)));
                    }
                    // This listener is slower than the flows.
                    Err(RecvError::Lagged(missed)) => lost += missed,
                    Err(RecvError::Closed) => return None,
                }
            }
        });
        let wanted = flows.filter_map(move |flow| {
            let wanted = filter.admits(&flow).then_some(Ok(flow));
            std::future::ready(wanted)
        });
        Ok(Response::new(wanted.boxed()))
    }
}
