//! The audit log: who asked for what and what was answered, as the policy says, one JSON event a line.
//!
//! An event is written before the answer goes on, so that what was answered is in the log; a log that cannot be
//! written is told in our own, and requests go on, as upstream's default has it.

mod policy;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::USER_AGENT;
use http::{HeaderMap, Response};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::{Value, json};
use windlass_machinery::time;

pub use self::policy::PolicyError;
use self::policy::{Level, Policy};
use crate::authn::UserInfo;
use crate::request::RequestInfo;
use crate::{Body, response};

/// Where events go, and which.
pub struct AuditLog {
    policy: Policy,
    out: Mutex<Box<dyn std::io::Write + Send>>,
}

#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error("audit policy: {0}")]
    Policy(#[from] PolicyError),
    #[error("audit log {path}: {source}")]
    Open {
        path: String,
        source: std::io::Error,
    },
}

impl AuditLog {
    /// `policy` is the text of an `audit.k8s.io/v1` Policy; `path` is a file, or `-` for standard output.
    ///
    /// # Errors
    /// When the policy is none, or the file cannot be opened.
    pub fn open(policy: &str, path: &str) -> Result<Self, AuditError> {
        let policy = Policy::parse(policy)?;
        let out: Box<dyn std::io::Write + Send> = if path == "-" {
            Box::new(std::io::stdout())
        } else {
            let open = |path: &Path| -> std::io::Result<File> {
                OpenOptions::new().create(true).append(true).open(path)
            };
            Box::new(open(Path::new(path)).map_err(|source| AuditError::Open {
                path: path.to_owned(),
                source,
            })?)
        };
        Ok(Self {
            policy,
            out: Mutex::new(out),
        })
    }

    /// Begins the account of a request; `None` where the policy wants none.
    pub(crate) fn begin(
        &self,
        info: &RequestInfo,
        user: &UserInfo,
        headers: &HeaderMap,
        uri: &str,
        source: Option<&str>,
        id: &str,
    ) -> Option<Account> {
        let verdict = self.policy.judge(info, user);
        if verdict.level == Level::None {
            return None;
        }
        let mut event = json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1",
            "level": verdict.level.as_str(), "auditID": id, "stage": "RequestReceived",
            "requestURI": uri, "verb": info.verb,
            "user": {"username": user.name, "groups": user.groups},
            "sourceIPs": source.into_iter().collect::<Vec<_>>(),
            "userAgent": headers.get(USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default(),
            "requestReceivedTimestamp": now(),
        });
        if !user.uid.is_empty() {
            event["user"]["uid"] = user.uid.as_str().into();
        }
        if !user.extra.is_empty() {
            event["user"]["extra"] = json!(user.extra);
        }
        if info.is_resource {
            event["objectRef"] = object_ref(info);
        }
        let account = Account {
            event,
            level: verdict.level,
            omitted: verdict.omitted,
        };
        self.write(&account, "RequestReceived");
        Some(account)
    }

    /// Ends the account with the answer, whose body is kept for levels that show it.
    pub(crate) async fn complete(
        &self,
        mut account: Account,
        answer: Response<Body>,
        lasts: bool,
    ) -> Response<Body> {
        let code = answer.status().as_u16();
        account.event["responseStatus"] = json!({"metadata": {}, "code": code});
        let shown = account.level == Level::RequestResponse && !lasts;
        let answer = if shown {
            let (parts, body) = answer.into_parts();
            match body.collect().await {
                Ok(collected) => {
                    let bytes = collected.to_bytes();
                    account.show("responseObject", &bytes);
                    Response::from_parts(parts, response::full(bytes))
                }
                Err(error) => {
                    tracing::debug!(%error, "an answer broke off while it was audited");
                    Response::from_parts(parts, response::full(""))
                }
            }
        } else {
            answer
        };
        // Upstream reports the end of a watch as well; here its beginning stands for it.
        let stage = if lasts {
            "ResponseStarted"
        } else {
            "ResponseComplete"
        };
        self.write(&account, stage);
        answer
    }

    fn write(&self, account: &Account, stage: &str) {
        if account.omitted.iter().any(|omitted| omitted == stage) {
            return;
        }
        let mut event = account.event.clone();
        event["stage"] = stage.into();
        event["stageTimestamp"] = now().into();
        let mut line = event.to_string();
        line.push('\n');
        if let Err(error) = self.out.lock().write_all(line.as_bytes()) {
            tracing::error!(%error, "the audit log cannot be written");
        }
    }
}

/// What is known of a request so far.
pub(crate) struct Account {
    event: Value,
    level: Level,
    /// Stages that the policy leaves out.
    omitted: Vec<String>,
}

impl Account {
    /// Whether the request's object belongs into the event.
    pub(crate) fn wants_request(&self) -> bool {
        matches!(self.level, Level::Request | Level::RequestResponse)
    }

    pub(crate) fn request(&mut self, bytes: &[u8]) {
        self.show("requestObject", bytes);
    }

    /// Notes what the authorizer said.
    pub(crate) fn decided(&mut self, allowed: bool, reason: &str) {
        let decision = if allowed { "allow" } else { "forbid" };
        self.event["annotations"] = json!({
            "authorization.k8s.io/decision": decision, "authorization.k8s.io/reason": reason,
        });
    }

    fn show(&mut self, field: &str, bytes: &[u8]) {
        // What is no JSON (protobuf, logs) is left out.
        if let Ok(object) = serde_json::from_slice::<Value>(bytes) {
            self.event[field] = object;
        }
    }
}

fn object_ref(info: &RequestInfo) -> Value {
    let mut reference = serde_json::Map::new();
    for (key, text) in [
        ("resource", &info.resource),
        ("namespace", &info.namespace),
        ("name", &info.name),
        ("apiGroup", &info.group),
        ("apiVersion", &info.version),
        ("subresource", &info.subresource),
    ] {
        if !text.is_empty() {
            reference.insert(key.to_owned(), text.as_str().into());
        }
    }
    Value::Object(reference)
}

fn now() -> String {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    time::format_micros(seconds, now.subsec_micros())
}

/// A body read to its end and as it was.
pub(crate) async fn buffered(
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, windlass_machinery::status::ApiError> {
    crate::body::read(headers, body).await
}
