//! What a handler knows about the request that it answers.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, Method, Response, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use windlass_api::resource::Conversion;
use windlass_machinery::status::ApiError;
use windlass_machinery::{defaults, fields};

use crate::authn::UserInfo;
use crate::authz::{Attributes, Decision};
use crate::catalog::Endpoint;
use crate::negotiation::{Accepted, Encoding, Transform};
use crate::query::Query;
use crate::request::RequestInfo;
use crate::server::ApiServer;
use crate::storage::Stored;
use crate::{Body, encode, response, table};

pub(crate) struct Context {
    pub server: Arc<ApiServer>,
    pub info: RequestInfo,
    pub query: Query,
    pub raw_query: String,
    pub method: Method,
    pub headers: HeaderMap,
    pub user: UserInfo,
    pub accepted: Accepted,
    warnings: Mutex<Vec<String>>,
}

impl Context {
    pub(crate) fn new(
        server: Arc<ApiServer>,
        info: RequestInfo,
        query: Query,
        parts: &http::request::Parts,
        user: UserInfo,
        accepted: Accepted,
    ) -> Self {
        Self {
            server,
            info,
            query,
            raw_query: parts.uri.query().unwrap_or_default().to_owned(),
            method: parts.method.clone(),
            headers: parts.headers.clone(),
            user,
            accepted,
            warnings: Mutex::default(),
        }
    }

    /// Adds a text for a `Warning` header, once.
    pub(crate) fn warn(&self, text: impl Into<String>) {
        let text = text.into();
        let mut warnings = self.warnings.lock();
        if !warnings.contains(&text) {
            warnings.push(text);
        }
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock())
    }

    pub(crate) fn user_agent(&self) -> &str {
        self.headers
            .get(http::header::USER_AGENT)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default()
    }

    /// Whether the requester may do something else that this request implies.
    pub(crate) fn may(&self, attributes: &Attributes<'_>) -> bool {
        self.server.authorizer.authorize(attributes) == Decision::Allow
    }

    /// What comes by another verb and makes something takes the right to create it: 403 without.
    pub(crate) fn may_create(&self) -> Result<(), ApiError> {
        let attributes = self.info.attributes(&self.user, "create");
        match self.may(&attributes) {
            true => Ok(()),
            false => Err(attributes.forbidden("")),
        }
    }

    /// Whether stored bytes are what the client wants to see.
    pub(crate) fn serves_stored(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_stored_version()
            && self.accepted.transform == Transform::None
            && self.accepted.encoding == Encoding::Json
    }

    /// Answers with one object in the endpoint's version, as the client wants to see it.
    pub(crate) fn respond(
        &self,
        endpoint: &Endpoint,
        code: StatusCode,
        stored: &Stored,
    ) -> Result<Response<Body>, ApiError> {
        if self.serves_stored(endpoint) && stored.revision.0 != 0 {
            return Ok(response::json_line(
                code,
                encode::spliced(&stored.bytes, stored.revision),
            ));
        }
        let mut value = stored.versioned();
        let shown = match self.accepted.transform {
            Transform::Table { beta } => {
                let include = table::Include::parse(&self.query)?;
                table::of_one(endpoint, value, include, beta, now())?
            }
            Transform::Metadata { list: true, .. } => {
                return Err(ApiError::not_acceptable(
                    "you requested PartialObjectMetadataList, but the requested object is not a list",
                ));
            }
            Transform::Metadata { beta, .. } => table::metadata_of(&value, beta),
            Transform::None | Transform::Discovery { .. } => {
                to_served(endpoint, &mut value)?;
                value
            }
        };
        Ok(response::object(code, self.accepted.encoding, &shown))
    }

    /// Answers with an object that is no resource of the endpoint: a Scale, a Status, a review.
    pub(crate) fn respond_plain(&self, code: StatusCode, mut value: Value) -> Response<Body> {
        let text = |field: &str| value[field].as_str().unwrap_or_default();
        if let Some((schema, id)) = crate::types::builtin(text("apiVersion"), text("kind")) {
            defaults::zeros(&schema, id, &mut value);
        }
        response::object(code, self.accepted.encoding, &value)
    }
}

/// Converts an object from its storage version to the endpoint's.
///
/// # Errors
/// When a custom resource's conversion fails.
pub(crate) fn to_served(endpoint: &Endpoint, value: &mut Value) -> Result<(), ApiError> {
    match &endpoint.version().convert {
        None => {}
        Some(Conversion::Fixed { from_storage, .. }) => {
            from_storage(value);
            value["apiVersion"] = endpoint.api_version().into();
            value["kind"] = endpoint.kind().into();
            // What one version always writes, the other may leave out.
            let version = endpoint.version();
            fields::check(&version.schema, version.type_id, value);
            defaults::zeros(&version.schema, version.type_id, value);
        }
        Some(Conversion::Custom(custom)) => custom.serve(std::slice::from_mut(value))?,
    }
    Ok(())
}

/// Converts an object from the endpoint's version to its storage version.
///
/// # Errors
/// When a custom resource's conversion fails.
pub(crate) fn to_stored(endpoint: &Endpoint, value: &mut Value) -> Result<(), ApiError> {
    match &endpoint.version().convert {
        None => {}
        Some(Conversion::Fixed { to_storage, .. }) => {
            to_storage(value);
            value["apiVersion"] = endpoint.stored_api_version().into();
            value["kind"] = endpoint.stored.kind.as_ref().into();
        }
        Some(Conversion::Custom(custom)) => custom.store(std::slice::from_mut(value))?,
    }
    Ok(())
}

/// Brings an object that was stored in a former storage version into the present one.
///
/// # Errors
/// When a custom resource's conversion fails.
pub(crate) fn to_present(endpoint: &Endpoint, value: &mut Value) -> Result<(), ApiError> {
    let storage = &endpoint.stored.versions[endpoint.stored.storage];
    match &storage.convert {
        Some(Conversion::Custom(custom)) => custom.serve(std::slice::from_mut(value)),
        _ => Ok(()),
    }
}

/// Seconds of the Unix epoch.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| {
            i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
        })
}

/// The time as Leases have it.
pub(crate) fn now_micros() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    let micros = since.map_or(0, |elapsed| elapsed.subsec_micros());
    windlass_machinery::time::format_micros(now(), micros)
}

/// The time as `metadata.creationTimestamp` has it.
pub(crate) fn now_text() -> String {
    windlass_machinery::time::format(now())
}
