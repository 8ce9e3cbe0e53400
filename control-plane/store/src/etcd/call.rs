//! A call to the cluster, whichever member answers it, and within a time.
//!
//! Calls are spread over all members, those that are away among them: a call that meets one of those fails before it
//! has left. It is made again until it meets another, as etcd's own clients do; else a third of all requests would be
//! refused for as long as one member of three is away.

use std::error::Error as _;
use std::time::Duration;

use etcd_client::Error;
use tonic::{Code, ConnectError, Status};

use super::members::LeftOut;

pub(super) type Answer<T> = Result<T, Error>;

const DEADLINE: Duration = Duration::from_secs(30);
/// With two of five members away, all of so many calls meet one of them once in a thousand billion times.
const TRIES: usize = 32;
const PAUSE: Duration = Duration::from_millis(25);

/// What changes nothing, or nothing more the second time: also asked again while the members choose a leader, after one
/// has died over it, and when one turns out to be silent.
pub(super) async fn read<T, F>(left_out: &LeftOut, mut call: impl FnMut() -> F) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    let call = move || {
        let (call, mut left_out) = (call(), left_out.clone());
        left_out.mark_unchanged();
        async move {
            tokio::select! {
                answer = call => answer,
                Ok(()) = left_out.changed() => Err(Error::GRpcStatus(Status::unavailable("the member is silent"))),
            }
        }
    };
    again(call, true).await
}

/// What may have been done although the answer was lost: asked again only where it never left.
pub(super) async fn write<T, F>(call: impl FnMut() -> F) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    again(call, false).await
}

async fn again<T, F>(mut call: impl FnMut() -> F, may_repeat: bool) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    within(async {
        for _ in 1..TRIES {
            match call().await {
                Err(Error::GRpcStatus(status)) if never_left(&status) => {}
                Err(Error::GRpcStatus(status))
                    if may_repeat && status.code() == Code::Unavailable =>
                {
                    tokio::time::sleep(PAUSE).await;
                }
                answer => return answer,
            }
        }
        call().await
    })
    .await
}

async fn within<T>(call: impl Future<Output = Answer<T>>) -> Answer<T> {
    let answer = tokio::time::timeout(DEADLINE, call).await;
    answer.unwrap_or_else(|_| {
        let seconds = DEADLINE.as_secs();
        let late = format!("no answer within {seconds} s");
        Err(Error::GRpcStatus(Status::deadline_exceeded(late)))
    })
}

/// There was no connection that it could have left by.
fn never_left(status: &Status) -> bool {
    let mut causes = std::iter::successors(status.source(), |&cause| cause.source());
    causes.any(|cause| cause.is::<ConnectError>())
}
