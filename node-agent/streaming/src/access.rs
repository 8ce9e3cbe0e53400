//! Who may ask this server for what: the cluster decides, as it does for a kubelet.
//!
//! The API server's own certificate is let in without a question. Anybody else, such as a
//! metrics collector with its service account's token, is looked up, and needs the right to the
//! subresource of this Node that the path stands for.

use futures::future::BoxFuture;
use http::Method;

use crate::identity::Identity;

/// The cluster's answers. An error means that there is none, and nobody is let in on it.
pub trait Access: Send + Sync + 'static {
    /// Whose token this is; none if it is nobody's.
    fn authenticate(&self, token: String) -> BoxFuture<'_, Result<Option<Identity>, String>>;

    /// Whether somebody may do `verb` to `nodes/<subresource>` of this Node.
    fn authorize(
        &self,
        who: Identity,
        verb: &'static str,
        subresource: &'static str,
    ) -> BoxFuture<'_, Result<bool, String>>;
}

/// For a server that answers only to the API server.
pub(crate) struct ApiServerOnly;

impl Access for ApiServerOnly {
    fn authenticate(&self, _: String) -> BoxFuture<'_, Result<Option<Identity>, String>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn authorize(
        &self,
        _: Identity,
        _: &'static str,
        _: &'static str,
    ) -> BoxFuture<'_, Result<bool, String>> {
        Box::pin(std::future::ready(Ok(false)))
    }
}

/// The verb of a method, in the words of the cluster's rules.
pub(crate) fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

/// The subresources that a path stands for; any one of them is enough. The broad one comes last:
/// it also runs commands in every pod (KEP-2862).
pub(crate) fn subresources(path: &str) -> &'static [&'static str] {
    let first = path.trim_start_matches('/').split('/').next();
    match first.unwrap_or_default() {
        "stats" => &["stats"],
        "metrics" => &["metrics"],
        "logs" => &["log"],
        "pods" | "runningpods" => &["pods", "proxy"],
        "healthz" => &["healthz", "proxy"],
        "configz" => &["configz", "proxy"],
        _ => &["proxy"],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stands_for_the_narrowest_right() {
        assert_eq!(subresources("/metrics/resource"), ["metrics"]);
        assert_eq!(subresources("/stats/summary"), ["stats"]);
        assert_eq!(subresources("/pods"), ["pods", "proxy"]);
        assert_eq!(subresources("/exec/ns/pod/c"), ["proxy"]);
        assert_eq!(verb(&Method::POST), "create");
    }
}
