//! The variable `authorizer` of CEL expressions: whether the requester, or a service account, may do something else.
//!
//! `authorizer.group('apps').resource('deployments').namespace('x').check('create').allowed()`, as upstream's library
//! `kubernetes.authz`. Each step answers a more exact question, and `check` asks the authorizers of this server.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use kube_cel::cel::extractors::This;
use kube_cel::cel::objects::{Key, Map, Opaque};
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

use crate::authn::UserInfo;
use crate::authz::{Attributes, Authorizer, Decision};

/// What is asked so far.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Question {
    path: String,
    group: String,
    resource: String,
    subresource: String,
    namespace: String,
    name: String,
}

#[derive(Clone)]
struct Asker {
    authorizer: Arc<dyn Authorizer>,
    user: UserInfo,
    question: Question,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.user.name, self.question)
    }
}

impl PartialEq for Asker {
    fn eq(&self, other: &Self) -> bool {
        self.user.name == other.user.name && self.question == other.question
    }
}

impl Eq for Asker {}

impl Opaque for Asker {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Authorizer"
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    allowed: bool,
    reason: String,
}

impl Opaque for Answer {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.authorization.Decision"
    }
}

/// What the request itself is about.
pub(super) struct Target<'t> {
    pub group: &'t str,
    pub resource: &'t str,
    pub subresource: &'t str,
    pub namespace: &'t str,
    pub name: &'t str,
}

/// Defines the variable and its functions.
pub(super) fn define(
    context: &mut Context<'static>,
    authorizer: Arc<dyn Authorizer>,
    user: &UserInfo,
    target: &Target<'_>,
) {
    let asker = |question| {
        let (authorizer, user) = (authorizer.clone(), user.clone());
        Cel::Opaque(Arc::new(Asker {
            authorizer,
            user,
            question,
        }))
    };
    let of_request = Question {
        group: target.group.to_owned(),
        resource: target.resource.to_owned(),
        subresource: target.subresource.to_owned(),
        namespace: target.namespace.to_owned(),
        name: target.name.to_owned(),
        path: String::new(),
    };
    // `authorizer.requestResource` is a field, which only maps have.
    let entry = |name: &str, value| (Key::String(Arc::new(name.to_owned())), value);
    let map = HashMap::from([
        entry(ITSELF, asker(Question::default())),
        entry("requestResource", asker(of_request)),
    ]);
    context.add_variable_from_value("authorizer", Cel::Map(Map { map: Arc::new(map) }));
    context.add_function("path", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.path = text.to_string())
    });
    context.add_function("group", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.group = text.to_string())
    });
    context.add_function("resource", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.resource = text.to_string())
    });
    context.add_function("subresource", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.subresource = text.to_string())
    });
    context.add_function("namespace", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.namespace = text.to_string())
    });
    context.add_function("name", |This(this): This<Cel>, text: Arc<String>| {
        refine(&this, |question| question.name = text.to_string())
    });
    context.add_function("serviceAccount", service_account);
    context.add_function("check", check);
    context.add_function("allowed", |This(this): This<Cel>| {
        answer(&this, |answer| Cel::Bool(answer.allowed))
    });
    context.add_function("reason", |This(this): This<Cel>| {
        answer(&this, |answer| Cel::String(Arc::new(answer.reason.clone())))
    });
    // The authorizers of this server do not fail.
    context.add_function("errored", |This(this): This<Cel>| {
        answer(&this, |_| Cel::Bool(false))
    });
    context.add_function("error", |This(this): This<Cel>| {
        answer(&this, |_| Cel::String(Arc::default()))
    });
}

/// The key of the variable's own value; no field can be called so.
const ITSELF: &str = "";

fn asker(value: &Cel) -> Result<Asker, ExecutionError> {
    let found = match value {
        Cel::Map(map) => map.map.get(&Key::String(Arc::new(ITSELF.to_owned()))),
        other => Some(other),
    };
    match found {
        Some(Cel::Opaque(opaque)) => opaque.downcast_ref::<Asker>().cloned(),
        _ => None,
    }
    .ok_or_else(|| ExecutionError::function_error("authorizer", "is not an authorizer"))
}

fn refine(value: &Cel, change: impl FnOnce(&mut Question)) -> ResolveResult {
    let mut asker = asker(value)?;
    change(&mut asker.question);
    Ok(Cel::Opaque(Arc::new(asker)))
}

fn service_account(
    This(this): This<Cel>,
    namespace: Arc<String>,
    name: Arc<String>,
) -> ResolveResult {
    let mut asker = asker(&this)?;
    asker.user = UserInfo::service_account(&namespace, &name, "");
    let everybody = crate::authn::GROUP_AUTHENTICATED.to_owned();
    asker.user.groups.push(everybody);
    Ok(Cel::Opaque(Arc::new(asker)))
}

fn check(This(this): This<Cel>, verb: Arc<String>) -> ResolveResult {
    let Asker {
        authorizer,
        user,
        question,
    } = asker(&this)?;
    let attributes = Attributes {
        user: &user,
        verb: &verb,
        group: &question.group,
        version: "*",
        resource: &question.resource,
        subresource: &question.subresource,
        namespace: &question.namespace,
        name: &question.name,
        path: &question.path,
    };
    let (allowed, reason) = match authorizer.authorize(&attributes) {
        Decision::Allow => (true, String::new()),
        Decision::Deny(reason) => (false, reason),
        Decision::NoOpinion => (false, String::new()),
    };
    Ok(Cel::Opaque(Arc::new(Answer { allowed, reason })))
}

fn answer(value: &Cel, read: impl FnOnce(&Answer) -> Cel) -> ResolveResult {
    match value {
        Cel::Opaque(opaque) => opaque.downcast_ref::<Answer>().map(read),
        _ => None,
    }
    .ok_or_else(|| ExecutionError::function_error("allowed", "is not an authorizer's decision"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::expression::Variables;

    /// Lets `jane` create Deployments in `x` and everybody read `/healthz`.
    struct Rules;

    impl Authorizer for Rules {
        fn authorize(&self, a: &Attributes<'_>) -> Decision {
            let asked = (
                a.user.name.as_str(),
                a.verb,
                a.group,
                a.resource,
                a.namespace,
            );
            if asked == ("jane", "create", "apps", "deployments", "x") || a.path == "/healthz" {
                Decision::Allow
            } else {
                Decision::Deny("no".to_owned())
            }
        }
    }

    #[test]
    fn expressions_ask_what_somebody_may_do() {
        let mut variables = Variables::new();
        let target = Target {
            group: "apps",
            resource: "deployments",
            subresource: "",
            namespace: "x",
            name: "d",
        };
        variables.authorize(Arc::new(Rules), &UserInfo::new("jane", &[]), &target);
        let table = [
            (
                "authorizer.group('apps').resource('deployments').namespace('x').check('create').allowed()",
                true,
            ),
            (
                "authorizer.group('apps').resource('deployments').namespace('y').check('create').allowed()",
                false,
            ),
            ("authorizer.requestResource.check('create').allowed()", true),
            (
                "authorizer.requestResource.check('delete').reason() == 'no'",
                true,
            ),
            ("authorizer.path('/healthz').check('get').allowed()", true),
            (
                "authorizer.serviceAccount('a', 'b').group('apps').resource('deployments').namespace('x')\
                 .check('create').allowed()",
                false,
            ),
        ];
        for (expression, expected) in table {
            assert_eq!(variables.holds(expression), Ok(expected), "{expression}");
        }
        assert!(variables.holds("1.check('get').allowed()").is_err());
    }
}
