//! `/healthz`, `/livez`, `/readyz`: open to everybody, one line per check with `?verbose`.

use http::{Response, StatusCode};

use crate::context::Context;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::{Body, response};

const ENDPOINTS: [&str; 3] = ["healthz", "livez", "readyz"];

/// Whether the path may be asked for without permission.
pub(crate) fn is_public(info: &RequestInfo) -> bool {
    !info.is_resource && matches!(info.verb, "get" | "head") && endpoint(&info.path).is_some()
}

/// `readyz` of `/readyz` and of `/readyz/store`.
fn endpoint(path: &str) -> Option<&'static str> {
    let first = path.trim_start_matches('/').split('/').next()?;
    ENDPOINTS.into_iter().find(|name| *name == first)
}

struct Check {
    name: &'static str,
    /// Only for readiness: a server that stops is alive, but not ready.
    readiness: bool,
    fault: Option<String>,
}

async fn checks(server: &ApiServer) -> Vec<Check> {
    let store = server.caches.store().current_revision().await;
    let lag = match &store {
        Ok(_) => server
            .caches
            .wait_current()
            .await
            .err()
            .map(|e| e.to_string()),
        Err(_) => None,
    };
    let stopping = server.shutdown.is_cancelled();
    vec![
        Check {
            name: "ping",
            readiness: false,
            fault: None,
        },
        Check {
            name: "log",
            readiness: false,
            fault: None,
        },
        Check {
            name: "etcd",
            readiness: false,
            fault: store.err().map(|e| e.to_string()),
        },
        Check {
            name: "informer-sync",
            readiness: true,
            fault: lag,
        },
        Check {
            name: "shutdown",
            readiness: true,
            fault: stopping.then(|| "process is shutting down".to_owned()),
        },
    ]
}

/// Answers one of the health paths; `None` for other paths.
pub(crate) async fn serve(context: &Context) -> Option<Response<Body>> {
    let path = &context.info.path;
    let name = endpoint(path)?;
    let single = path
        .trim_matches('/')
        .split_once('/')
        .map(|(_, check)| check.to_owned());
    let excluded: Vec<&str> = context.query.all("exclude").collect();
    let mut checks = checks(&context.server).await;
    checks.retain(|check| {
        (!check.readiness || name == "readyz")
            && !excluded.contains(&check.name)
            && single.as_deref().is_none_or(|single| single == check.name)
    });
    if single.is_some() && checks.is_empty() {
        return Some(response::text(
            StatusCode::NOT_FOUND,
            "404 page not found\n",
        ));
    }
    let failed: Vec<&Check> = checks
        .iter()
        .filter(|check| check.fault.is_some())
        .collect();
    for check in &failed {
        tracing::warn!(
            check = check.name,
            fault = check.fault,
            "health check failed"
        );
    }
    if failed.is_empty() && context.query.raw("verbose").is_none() {
        return Some(response::text(StatusCode::OK, "ok"));
    }
    let mut text = String::new();
    for check in &checks {
        let (sign, end) = match &check.fault {
            None => ('+', "ok".to_owned()),
            // Reasons are for the log: these paths are open to everybody.
            Some(_) => ('-', "failed: reason withheld".to_owned()),
        };
        text.push_str(&format!("[{sign}]{} {end}\n", check.name));
    }
    let (code, verdict) = if failed.is_empty() {
        (StatusCode::OK, "passed")
    } else {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    };
    text.push_str(&format!("{name} check {verdict}\n"));
    Some(response::text(code, text))
}
