//! `admission.k8s.io/v1` AdmissionReview: the question and the answer.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use windlass_machinery::status::ApiError;

use crate::admission::{Attributes, question};
use crate::catalog::Endpoint;

/// What a webhook said.
pub(super) struct Answer {
    allowed: bool,
    status: Value,
    /// A JSON patch.
    pub(super) patch: Option<Value>,
    pub(super) warnings: Vec<String>,
}

impl Answer {
    /// The error of a webhook that does not allow the request.
    pub(super) fn refusal(&self, webhook: &str) -> Option<ApiError> {
        if self.allowed {
            return None;
        }
        let text = |key: &str| self.status[key].as_str().filter(|text| !text.is_empty());
        let denied = format!("admission webhook {webhook:?} denied the request");
        let message = match (text("message"), text("reason")) {
            (Some(message), _) => format!("{denied}: {message}"),
            (None, Some(reason)) => format!("{denied}: {reason}"),
            (None, None) => format!("{denied} without explanation"),
        };
        let code = self.status["code"]
            .as_u64()
            .and_then(|code| u16::try_from(code).ok());
        let code = code.filter(|code| (400..600).contains(code)).unwrap_or(400);
        let known = |reason: &&&str| Some(**reason) == text("reason");
        let reason = REASONS.iter().find(known).copied().unwrap_or_default();
        Some(ApiError::new(code, reason, message))
    }
}

/// The reasons that clients know; a webhook that gives none leaves it empty, as upstream (kubectl then says
/// `Error from server: …`).
const REASONS: [&str; 14] = [
    "AlreadyExists",
    "BadRequest",
    "Conflict",
    "Expired",
    "Forbidden",
    "Gone",
    "InternalError",
    "Invalid",
    "MethodNotAllowed",
    "NotFound",
    "RequestEntityTooLarge",
    "ServiceUnavailable",
    "TooManyRequests",
    "Unauthorized",
];

/// The question, with its uid.
///
/// # Errors
/// When a custom resource's conversion fails.
pub(super) fn request(
    attributes: &Attributes<'_>,
    endpoint: &Endpoint,
    object: Option<&Value>,
) -> Result<(String, Value), ApiError> {
    let request = question::request(attributes, endpoint, object)?;
    let uid = request["uid"].as_str().unwrap_or_default().to_owned();
    let review = json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": request,
    });
    Ok((uid, review))
}

/// Reads the answer to the question `uid`.
///
/// # Errors
/// When it is not one.
pub(super) fn read(bytes: &[u8], uid: &str) -> Result<Answer, String> {
    let review: Value =
        serde_json::from_slice(bytes).map_err(|e| format!("the response is no JSON: {e}"))?;
    if review["kind"] != "AdmissionReview" || review["apiVersion"] != "admission.k8s.io/v1" {
        return Err(
            "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview".to_owned(),
        );
    }
    let response = &review["response"];
    if response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {}",
            response["uid"]
        ));
    }
    let patch = response["patch"].as_str().filter(|patch| !patch.is_empty());
    if patch.is_some() && response["patchType"] != "JSONPatch" {
        return Err(format!(
            "invalid response.patchType {}",
            response["patchType"]
        ));
    }
    let patch = patch
        .map(|patch| {
            let bytes = STANDARD
                .decode(patch)
                .map_err(|e| format!("response.patch: {e}"))?;
            serde_json::from_slice(&bytes).map_err(|e| format!("response.patch: {e}"))
        })
        .transpose()?;
    let warnings = response["warnings"].as_array().into_iter().flatten();
    Ok(Answer {
        allowed: response["allowed"] == true,
        status: response["status"].clone(),
        patch,
        warnings: warnings
            .filter_map(|w| w.as_str().map(str::to_owned))
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(response: Value) -> Result<Answer, String> {
        let review = json!({
            "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1", "response": response,
        });
        read(review.to_string().as_bytes(), "u")
    }

    #[test]
    fn a_refusal_carries_the_webhooks_words_and_code() {
        let error = |response| answer(response).unwrap().refusal("w.example").unwrap();
        let plain = error(json!({"uid": "u", "allowed": false}));
        assert_eq!((plain.code, plain.reason), (400, ""));
        assert_eq!(
            plain.message,
            "admission webhook \"w.example\" denied the request without explanation"
        );
        let worded = error(
            json!({"uid": "u", "status": {"message": "no", "code": 422, "reason": "Invalid"}}),
        );
        assert_eq!((worded.code, worded.reason), (422, "Invalid"));
        assert!(worded.message.ends_with("denied the request: no"));
    }

    #[test]
    fn an_answer_to_another_question_is_a_failure() {
        assert!(answer(json!({"uid": "other", "allowed": true})).is_err());
        assert!(answer(json!({"uid": "u", "allowed": true, "patch": "W10="})).is_err());
        let patch =
            answer(json!({"uid": "u", "allowed": true, "patch": "W10=", "patchType": "JSONPatch"}));
        assert_eq!(patch.unwrap().patch, Some(json!([])));
    }
}
