//! What follows objects for as long as the server runs.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use windlass_machinery::status::ApiError;

use crate::server::ApiServer;

const RETRY: Duration = Duration::from_secs(1);

/// Calls `follow` until the server shuts down, again a second after it has ended; `complain` hears why it failed.
pub(crate) fn start<F>(server: &Arc<ApiServer>, follow: F, complain: fn(&ApiError))
where
    F: for<'a> Fn(&'a Arc<ApiServer>) -> BoxFuture<'a, Result<(), ApiError>>
        + Send
        + Sync
        + 'static,
{
    let server = server.clone();
    tokio::spawn(async move {
        let shutdown = server.shutdown.clone();
        let work = async {
            loop {
                if let Err(error) = follow(&server).await {
                    complain(&error);
                }
                tokio::time::sleep(RETRY).await;
            }
        };
        shutdown.run_until_cancelled(work).await;
    });
}
