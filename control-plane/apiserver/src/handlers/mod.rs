//! Which handler answers a request: by verb and subresource, the same for every resource.

mod apply;
mod binding;
mod component_statuses;
mod computed;
mod create;
mod decode;
mod delete;
mod eviction;
mod finalize;
mod get;
mod list;
mod patch;
mod pod_subresources;
mod resource_metrics;
mod reviews;
mod scale;
mod token;
mod update;
mod watch;

use std::sync::Arc;

use http::{Extensions, Method, Response, StatusCode};
use windlass_api::resource::{Subresource, Verbs};
use windlass_machinery::status::ApiError;

use crate::Body;
use crate::aggregator::Remote;
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::registry::Part;
use crate::response;

/// Answers an authorized request, one for a path that is not there as upstream does: a Status under the groups of
/// Kubernetes itself, else a line of text.
pub(crate) async fn dispatch(
    context: &Arc<Context>,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let answer = route(context, body, extensions).await;
    let is_unknown = answer.as_ref().is_err_and(ApiError::is_unknown_path);
    if !is_unknown || in_builtin_group(context) {
        return answer;
    }
    let line = "404 page not found\n";
    Ok(response::text(StatusCode::NOT_FOUND, line))
}

fn in_builtin_group(context: &Context) -> bool {
    let mut segments = context.info.path.split('/').skip(1);
    match (segments.next(), segments.next()) {
        (Some("api"), Some("v1")) => true,
        (Some("apis"), Some(group)) => context.server.catalog.load().is_builtin_group(group),
        _ => false,
    }
}

/// Finds who answers. `extensions` are the request's, for connections that are upgraded.
async fn route(
    context: &Arc<Context>,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let info = &context.info;
    if let Some(remote) = context.server.aggregator.remote(&info.group, &info.version) {
        return crate::aggregator::forward(context, &remote, body, extensions).await;
    }
    if let Some(remote) = described(context) {
        return crate::aggregator::forward(context, &remote, body, extensions).await;
    }
    if !info.is_resource {
        return crate::paths::serve(context).await;
    }
    let catalog = context.server.catalog.load();
    let endpoint = catalog.endpoint(&info.group, &info.version, &info.resource);
    let endpoint = endpoint.ok_or_else(ApiError::unknown_path)?;
    check_scope(context, &endpoint)?;
    // Upstream has no such routes, but for custom resources, whose handler knows verbs only.
    let has_head = endpoint.is_custom() || info.subresource == "proxy";
    if context.method == Method::HEAD && !has_head {
        return Err(ApiError::method_not_allowed());
    }
    if info.subresource.is_empty() {
        main_resource(context, &endpoint, body).await
    } else {
        let subresource = endpoint.subresource(&info.subresource).cloned();
        let subresource = subresource.ok_or_else(|| {
            // Upstream's handler of definitions knows the path, but not what is below it.
            if endpoint.is_custom() {
                endpoint.not_found(&info.name)
            } else {
                ApiError::unknown_path()
            }
        })?;
        self::subresource(context, &endpoint, subresource, body, extensions).await
    }
}

/// Whose OpenAPI document is asked for, where another server describes itself.
fn described(context: &Context) -> Option<Arc<Remote>> {
    let path = context.info.path.strip_prefix("/openapi/v3/apis/")?;
    let (group, version) = path.trim_end_matches('/').split_once('/')?;
    context.server.aggregator.remote(group, version)
}

/// A namespace in the path of a cluster-scoped resource is an unknown path; its lack is only allowed for reads.
fn check_scope(context: &Context, endpoint: &Endpoint) -> Result<(), ApiError> {
    let info = &context.info;
    let is_namespace = info.resource == "namespaces" && info.group.is_empty();
    if !endpoint.resource.namespaced && !info.namespace.is_empty() && !is_namespace {
        return Err(ApiError::unknown_path());
    }
    if endpoint.resource.namespaced && info.namespace.is_empty() {
        let cluster_wide = matches!(info.verb, "list" | "watch");
        // Those may have their name from a field selector.
        if !info.name.is_empty() && !cluster_wide {
            return Err(ApiError::unknown_path());
        }
        // Reviews that are namespaced name the namespace in their spec as well.
        if !cluster_wide || endpoint.resource.verbs == Verbs::Create {
            return Err(refused(endpoint, info.verb));
        }
    }
    Ok(())
}

