//! Logs: their options, and what a node's refusal becomes.

use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use windlass_machinery::status::{ApiError, Details};
use windlass_machinery::validation::{Errors, Path};

use crate::Body;
use crate::context::Context;
use crate::request::RequestInfo;

/// More of a node's refusal is not told.
const MOST_OF_REFUSAL: usize = 50_000;

/// The answer, or the API's error for a refusal: a node says why in plain text, which clients do not show.
pub(super) async fn checked(
    answer: Response<Body>,
    info: &RequestInfo,
) -> Result<Response<Body>, ApiError> {
    let status = answer.status();
    if status.is_success() || status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(answer);
    }
    let text = Limited::new(answer.into_body(), MOST_OF_REFUSAL)
        .collect()
        .await;
    let text = text.map(|text| text.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    Err(match status {
        StatusCode::BAD_REQUEST => ApiError::bad_request(text),
        StatusCode::NOT_FOUND => {
            let message = format!(
                "the server could not find the requested resource ( pods/log {})",
                info.name
            );
            let mut error = ApiError::new(404, "NotFound", message);
            error.details = Some(Box::new(Details {
                name: info.name.clone(),
                kind: "pods/log".to_owned(),
                ..Details::default()
            }));
            error
        }
        _ => ApiError::internal(text),
    })
}

/// The node agent reads the options of logs itself, but a mistake should be the API's 422.
pub(super) fn check_options(context: &Context) -> Result<(), ApiError> {
    let mut errors = Errors::new();
    for (field, least) in [("tailLines", 0), ("limitBytes", 1), ("sinceSeconds", 1)] {
        if let Some(value) = context.query.integer(field)?
            && value < least
        {
            let detail = if least == 0 {
                "must be greater than or equal to 0"
            } else {
                "must be greater than 0"
            };
            errors.invalid(&Path::new(field), value, detail);
        }
    }
    if context.query.get("sinceSeconds").is_some() && context.query.get("sinceTime").is_some() {
        errors.forbidden(
            &Path::root(),
            "at most one of `sinceTime` or `sinceSeconds` may be specified",
        );
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(
        "",
        "PodLogOptions",
        &context.info.name,
        &errors,
    ))
}

/// The container stands in the path.
pub(super) fn query(raw: &str) -> String {
    let kept: Vec<&str> = raw
        .split('&')
        .filter(|pair| {
            !pair.is_empty()
                && !pair.starts_with("container=")
                && !pair.starts_with("insecureSkipTLS")
        })
        .collect();
    kept.join("&")
}
