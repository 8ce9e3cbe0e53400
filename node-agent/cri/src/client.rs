//! The connection, and the one way in which every call is made.

use std::fmt;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Uri};
use tonic::{Response, Status};
use windlass_proto::cri::v1::image_service_client::ImageServiceClient;
use windlass_proto::cri::v1::runtime_service_client::RuntimeServiceClient;

use crate::{Error, Result};

/// Lists of a full node (hundreds of containers with long annotations) pass 4 MiB.
const MAX_MESSAGE: usize = 64 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(20);
const RETRY_MOST: Duration = Duration::from_millis(500);

/// Where the runtime listens: a unix socket's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint(PathBuf);

impl Endpoint {
    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let path = text.strip_prefix("unix://").unwrap_or(text);
        if path.starts_with('/') {
            Ok(Self(path.into()))
        } else {
            Err(Error::Endpoint {
                endpoint: text.to_owned(),
            })
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "unix://{}", self.0.display())
    }
}

/// A container runtime. Clones share the connection, which is made at the first
/// call and again whenever it broke: a runtime that restarts is simply away for a while.
#[derive(Debug, Clone)]
pub struct Runtime {
    endpoint: Endpoint,
    channel: Channel,
}

impl Runtime {
    /// A client of the runtime at `endpoint`; nothing is sent yet.
    pub fn new(endpoint: Endpoint) -> Self {
        let path = endpoint.path().to_owned();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        // The URI only fills the :authority header; the connector ignores it.
        let channel = tonic::transport::Endpoint::from_static("http://runtime")
            .connect_with_connector_lazy(connector);
        Self { endpoint, channel }
    }

    /// Where the runtime listens.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    pub(crate) fn runtime_service(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn image_service(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// One kind of call: its name, how long it may take, whether it may be repeated.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) deadline: Duration,
    pub(crate) repeatable: bool,
}

impl Call {
    /// A call that changes nothing or is idempotent by contract: repeated while the
    /// runtime is away, until its deadline.
    pub(crate) const fn repeatable(name: &'static str, deadline: Duration) -> Self {
        Self {
            name,
            deadline,
            repeatable: true,
        }
    }

    /// A call that must not be repeated blindly, since the first one may have acted.
    pub(crate) const fn once(name: &'static str, deadline: Duration) -> Self {
        Self {
            name,
            deadline,
            repeatable: false,
        }
    }

    /// Sends what `send` makes until it succeeds, fails for good, or time is up.
    pub(crate) async fn make<T, F, Fut>(self, send: F) -> Result<T>
    where
        F: Fn() -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let end = Instant::now() + self.deadline;
        let mut pause = RETRY_FIRST;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let error = match tokio::time::timeout(left, send()).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Ok(Err(status)) => Error::from_status(self.name, self.deadline, status),
                Err(_) => Error::Deadline {
                    call: self.name,
                    deadline: self.deadline,
                },
            };
            if !(self.repeatable && error.is_unreachable()) || Instant::now() + pause >= end {
                return Err(error);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn endpoints_are_unix_sockets() {
        assert_eq!(
            "unix:///run/x.sock".parse::<Endpoint>().unwrap().path(),
            Path::new("/run/x.sock")
        );
        assert_eq!(
            "/run/x.sock".parse::<Endpoint>().unwrap().to_string(),
            "unix:///run/x.sock"
        );
        assert!("tcp://127.0.0.1:1".parse::<Endpoint>().is_err());
        assert!("x.sock".parse::<Endpoint>().is_err());
    }

    async fn attempts(call: Call, answers: &[Result<(), Status>]) -> (usize, Result<()>) {
        let count = AtomicUsize::new(0);
        let result = call
            .make(|| {
                let at = count.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
                let answer = answers[at].clone();
                async move { answer.map(Response::new) }
            })
            .await;
        (count.into_inner(), result)
    }

    #[tokio::test]
    async fn only_repeatable_calls_are_repeated_and_only_while_the_runtime_is_away() {
        let safe = Call::repeatable("Safe", Duration::from_secs(5));
        let once = Call::once("Once", Duration::from_secs(5));
        let away = || Err(Status::unavailable("gone"));

        let (count, result) = attempts(safe, &[away(), away(), Ok(())]).await;
        assert!(result.is_ok());
        assert_eq!(count, 3);

        let (count, result) = attempts(once, &[away(), Ok(())]).await;
        assert!(result.unwrap_err().is_unreachable());
        assert_eq!(count, 1);

        let (count, result) = attempts(safe, &[Err(Status::unknown("broken")), Ok(())]).await;
        assert!(matches!(result, Err(Error::Refused { .. })));
        assert_eq!(count, 1);
    }

    #[tokio::test]
    async fn a_runtime_that_does_not_answer_runs_into_the_deadline() {
        let call = Call::repeatable("Slow", Duration::from_millis(30));
        let result: Result<()> = call.make(std::future::pending).await;
        assert!(matches!(result, Err(Error::Deadline { call: "Slow", .. })));
    }

    #[tokio::test]
    async fn a_socket_without_a_listener_is_unreachable() {
        let runtime = Runtime::new("/nonexistent/runtime.sock".parse().unwrap());
        let call = Call::once("Version", Duration::from_secs(2));
        let result = call
            .make(|| {
                let mut client = runtime.runtime_service();
                async move { client.version(crate::v1::VersionRequest::default()).await }
            })
            .await;
        assert!(result.unwrap_err().is_unreachable());
    }
}
