//! An audit Policy: how much is told of which requests. The first rule that covers a request decides.

use crate::authn::UserInfo;
use crate::json::strings;
use crate::request::RequestInfo;

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("it is no audit.k8s.io/v1 Policy")]
    OtherKind,
    #[error("it has no rules")]
    NoRules,
    #[error("rules[{0}].level: {1:?} is none of None, Metadata, Request and RequestResponse")]
    NoLevel(usize, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "None" => Self::None,
            "Metadata" => Self::Metadata,
            "Request" => Self::Request,
            "RequestResponse" => Self::RequestResponse,
            _ => return None,
        })
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Metadata => "Metadata",
            Self::Request => "Request",
            Self::RequestResponse => "RequestResponse",
        }
    }
}

#[derive(Debug)]
pub(super) struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    level: Level,
    omitted: Vec<String>,
    users: Vec<String>,
    groups: Vec<String>,
    verbs: Vec<String>,
    namespaces: Vec<String>,
    paths: Vec<String>,
    resources: Vec<Resources>,
}

#[derive(Debug)]
struct Resources {
    group: String,
    resources: Vec<String>,
    names: Vec<String>,
}

/// What a policy says of a request.
pub(super) struct Verdict {
    pub(super) level: Level,
    pub(super) omitted: Vec<String>,
}

impl Policy {
    pub(super) fn parse(text: &str) -> Result<Self, PolicyError> {
        let decoded = windlass_machinery::yaml::decode(text.as_bytes());
        let policy = decoded
            .map_err(|e| PolicyError::Unreadable(e.to_string()))?
            .value;
        if policy["kind"] != "Policy" || policy["apiVersion"] != "audit.k8s.io/v1" {
            return Err(PolicyError::OtherKind);
        }
        let rules = policy["rules"].as_array().filter(|rules| !rules.is_empty());
        let rules = rules.ok_or(PolicyError::NoRules)?;
        let omitted = strings(&policy["omitStages"]);
        let rules = rules.iter().enumerate().map(|(index, rule)| {
            let level = rule["level"].as_str().unwrap_or_default();
            let level =
                Level::parse(level).ok_or_else(|| PolicyError::NoLevel(index, level.to_owned()))?;
            Ok(Rule {
                level,
                omitted: [omitted.clone(), strings(&rule["omitStages"])].concat(),
                users: strings(&rule["users"]),
                groups: strings(&rule["userGroups"]),
                verbs: strings(&rule["verbs"]),
                namespaces: strings(&rule["namespaces"]),
                paths: strings(&rule["nonResourceURLs"]),
                resources: rule["resources"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|resources| Resources {
                        group: resources["group"].as_str().unwrap_or_default().to_owned(),
                        resources: strings(&resources["resources"]),
                        names: strings(&resources["resourceNames"]),
                    })
                    .collect(),
            })
        });
        Ok(Self {
            rules: rules.collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn judge(&self, info: &RequestInfo, user: &UserInfo) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.covers(info, user));
        rule.map_or_else(
            || Verdict {
                level: Level::None,
                omitted: Vec::new(),
            },
            |rule| Verdict {
                level: rule.level,
                omitted: rule.omitted.clone(),
            },
        )
    }
}

impl Rule {
    fn covers(&self, info: &RequestInfo, user: &UserInfo) -> bool {
        let open =
            |list: &[String], wanted: &str| list.is_empty() || list.iter().any(|i| i == wanted);
        if !open(&self.users, &user.name)
            || !(self.groups.is_empty() || self.groups.iter().any(|group| user.in_group(group)))
            || !open(&self.verbs, info.verb)
        {
            return false;
        }
        if !info.is_resource {
            // A rule about resources is not about paths.
            let about_resources = !self.namespaces.is_empty() || !self.resources.is_empty();
            return if self.paths.is_empty() {
                !about_resources
            } else {
                self.paths
                    .iter()
                    .any(|pattern| match pattern.strip_suffix('*') {
                        Some(prefix) => info.path.starts_with(prefix),
                        None => *pattern == info.path,
                    })
            };
        }
        if !self.paths.is_empty() && self.resources.is_empty() && self.namespaces.is_empty() {
            return false;
        }
        open(&self.namespaces, &info.namespace)
            && (self.resources.is_empty() || self.resources.iter().any(|r| r.cover(info)))
    }
}

impl Resources {
    fn cover(&self, info: &RequestInfo) -> bool {
        if self.group != info.group {
            return false;
        }
        let named = self.names.is_empty() || self.names.contains(&info.name);
        self.resources.is_empty()
            || (named
                && self.resources.iter().any(|pattern| {
                    let (resource, sub) = pattern.split_once('/').unwrap_or((pattern, ""));
                    (resource == "*" || resource == info.resource)
                        && (sub == info.subresource || sub == "*" || pattern == "*")
                }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: [\"system:kube-proxy\"]
  verbs: [watch]
  resources: [{group: \"\", resources: [endpoints, services]}]
- level: None
  nonResourceURLs: [\"/healthz*\"]
- level: Request
  resources: [{group: \"\", resources: [configmaps, pods/*]}]
  namespaces: [kube-system]
- level: Metadata
";

    #[test]
    fn the_first_rule_that_covers_a_request_decides() {
        let policy = Policy::parse(POLICY).unwrap();
        let level = |user: &str, verb: &'static str, namespace: &str, resource: &str, sub: &str| {
            let info = RequestInfo {
                is_resource: true,
                verb,
                namespace: namespace.to_owned(),
                resource: resource.to_owned(),
                subresource: sub.to_owned(),
                ..RequestInfo::default()
            };
            policy.judge(&info, &UserInfo::new(user, &[])).level
        };
        assert_eq!(
            level("system:kube-proxy", "watch", "", "services", ""),
            Level::None
        );
        assert_eq!(
            level("system:kube-proxy", "get", "", "services", ""),
            Level::Metadata
        );
        assert_eq!(
            level("a", "update", "kube-system", "configmaps", ""),
            Level::Request
        );
        assert_eq!(
            level("a", "create", "kube-system", "pods", "exec"),
            Level::Request
        );
        assert_eq!(
            level("a", "update", "default", "configmaps", ""),
            Level::Metadata
        );
        let path = |path: &str| {
            let info = RequestInfo {
                verb: "get",
                path: path.to_owned(),
                ..RequestInfo::default()
            };
            policy.judge(&info, &UserInfo::anonymous()).level
        };
        assert_eq!(path("/healthz/x"), Level::None);
        assert_eq!(path("/metrics"), Level::Metadata);
        assert!(
            Policy::parse("kind: Policy\napiVersion: audit.k8s.io/v1\nrules: [{level: All}]")
                .is_err()
        );
    }
}