/// The answer to a method that a resource does not have.
fn refused(endpoint: &Endpoint, verb: &str) -> ApiError {
    if endpoint.is_custom() {
        ApiError::method_not_supported(endpoint.group(), endpoint.plural(), verb)
    } else {
        ApiError::method_not_allowed()
    }
}

async fn main_resource(
    context: &Arc<Context>,
    endpoint: &Arc<Endpoint>,
    body: Body,
) -> Result<Response<Body>, ApiError> {
    let verb = context.info.verb;
    if let Some(text) = &endpoint.version().deprecation {
        context.warn(text.as_ref());
    }
    match endpoint.resource.verbs {
        Verbs::All | Verbs::Custom => {}
        Verbs::Ending if verb != "create" => {}
        Verbs::Ending => {
            let why = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::new(405, "MethodNotAllowed", why.to_owned()));
        }
        Verbs::OneByOne if verb != "deletecollection" => {}
        Verbs::Create if verb == "create" => {
            return if endpoint.plural() == "bindings" {
                binding::create(context, endpoint, body).await
            } else {
                reviews::create(context, endpoint, body).await
            };
        }
        Verbs::Read if matches!(verb, "get" | "list") => {
            return computed::get_or_list(context, endpoint).await;
        }
        Verbs::OneByOne | Verbs::Create | Verbs::Read => {
            return Err(refused(endpoint, verb));
        }
    }
    match verb {
        // A collection is neither replaced nor patched.
        "update" | "patch" if context.info.name.is_empty() => Err(refused(endpoint, verb)),
        "get" => get::get(context, endpoint).await,
        "list" => list::list(context, endpoint).await,
        "watch" => watch::watch(context, endpoint).await,
        "create" => create::create(context, endpoint, body).await,
        "update" => update::update(context, endpoint, Part::Main, body).await,
        "patch" => patch::patch(context, endpoint, Part::Main, body).await,
        "delete" => delete::delete(context, endpoint, body).await,
        "deletecollection" => delete::collection(context, endpoint, body).await,
        other => Err(refused(endpoint, other)),
    }
}

async fn subresource(
    context: &Arc<Context>,
    endpoint: &Arc<Endpoint>,
    subresource: Subresource,
    body: Body,
    extensions: Extensions,
) -> Result<Response<Body>, ApiError> {
    let verb = context.info.verb;
    match (&subresource, verb) {
        (Subresource::Status, "get") => get::get(context, endpoint).await,
        (Subresource::Status, "update") => {
            update::update(context, endpoint, Part::Status, body).await
        }
        (Subresource::Status, "patch") => patch::patch(context, endpoint, Part::Status, body).await,
        (Subresource::Scale(paths), "get") => scale::get(context, endpoint, paths).await,
        (Subresource::Scale(paths), "update") => {
            scale::update(context, endpoint, paths, body).await
        }
        (Subresource::Scale(paths), "patch") => scale::patch(context, endpoint, paths, body).await,
        (Subresource::Binding, "create") => binding::create(context, endpoint, body).await,
        (Subresource::Eviction, "create") => eviction::create(context, endpoint, body).await,
        (Subresource::Token, "create") => token::create(context, endpoint, body).await,
        (Subresource::Finalize, "update") => finalize::update(context, endpoint, body).await,
        (Subresource::EphemeralContainers | Subresource::Resize, "get") => {
            get::get(context, endpoint).await
        }
        (
            Subresource::EphemeralContainers | Subresource::Resize | Subresource::Approval,
            "update",
        ) => update::update(context, endpoint, Part::Other(subresource.name()), body).await,
        (
            Subresource::EphemeralContainers | Subresource::Resize | Subresource::Approval,
            "patch",
        ) => patch::patch(context, endpoint, Part::Other(subresource.name()), body).await,
        (Subresource::Approval, "get") => get::get(context, endpoint).await,
        (
            Subresource::Log
            | Subresource::Exec
            | Subresource::Attach
            | Subresource::PortForward
            | Subresource::Proxy,
            _,
        ) => crate::connections::connect(context, endpoint, &subresource, body, extensions).await,
        (_, verb) => Err(refused(endpoint, verb)),
    }
}
