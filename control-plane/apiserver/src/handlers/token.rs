//! `POST serviceaccounts/{name}/token`: a short-lived token, bound to what it is for (KEP-1205).

use http::{Response, StatusCode};
use serde_json::{Value, json};
use windlass_api::validate::numbers::token_seconds;
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_machinery::{meta, time};

use super::decode;
use crate::Body;
use crate::admission::{Attributes, Operation};
use crate::authn::service_account::{ObjectRef, TokenParameters};
use crate::catalog::Endpoint;
use crate::context::{Context, now, now_text};
use crate::json::strings;
use crate::options::WriteOptions;
use crate::registry;

const GROUP: &str = "authentication.k8s.io";
const DEFAULT_SECONDS: i64 = 3600;

pub(super) async fn create(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    let options =
        WriteOptions::parse(&context.query, "CreateOptions", context.user_agent(), false)?;
    let api_version = "authentication.k8s.io/v1";
    let mut request = decode::builtin(
        context,
        api_version,
        "TokenRequest",
        body,
        options.field_validation,
    )
    .await?;
    check_place(context, &request)?;
    let account = registry::read(context, endpoint, &info.namespace, &info.name)
        .await?
        .value;
    let (asked, uid) = (meta::uid(&request), meta::uid(&account));
    if !asked.is_empty() && asked != uid {
        let why = format!(
            "the UID in the token request ({asked}) does not match the UID of the service account ({uid})"
        );
        return Err(ApiError::conflict(GROUP, "TokenRequest", &info.name, &why));
    }
    let mut seconds = request["spec"]["expirationSeconds"]
        .as_i64()
        .unwrap_or(DEFAULT_SECONDS);
    check_duration(seconds)?;
    let tokens = context.server.authenticator.service_account_tokens();
    if let Some(most) = tokens.lifetimes.most_seconds.filter(|most| seconds > *most) {
        context.warn(format!(
            "requested expiration of {seconds} seconds shortened to {most} seconds"
        ));
        seconds = most;
    }

    let mut parameters = TokenParameters {
        namespace: info.namespace.clone(),
        service_account: ObjectRef {
            name: info.name.clone(),
            uid: meta::uid(&account).to_owned(),
        },
        pod: None,
        node: None,
        secret: None,
        audiences: strings(&request["spec"]["audiences"]),
        expiration_seconds: seconds,
    };
    bind(context, &request["spec"]["boundObjectRef"], &mut parameters).await?;
    let attributes = Attributes {
        context,
        operation: Operation::Create,
        endpoint,
        subresource: "token",
        namespace: &info.namespace,
        name: &info.name,
        old: None,
        deletion: None,
        dry_run: options.dry_run,
    };
    let admission = &context.server.admission;
    admission.validate(&attributes, Some(&request)).await?;
    if parameters.audiences.is_empty() {
        parameters.audiences = tokens.audiences().to_vec();
    }
    request["spec"]["audiences"] = json!(parameters.audiences);
    request["spec"]["expirationSeconds"] = seconds.into();
    // Tokens are verified against the cache: it must know what this one is bound to.
    context.server.caches.wait_current().await?;
    if !options.dry_run {
        let id = uuid::Uuid::new_v4().to_string();
        let (token, expires) = tokens
            .issue(parameters, id, now())
            .map_err(ApiError::internal)?;
        request["status"] = json!({"token": token, "expirationTimestamp": time::format(expires)});
    }
    meta::set_name(&mut request, &info.name);
    meta::set_namespace(&mut request, &info.namespace);
    meta::set_creation_timestamp(&mut request, &now_text());
    Ok(context.respond_plain(StatusCode::CREATED, request))
}

/// A request that names an account names that of its path.
fn check_place(context: &Context, request: &Value) -> Result<(), ApiError> {
    let info = &context.info;
    for (field, given, wanted) in [
        ("name", meta::name(request), &info.name),
        ("namespace", meta::namespace(request), &info.namespace),
    ] {
        if !given.is_empty() && given != wanted {
            let mut errors = Errors::new();
            let detail = format!("must match the service account {field} if specified");
            errors.invalid(&Path::new("metadata").child(field), given, detail);
            return Err(ApiError::invalid(
                GROUP,
                "TokenRequest",
                &info.name,
                &errors,
            ));
        }
    }
    Ok(())
}

fn check_duration(seconds: i64) -> Result<(), ApiError> {
    let mut errors = Errors::new();
    let path = Path::new("spec").child("expirationSeconds");
    token_seconds(seconds, &path, &mut errors);
    if errors.is_empty() {
        return Ok(());
    }
    Err(ApiError::invalid(GROUP, "TokenRequest", "", &errors))
}

/// Looks up what the token shall be bound to.
async fn bind(
    context: &Context,
    reference: &Value,
    parameters: &mut TokenParameters,
) -> Result<(), ApiError> {
    if !reference.is_object() {
        return Ok(());
    }
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let (group, version) = text("apiVersion")
        .rsplit_once('/')
        .unwrap_or(("", text("apiVersion")));
    let (plural, namespace) = match (group, text("kind")) {
        ("", "Pod") => ("pods", parameters.namespace.as_str()),
        ("", "Secret") => ("secrets", parameters.namespace.as_str()),
        ("", "Node") => ("nodes", ""),
        (group, kind) => {
            return Err(ApiError::bad_request(format!(
                "cannot bind token to object of type {group}/{version}, Kind={kind}"
            )));
        }
    };
    let endpoint = context.server.catalog.load().preferred("", plural);
    let endpoint =
        endpoint.ok_or_else(|| ApiError::internal(format!("{plural} are not served")))?;
    let object = registry::read(context, &endpoint, namespace, text("name"))
        .await?
        .value;
    let uid = meta::uid(&object);
    if !text("uid").is_empty() && text("uid") != uid {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object \
             might have been deleted and then recreated",
            text("uid")
        );
        return Err(ApiError::conflict("", text("kind"), text("name"), &why));
    }
    let bound = ObjectRef {
        name: text("name").to_owned(),
        uid: uid.to_owned(),
    };
    match plural {
        "pods" => {
            let account = object["spec"]["serviceAccountName"]
                .as_str()
                .unwrap_or("default");
            if account != parameters.service_account.name {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                    parameters.service_account.name
                )));
            }
            if let Some(node) = object["spec"]["nodeName"]
                .as_str()
                .filter(|n| !n.is_empty())
            {
                let uid = context
                    .server
                    .cacher("", "nodes")
                    .and_then(|nodes| nodes.get("", node)?.decode().ok())
                    .map(|node| meta::uid(&node).to_owned());
                parameters.node = Some(ObjectRef {
                    name: node.to_owned(),
                    uid: uid.unwrap_or_default(),
                });
            }
            parameters.pod = Some(bound);
        }
        "secrets" => parameters.secret = Some(bound),
        _ => parameters.node = Some(bound),
    }
    Ok(())
}
