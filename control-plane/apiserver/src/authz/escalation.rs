//! Whether what somebody holds covers what they would grant: the rule against privilege escalation.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::rbac::{ALL, Rule, has, path_matches};
use crate::authn::UserInfo;

/// How many single permissions a rule may hold: far more than any real one does, and few enough to be compared at once.
const MOST: usize = 100_000;

/// What a rule allows its verbs for, one by one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Target<'a> {
    Path(&'a str),
    Resource {
        group: &'a str,
        resource: &'a str,
        name: Option<&'a str>,
    },
}

/// Why `user`, who holds `held`, may not grant `wanted`; `None` when all of it is held.
pub(crate) fn excess(user: &UserInfo, held: &[Rule], wanted: &[Rule]) -> Option<String> {
    let mut missing: BTreeMap<Target<'_>, Vec<&str>> = BTreeMap::new();
    for rule in wanted {
        if breadth(rule) > MOST {
            return Some(format!("a rule that grants more than {MOST} permissions"));
        }
        for target in targets(rule) {
            for verb in &rule.verbs {
                if !held.iter().any(|held| grants(held, &target, verb)) {
                    missing.entry(target).or_default().push(verb);
                }
            }
        }
    }
    if missing.is_empty() {
        return None;
    }
    let lines: BTreeSet<String> = missing
        .iter()
        .flat_map(|(target, verbs)| described(target, verbs))
        .collect();
    let lines: Vec<String> = lines.into_iter().collect();
    Some(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        Quoted(&user.groups),
        lines.join("\n")
    ))
}

/// In how many single permissions a rule falls apart.
fn breadth(rule: &Rule) -> usize {
    [&rule.groups, &rule.resources]
        .iter()
        .map(|list| list.len())
        .chain([rule.names.len().max(1), rule.verbs.len()])
        .fold(1, usize::saturating_mul)
        .saturating_add(rule.paths.len().saturating_mul(rule.verbs.len()))
}

fn targets(rule: &Rule) -> impl Iterator<Item = Target<'_>> {
    let names = || {
        let all = rule.names.is_empty().then_some(None);
        all.into_iter()
            .chain(rule.names.iter().map(|name| Some(name.as_str())))
    };
    let resources = rule.groups.iter().flat_map(move |group| {
        rule.resources.iter().flat_map(move |resource| {
            names().map(move |name| Target::Resource {
                group,
                resource,
                name,
            })
        })
    });
    resources.chain(rule.paths.iter().map(|path| Target::Path(path)))
}

fn grants(held: &Rule, target: &Target<'_>, verb: &str) -> bool {
    has(&held.verbs, verb)
        && match target {
            Target::Path(path) => held
                .paths
                .iter()
                .any(|pattern| pattern == path || path_matches(pattern, path)),
            Target::Resource {
                group,
                resource,
                name,
            } => {
                has(&held.groups, group)
                    && covers(held, resource)
                    && (held.names.is_empty()
                        || name.is_some_and(|name| held.names.iter().any(|held| held == name)))
            }
        }
}

/// `*` covers everything, `*/scale` that subresource of everything, anything else itself.
fn covers(held: &Rule, resource: &str) -> bool {
    let subresource = resource.split_once('/').map(|(_, child)| child);
    held.resources.iter().any(|pattern| {
        pattern == ALL
            || pattern == resource
            || subresource.is_some_and(|child| pattern.strip_prefix("*/") == Some(child))
    })
}

/// As upstream tells it: verbs of a resource together, those of a path one by one.
fn described(target: &Target<'_>, verbs: &[&str]) -> Vec<String> {
    match target {
        Target::Path(path) => verbs
            .iter()
            .map(|verb| format!("{{NonResourceURLs:[{path:?}], Verbs:[{verb:?}]}}"))
            .collect(),
        Target::Resource {
            group,
            resource,
            name,
        } => {
            let name = name.map_or(String::new(), |name| format!(", ResourceNames:[{name:?}]"));
            let verbs = Quoted(verbs);
            vec![format!(
                "{{APIGroups:[{group:?}], Resources:[{resource:?}]{name}, Verbs:{verbs}}}"
            )]
        }
    }
}

/// A list as Go's `%q` writes it.
struct Quoted<'a, T>(&'a [T]);

