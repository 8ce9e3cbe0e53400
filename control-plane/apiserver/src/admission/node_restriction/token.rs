//! Tokens that a node asks for: on behalf of a pod that runs there, for an audience that the pod has named.

use serde_json::Value;
use windlass_machinery::meta;

use super::super::Attributes;
use crate::authz::{self, Decision};

/// What lets a node ask for tokens of an account for an audience, which is the resource (KEP-4193).
const VERB: &str = "request-serviceaccounts-token-audience";

pub(super) fn check(
    attributes: &Attributes<'_>,
    node: &str,
    request: Option<&Value>,
) -> Result<(), String> {
    let spec = request
        .map(|request| &request["spec"])
        .unwrap_or(&Value::Null);
    let bound_to = |field: &str| spec["boundObjectRef"][field].as_str().unwrap_or_default();
    if (bound_to("apiVersion"), bound_to("kind")) != ("v1", "Pod") || bound_to("name").is_empty() {
        return Err("node requested token not bound to a pod".to_owned());
    }
    if bound_to("uid").is_empty() {
        return Err("node requested token with a pod binding without a uid".to_owned());
    }
    let name = bound_to("name");
    let pod = find(attributes, ("", "pods"), attributes.namespace, name)
        .ok_or_else(|| format!("pod {name:?} not found"))?;
    if meta::uid(&pod) != bound_to("uid") {
        return Err(format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object \
             might have been deleted and then recreated",
            bound_to("uid")
        ));
    }
    if pod["spec"]["nodeName"] != node {
        let why = "node requested token bound to a pod scheduled on a different node";
        return Err(why.to_owned());
    }
    let audiences = spec["audiences"].as_array().map_or(&[][..], Vec::as_slice);
    let audience = match audiences {
        [] => "",
        [one] => one.as_str().unwrap_or_default(),
        _ => return Err("node may only request 0 or 1 audiences".to_owned()),
    };
    if names_audience(attributes, &pod, audience) || may_ask_for(attributes, audience) {
        return Ok(());
    }
    let user = &attributes.context.user.name;
    Err(format!(
        "audience {audience:?} not found in pod spec volume, {user} is not authorized to request tokens for this audience"
    ))
}

fn find(
    attributes: &Attributes<'_>,
    (group, plural): (&str, &str),
    namespace: &str,
    name: &str,
) -> Option<Value> {
    let cacher = attributes.context.server.cacher(group, plural)?;
    cacher.get(namespace, name)?.decode().ok()
}

/// Whether a volume of the pod is for tokens of this audience: one projected, or one of a driver that asks for them.
fn names_audience(attributes: &Attributes<'_>, pod: &Value, audience: &str) -> bool {
    let volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    volumes.into_iter().any(|volume| {
        let sources = volume["projected"]["sources"]
            .as_array()
            .into_iter()
            .flatten();
        let mut tokens = sources.filter_map(|source| source["serviceAccountToken"].as_object());
        let projected = tokens.any(|token| {
            let named = token.get("audience").and_then(Value::as_str);
            named.unwrap_or_default() == audience
        });
        projected
            || driver(attributes, pod, volume)
                .and_then(|driver| find(attributes, ("storage.k8s.io", "csidrivers"), "", &driver))
                .is_some_and(|driver| asks_for(&driver, audience))
    })
}

fn asks_for(driver: &Value, audience: &str) -> bool {
    let requests = driver["spec"]["tokenRequests"]
        .as_array()
        .into_iter()
        .flatten();
    let mut audiences = requests.map(|request| request["audience"].as_str().unwrap_or_default());
    audiences.any(|asked| asked == audience)
}

/// The CSI driver of a volume, directly or through its claim.
fn driver(attributes: &Attributes<'_>, pod: &Value, volume: &Value) -> Option<String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    if let Some(driver) = text(&volume["csi"]["driver"]) {
        return Some(driver);
    }
    let claim = match text(&volume["persistentVolumeClaim"]["claimName"]) {
        Some(claim) => claim,
        None if volume["ephemeral"].is_object() => {
            format!("{}-{}", meta::name(pod), volume["name"].as_str()?)
        }
        None => return None,
    };
    let claim = find(
        attributes,
        ("", "persistentvolumeclaims"),
        attributes.namespace,
        &claim,
    )?;
    let bound = claim["spec"]["volumeName"].as_str()?;
    let bound = find(attributes, ("", "persistentvolumes"), "", bound)?;
    text(&bound["spec"]["csi"]["driver"])
}

fn may_ask_for(attributes: &Attributes<'_>, audience: &str) -> bool {
    let context = attributes.context;
    let question = authz::Attributes {
        user: &context.user,
        verb: VERB,
        group: "",
        version: "",
        resource: audience,
        subresource: "",
        namespace: attributes.namespace,
        name: attributes.name,
        path: "",
    };
    !audience.is_empty() && context.server.authorizer.authorize(&question) == Decision::Allow
}
