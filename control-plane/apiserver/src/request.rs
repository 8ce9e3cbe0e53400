//! What a request is about, read from its method, path and query, as upstream's `RequestInfo`.
//!
//! The path alone decides; whether such a resource exists is the catalog's business. Paths outside `/api`
//! and `/apis`, and those of discovery, are not about a resource.

use http::Method;

use crate::authn::UserInfo;
use crate::authz::Attributes;
use crate::query::{Query, percent_decode};

/// A parsed request line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// Whether the request is about a resource; otherwise only `verb` and `path` mean something.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, … for resources; the lower-case method for other paths.
    pub verb: &'static str,
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// What follows the subresource: the path of a proxied request, without its leading slash.
    pub rest: String,
    /// The decoded path.
    pub path: String,
}

/// Subresources of a Namespace itself; anything else below `/namespaces/{name}/` is a resource in it.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// `raw_path` is the undecoded path of the URI.
    pub(crate) fn parse(method: &Method, raw_path: &str, query: &Query) -> Self {
        let path = percent_decode(raw_path, false);
        let mut info = Self {
            verb: method_verb(method),
            path,
            ..Self::default()
        };
        let path = info.path.clone();
        let mut segments = path.split('/').filter(|s| !s.is_empty());
        match segments.next() {
            Some("api") => {}
            Some("apis") => match segments.next() {
                Some(group) => info.group = group.to_owned(),
                None => return info,
            },
            _ => return info,
        }
        let Some(version) = segments.next() else {
            return info;
        };
        info.version = version.to_owned();
        let mut parts: Vec<&str> = segments.collect();
        if parts.is_empty() {
            return info;
        }
        info.is_resource = true;
        info.verb = resource_verb(method);
        // The deprecated `/watch/` prefix, which some clients still use.
        let mut watch = parts[0] == "watch" && parts.len() > 1;
        if watch {
            parts.remove(0);
        }
        if parts[0] == "namespaces" && parts.len() > 1 {
            info.namespace = parts[1].to_owned();
            if parts.len() > 2 && !NAMESPACE_SUBRESOURCES.contains(&parts[2]) {
                parts.drain(..2);
            }
        }
        let mut parts = parts.into_iter();
        info.resource = parts.next().unwrap_or_default().to_owned();
        info.name = parts.next().unwrap_or_default().to_owned();
        info.subresource = parts.next().unwrap_or_default().to_owned();
        info.rest = parts.collect::<Vec<_>>().join("/");
        // A proxied path keeps its trailing slash: it may mean another page.
        if !info.rest.is_empty() && path.ends_with('/') {
            info.rest.push('/');
        }

        if info.verb == "get" && info.name.is_empty() {
            watch = watch || query.flag("watch");
            info.verb = if watch { "watch" } else { "list" };
            // So that a role limited to a name allows watching that one object.
            if let Some(name) = named_by_field_selector(query) {
                info.name = name;
            }
        } else if info.verb == "get" && watch {
            info.verb = "watch";
        } else if info.verb == "delete" && info.name.is_empty() {
            info.verb = "deletecollection";
        }
        info
    }

    /// What the authorizer is asked about this place, for a verb that may be another than the request's own.
    pub(crate) fn attributes<'a>(&'a self, user: &'a UserInfo, verb: &'a str) -> Attributes<'a> {
        Attributes {
            user,
            verb,
            group: &self.group,
            version: &self.version,
            resource: &self.resource,
            subresource: &self.subresource,
            namespace: &self.namespace,
            name: &self.name,
            path: if self.is_resource { "" } else { &self.path },
        }
    }

    /// Whether the verb is one that changes nothing.
    pub(crate) fn read_only(&self) -> bool {
        matches!(self.verb, "get" | "list" | "watch" | "head" | "options")
    }
}

fn named_by_field_selector(query: &Query) -> Option<String> {
    let selector = query.get("fieldSelector")?;
    let name = selector
        .split(',')
        .find_map(|part| part.trim().strip_prefix("metadata.name="))?;
    let name = name.strip_prefix('=').unwrap_or(name);
    (!name.is_empty()).then(|| name.to_owned())
}

fn resource_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "",
    }
}

fn method_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, path: &str, query: &str) -> RequestInfo {
        RequestInfo::parse(&method, path, &Query::parse(query))
    }

    #[test]
    fn paths_name_what_upstream_reads_from_them() {
        // (method, path, query) -> verb, group, version, namespace, resource, name, subresource
        let table = [
            (Method::GET, "/api/v1/pods", "", "list//v1//pods//"),
            (Method::GET, "/api/v1/pods", "watch=1", "watch//v1//pods//"),
            (
                Method::GET,
                "/api/v1/namespaces",
                "",
                "list//v1//namespaces//",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a",
                "",
                "get//v1/a/namespaces/a/",
            ),
            (
                Method::PUT,
                "/api/v1/namespaces/a/finalize",
                "",
                "update//v1/a/namespaces/a/finalize",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods",
                "",
                "list//v1/a/pods//",
            ),
            (
                Method::GET,
                "/api/v1/namespaces/a/pods/p/log",
                "",
                "get//v1/a/pods/p/log",
            ),
            (
                Method::DELETE,
                "/apis/apps/v1/namespaces/a/deployments",
                "",
                "deletecollection/apps/v1/a/deployments//",
            ),
            (
                Method::PATCH,
                "/apis/apps/v1/namespaces/a/deployments/d/scale",
                "",
                "patch/apps/v1/a/deployments/d/scale",
            ),
            (
                Method::GET,
                "/api/v1/watch/namespaces/a/pods",
                "",
                "watch//v1/a/pods//",
            ),
            (
                Method::GET,
                "/api/v1/pods",
                "fieldSelector=metadata.name%3Dx",
                "list//v1//pods/x/",
            ),
            (Method::GET, "/apis/apps/v1", "", "get/apps/v1////"),
            (Method::GET, "/healthz", "", "get//////"),
        ];
        for (method, path, query, expected) in table {
            let i = parse(method, path, query);
            let actual = [
                i.verb,
                &i.group,
                &i.version,
                &i.namespace,
                &i.resource,
                &i.name,
                &i.subresource,
            ]
            .join("/");
            assert_eq!(actual, expected, "{path}?{query}");
        }
    }

    #[test]
    fn a_proxied_path_keeps_its_tail() {
        let info = parse(
            Method::GET,
            "/api/v1/namespaces/a/services/s:http/proxy/x%20y/z/",
            "",
        );
        assert_eq!(
            (info.name.as_str(), info.rest.as_str()),
            ("s:http", "x y/z/")
        );
    }
}