impl<T: fmt::Debug> fmt::Display for Quoted<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let items: Vec<String> = self.0.iter().map(|item| format!("{item:?}")).collect();
        write!(f, "[{}]", items.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::super::rbac::rules;
    use super::*;

    fn of(rules_: &Value) -> Vec<Rule> {
        rules(&json!({"rules": rules_}))
    }

    fn resources(verbs: &[&str], resources: &[&str], names: &[&str]) -> Value {
        json!({"verbs": verbs, "apiGroups": ["", "apps"], "resources": resources, "resourceNames": names})
    }

    #[rstest]
    #[case::itself(json!([resources(&["get"], &["pods"], &[])]), resources(&["get"], &["pods"], &[]), true)]
    #[case::another_verb(json!([resources(&["get"], &["pods"], &[])]), resources(&["get", "list"], &["pods"], &[]), false)]
    #[case::in_two_rules(
        json!([resources(&["get"], &["pods"], &[]), resources(&["list"], &["pods"], &[])]),
        resources(&["get", "list"], &["pods"], &[]),
        true
    )]
    #[case::everything(json!([resources(&["*"], &["*"], &[])]), resources(&["get"], &["*/scale"], &[]), true)]
    #[case::all_resources_of_some(json!([resources(&["get"], &["pods"], &[])]), resources(&["get"], &["*"], &[]), false)]
    #[case::a_subresource(json!([resources(&["get"], &["pods"], &[])]), resources(&["get"], &["pods/log"], &[]), false)]
    #[case::that_of_all(json!([resources(&["get"], &["*/log"], &[])]), resources(&["get"], &["pods/log"], &[]), true)]
    #[case::a_name_of_all(json!([resources(&["get"], &["pods"], &[])]), resources(&["get"], &["pods"], &["a"]), true)]
    #[case::all_of_a_name(json!([resources(&["get"], &["pods"], &["a"])]), resources(&["get"], &["pods"], &[]), false)]
    #[case::a_path_below(
        json!([{"verbs": ["get"], "nonResourceURLs": ["/metrics/*"]}]),
        json!({"verbs": ["get"], "nonResourceURLs": ["/metrics/slis"]}),
        true
    )]
    #[case::a_wider_path(
        json!([{"verbs": ["get"], "nonResourceURLs": ["/metrics/*"]}]),
        json!({"verbs": ["get"], "nonResourceURLs": ["*"]}),
        false
    )]
    #[case::resources_are_no_paths(
        json!([resources(&["*"], &["*"], &[])]),
        json!({"verbs": ["get"], "nonResourceURLs": ["/healthz"]}),
        false
    )]
    fn nobody_grants_more_than_they_hold(
        #[case] held: Value,
        #[case] wanted: Value,
        #[case] may: bool,
    ) {
        let user = UserInfo::new("jane", &["devs"]);
        let found = excess(&user, &of(&held), &of(&json!([wanted])));
        assert_eq!(found.is_none(), may, "{found:?}");
    }

    #[test]
    fn what_is_missing_is_told() {
        let user = UserInfo::new("jane", &["devs", "ops"]);
        let wanted = json!([
            {"verbs": ["get", "list"], "apiGroups": ["", "apps"], "resources": ["pods"]},
            {"verbs": ["get", "post"], "nonResourceURLs": ["/x"]},
            {"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["s"]},
        ]);
        let held =
            json!([{"verbs": ["get", "list"], "apiGroups": ["apps"], "resources": ["pods"]}]);
        assert_eq!(
            excess(&user, &of(&held), &of(&wanted)).unwrap(),
            "user \"jane\" (groups=[\"devs\" \"ops\"]) is attempting to grant RBAC permissions not currently held:\n\
             {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"get\" \"list\"]}\n\
             {APIGroups:[\"\"], Resources:[\"secrets\"], ResourceNames:[\"s\"], Verbs:[\"get\"]}\n\
             {NonResourceURLs:[\"/x\"], Verbs:[\"get\"]}\n\
             {NonResourceURLs:[\"/x\"], Verbs:[\"post\"]}"
        );
    }

    #[test]
    fn a_rule_that_multiplies_is_refused_unread() {
        let many: Vec<String> = (0..1000).map(|i| i.to_string()).collect();
        let wanted = json!([{"verbs": many, "apiGroups": many, "resources": many}]);
        let held = of(&json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]));
        assert!(excess(&UserInfo::new("jane", &[]), &held, &of(&wanted)).is_some());
    }
}
