//! Reviews: questions to authentication and authorization, asked by creating an object that is not kept.

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};

use super::decode;
use crate::Body;
use crate::authn::UserInfo;
use crate::authz::{Decision, resource_attributes, rules_review};
use crate::catalog::Endpoint;
use crate::context::{Context, now};
use crate::json::strings;
use crate::options::WriteOptions;

pub(super) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let options =
        WriteOptions::parse(&context.query, "CreateOptions", context.user_agent(), false)?;
    let mut review = decode::object(context, endpoint, body, options.field_validation).await?;
    let status = match endpoint.plural() {
        "tokenreviews" => token_review(context, &review)?,
        "selfsubjectreviews" => json!({"userInfo": user_value(&context.user)}),
        "selfsubjectaccessreviews" => access(context, endpoint, &context.user, &review)?,
        "subjectaccessreviews" | "localsubjectaccessreviews" => {
            let user = subject(&review["spec"]);
            if endpoint.resource.namespaced {
                check_namespace(context, endpoint, &review)?;
            }
            access(context, endpoint, &user, &review)?
        }
        "selfsubjectrulesreviews" => {
            let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
            if namespace.is_empty() {
                return Err(ApiError::bad_request("no namespace on request"));
            }
            let mut status = rules_review(&context.server.rbac, &context.user, namespace);
            if context.user.in_group(crate::authn::GROUP_MASTERS) {
                grant_everything(&mut status);
            }
            status
        }
        other => return Err(ApiError::internal(format!("{other} has no review"))),
    };
    review["status"] = status;
    meta::metadata_mut(&mut review);
    Ok(context.respond_plain(StatusCode::CREATED, review))
}

fn token_review(context: &Context, review: &Value) -> Result<Value, ApiError> {
    let token = review["spec"]["token"].as_str().unwrap_or_default();
    if token.is_empty() {
        return Err(ApiError::bad_request(
            "token is required for TokenReview in authentication",
        ));
    }
    let audiences: Vec<String> = review["spec"]["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect();
    Ok(
        match context
            .server
            .authenticator
            .authenticate_token(token, &audiences, now())
        {
            Ok((user, audiences)) => {
                json!({"authenticated": true, "user": user_value(&user), "audiences": audiences})
            }
            Err(_) => json!({"user": {}, "error": "invalid bearer token"}),
        },
    )
}

fn user_value(user: &UserInfo) -> Value {
    let mut value = json!({"username": user.name, "groups": user.groups});
    if !user.uid.is_empty() {
        value["uid"] = user.uid.as_str().into();
    }
    if !user.extra.is_empty() {
        value["extra"] = json!(user.extra);
    }
    value
}

fn subject(spec: &Value) -> UserInfo {
    UserInfo {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        groups: strings(&spec["groups"]),
        extra: spec["extra"]
            .as_object()
            .into_iter()
            .flatten()
            .map(|(key, values)| (key.clone(), strings(values)))
            .collect(),
    }
}

fn check_namespace(context: &Context, endpoint: &Endpoint, review: &Value) -> Result<(), ApiError> {
    let asked = review["spec"]["resourceAttributes"]["namespace"]
        .as_str()
        .unwrap_or_default();
    if asked == context.info.namespace {
        return Ok(());
    }
    let mut errors = Errors::new();
    let path = Path::new("spec")
        .child("resourceAttributes")
        .child("namespace");
    errors.invalid(&path, asked, "must match metadata.namespace");
    Err(ApiError::invalid(
        endpoint.group(),
        endpoint.kind(),
        "",
        &errors,
    ))
}

fn access(
    context: &Context,
    endpoint: &Endpoint,
    user: &UserInfo,
    review: &Value,
) -> Result<Value, ApiError> {
    let spec = &review["spec"];
    let (resource, path) = (
        spec["resourceAttributes"].is_object(),
        spec["nonResourceAttributes"].is_object(),
    );
    let mut errors = Errors::new();
    if resource == path {
        let text = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let field = Path::new("spec").child("resourceAttributes");
        errors.invalid(&field, Value::Null, text);
    }
    if user.name.is_empty() && user.groups.is_empty() {
        let field = Path::new("spec").child("user");
        errors.invalid(
            &field,
            "",
            "at least one of user or group must be specified",
        );
    }
    if !errors.is_empty() {
        return Err(ApiError::invalid(
            endpoint.group(),
            endpoint.kind(),
            "",
            &errors,
        ));
    }
    let decision = context
        .server
        .authorizer
        .authorize(&resource_attributes(user, spec));
    Ok(match decision {
        Decision::Allow => json!({"allowed": true}),
        Decision::Deny(reason) => json!({"allowed": false, "denied": true, "reason": reason}),
        Decision::NoOpinion => json!({"allowed": false}),
    })
}

/// `system:masters` may do everything, by no rule that RBAC knows of.
fn grant_everything(status: &mut Value) {
    let all = json!({"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]});
    let paths = json!({"verbs": ["*"], "nonResourceURLs": ["*"]});
    for (list, rule) in [("resourceRules", all), ("nonResourceRules", paths)] {
        if let Some(rules) = status[list].as_array_mut()
            && !rules.contains(&rule)
        {
            rules.insert(0, rule);
        }
    }
}
