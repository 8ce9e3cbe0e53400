//! Clients inside this process: no socket, no TLS, the same pipeline.

use std::sync::Arc;

use http::header::{HeaderValue, USER_AGENT};
use http::{Method, Request};
use http_body_util::BodyExt;
use serde_json::Value;
use tower::{Service, ServiceExt};
use windlass_machinery::status::ApiError;

use crate::authn::UserInfo;
use crate::server::ApiServer;
use crate::service::LocalIdentity;
use crate::{Body, encode, response};

impl ApiServer {
    /// A client that acts as `user`, authorized like any other.
    pub fn local_client(self: &Arc<Self>, user: UserInfo) -> kube::Client {
        // What field managers are named after: `kube-scheduler` of `system:kube-scheduler`.
        let agent = user.name.rsplit(':').next().unwrap_or_default();
        let agent = HeaderValue::from_str(agent).unwrap_or(HeaderValue::from_static("unknown"));
        let identity = LocalIdentity(Arc::new(user));
        let service = self.service();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let mut request =
                request.map(|body| -> Body { body.map_err(crate::BodyError::new).boxed_unsync() });
            request.extensions_mut().insert(identity.clone());
            request
                .headers_mut()
                .entry(USER_AGENT)
                .or_insert_with(|| agent.clone());
            service.clone().call(request)
        });
        kube::Client::new(service, "default")
    }

    /// Replaces an object as it was seen. One that was changed or deleted meanwhile stays as it is: whoever follows it
    /// sees that as well.
    ///
    /// # Errors
    /// What the API answers otherwise.
    pub(crate) async fn replace_seen(
        self: &Arc<Self>,
        path: &str,
        object: &Value,
    ) -> Result<(), ApiError> {
        match self.call_self(Method::PUT, path, Some(object)).await {
            Err(error) if !matches!(error.code, 404 | 409) => Err(error),
            _ => Ok(()),
        }
    }

    /// Creates an object; `None` when it is there, since another server was faster.
    ///
    /// # Errors
    /// What the API answers otherwise.
    pub(crate) async fn create_missing(
        self: &Arc<Self>,
        path: &str,
        object: &Value,
    ) -> Result<Option<Value>, ApiError> {
        match self.call_self(Method::POST, path, Some(object)).await {
            Ok(made) => Ok(Some(made)),
            Err(error) if error.code == 409 => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One request of the server to itself; answers the object.
    ///
    /// # Errors
    /// What the API answers.
    pub(crate) async fn call_self(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let user = UserInfo::new("system:apiserver", &[crate::authn::GROUP_MASTERS]);
        let body = response::full(body.map(encode::object).unwrap_or_default());
        let mut request = Request::new(body);
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().map_err(ApiError::internal)?;
        let agent = HeaderValue::from_static("kube-apiserver");
        request.headers_mut().insert(USER_AGENT, agent);
        request
            .extensions_mut()
            .insert(LocalIdentity(Arc::new(user)));
        let answered = self.service().oneshot(request).await;
        let answer = answered.unwrap_or_else(|never| match never {});
        let failed = !answer.status().is_success();
        let bytes = answer
            .into_body()
            .collect()
            .await
            .map_err(ApiError::internal)?
            .to_bytes();
        let value: Value = serde_json::from_slice(&bytes).map_err(ApiError::internal)?;
        if !failed {
            return Ok(value);
        }
        let code = value["code"]
            .as_u64()
            .and_then(|code| u16::try_from(code).ok())
            .unwrap_or(500);
        let reason = match code {
            404 => "NotFound",
            409 => "Conflict",
            422 => "Invalid",
            _ => "InternalError",
        };
        Err(ApiError::new(
            code,
            reason,
            value["message"].as_str().unwrap_or_default(),
        ))
    }
}
