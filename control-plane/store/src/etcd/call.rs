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
/// When a member proves silent, what the others were asked is answered within this.
const OTHERS_ANSWER: Duration = Duration::from_secs(1);

/// What changes nothing, or nothing more the second time: also asked again while the members choose a leader, after one
/// has died over it, and when one turns out to be silent.
pub(super) async fn read<T, F>(left_out: &LeftOut, call: impl FnMut() -> F) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    again(left_out, Duration::ZERO, true, call).await
}

/// What may have been done although the answer was lost: asked again only where it never left. If a silent member may have
/// it, the caller is told so, and does not wait until the connection is given up.
pub(super) async fn write<T, F>(left_out: &LeftOut, call: impl FnMut() -> F) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    again(left_out, OTHERS_ANSWER, false, call).await
}

async fn again<T, F>(
    left_out: &LeftOut,
    patience: Duration,
    may_repeat: bool,
    mut call: impl FnMut() -> F,
) -> Answer<T>
where
    F: Future<Output = Answer<T>>,
{
    within(async {
        for _ in 1..TRIES {
            match unless_silent(left_out, patience, call()).await {
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

/// Gives a call up so long after a member was left out: nobody tells which member has it.
async fn unless_silent<T>(
    left_out: &LeftOut,
    patience: Duration,
    call: impl Future<Output = Answer<T>>,
) -> Answer<T> {
    let mut left_out = left_out.clone();
    left_out.mark_unchanged();
    let is_silent = async {
        if left_out.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        answer = call => answer,
        () = is_silent => Err(Error::GRpcStatus(Status::unavailable("the member is silent"))),
    }
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
