//! Rules in the schemas of custom resources, checked when the definition is written: they know the types of what they are
//! about, and how often they may be asked.

use std::collections::BTreeMap;

use serde_json::Value;
use windlass_api::apiextensions::versions::schema_path;
use windlass_machinery::validation::{Errors, Path};

use super::written::list;
use crate::admission::{cost, expression};
use crate::cel;
use crate::cel::types::Type;
use crate::custom_resources::expressions::{self, MAYBE_OLD};

/// What rules may name.
const OF_RULES: [&str; 3] = ["self", "oldSelf", MAYBE_OLD];

pub(super) fn faults(definition: &Value) -> Errors {
    let mut errors = Errors::new();
    let spec = &definition["spec"];
    for (i, version) in list(&spec["versions"]).iter().enumerate() {
        let Some(path) = schema_path(spec, i) else {
            continue;
        };
        let level = Level {
            times: 1,
            is_resource: true,
            uncorrelatable: None,
        };
        rules(
            &version["schema"]["openAPIV3Schema"],
            &level,
            &path,
            &mut errors,
        );
    }
    errors
}

/// Where a schema stands.
struct Level {
    /// How often one object may have what the schema is of.
    times: u64,
    is_resource: bool,
    /// The schema around it whose values cannot be told apart from what they were.
    uncorrelatable: Option<Path>,
}

/// The rules of a schema and of those inside it, whose depth the structural check has limited.
fn rules(schema: &Value, level: &Level, path: &Path, errors: &mut Errors) {
    let here = path.child("x-kubernetes-validations");
    let written = list(&schema["x-kubernetes-validations"]);
    if !written.is_empty() {
        let own = Type::structural(schema, level.is_resource);
        let known = BTreeMap::from([
            ("self".to_owned(), own.clone()),
            ("oldSelf".to_owned(), own.clone()),
            (MAYBE_OLD.to_owned(), Type::List(Box::new(own))),
        ]);
        for (i, written) in written.iter().enumerate() {
            rule(written, schema, &known, level, &here.index(i), errors);
        }
    }
    let level_of = |schema: &Value, times: u64, uncorrelatable: Option<Path>| Level {
        times,
        is_resource: schema["x-kubernetes-embedded-resource"] == true,
        uncorrelatable: level.uncorrelatable.clone().or(uncorrelatable),
    };
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let level = level_of(property, level.times, None);
        rules(
            property,
            &level,
            &path.child("properties").key(name),
            errors,
        );
    }
    for nested in ["items", "additionalProperties"] {
        let inside = &schema[nested];
        if inside.is_object() {
            let path = path.child(nested);
            let times = level.times.saturating_mul(cost::repeats(schema));
            let has_keys = nested != "items" || schema["x-kubernetes-list-type"] == "map";
            let level = level_of(inside, times, (!has_keys).then(|| path.clone()));
            rules(inside, &level, &path, errors);
        }
    }
}

/// One rule of a schema, over variables of the schema's type.
fn rule(
    written: &Value,
    schema: &Value,
    known: &BTreeMap<String, Type>,
    level: &Level,
    path: &Path,
    errors: &mut Errors,
) {
    for (field, wanted) in [("rule", "bool"), ("messageExpression", "string")] {
        let text = expressions::text_of(written, field);
        if text.is_empty() {
            continue;
        }
        let shown = written[field].as_str().unwrap_or_default();
        let field_path = path.child(field);
        let program = match cel::compile_over(&text, &OF_RULES) {
            Ok(program) => program,
            Err(why) => {
                errors.invalid(&field_path, shown, why);
                continue;
            }
        };
        let (ty, faults) = cel::check(&text, known);
        let name = match field {
            "rule" => "cel expression",
            field => field,
        };
        if let Some(fault) = faults.first() {
            errors.invalid(&field_path, shown, format!("compilation failed: {fault}"));
        } else if !ty.is_dyn() && ty.to_string() != wanted {
            errors.invalid(
                &field_path,
                shown,
                format!("{name} must evaluate to a {wanted}"),
            );
        }
        if field != "rule" {
            continue;
        }
        let cost = expression::rule_cost(&program, schema);
        too_dear(cost.saturating_mul(level.times), &field_path, errors);
        let names_old = expressions::names_old(&program);
        if let (true, Some(within)) = (names_old, &level.uncorrelatable) {
            let detail = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {within}"
            );
            errors.invalid(&field_path, shown, detail);
        }
        if let (false, Some(given)) = (names_old, written["optionalOldSelf"].as_bool()) {
            let detail = "may not be set if oldSelf is not used in rule";
            errors.invalid(&path.child("optionalOldSelf"), given, detail);
        }
    }
}

/// In upstream's words.
fn too_dear(cost: u64, path: &Path, errors: &mut Errors) {
    if cost <= cost::LIMIT {
        return;
    }
    let tenths = cost / (cost::LIMIT / 10);
    let factor = match tenths {
        0..=1000 => format!("{}.{}x", tenths / 10, tenths % 10),
        _ => "more than 100x".to_owned(),
    };
    let detail = format!(
        "estimated rule cost exceeds budget by factor of {factor} (try simplifying the rule, or adding maxItems, \
         maxProperties, and maxLength where arrays, maps, and strings are declared)"
    );
    errors.forbidden(path, detail);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_rule_that_could_cost_too_much_is_refused() {
        let definition = |limit: Option<u64>| {
            let mut texts = json!({
                "type": "array", "items": {"type": "string"},
                "x-kubernetes-validations": [{"rule": "self.all(t, t.contains('x'))"}],
            });
            if let Some(limit) = limit {
                texts["maxItems"] = limit.into();
                texts["items"]["maxLength"] = limit.into();
            }
            let schema = json!({"type": "object", "properties": {"texts": texts}});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        assert!(faults(&definition(Some(50))).is_empty());
        let found = faults(&definition(None));
        let found: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(found.len(), 1);
        let words = "exceeds budget by factor of more than 100x";
        assert!(found[0].contains(words), "{found:?}");
    }

    #[test]
    fn rules_know_their_schema() {
        let definition = |rules: Value| {
            let item = json!({"type": "object", "properties": {"n": {"type": "integer"}},
                "x-kubernetes-validations": [{"rule": "self.n >= oldSelf.n"}]});
            let spec = json!({"type": "object", "x-kubernetes-validations": rules, "properties": {
                "x": {"type": "integer"}, "s": {"type": "string"},
                "list": {"type": "array", "maxItems": 3, "items": item}}});
            let schema = json!({"type": "object", "properties": {"spec": spec}});
            json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}})
        };
        let found: Vec<_> = faults(&definition(json!([
            {"rule": "self.z == 1"},
            {"rule": "self.x"},
            {"rule": "self.x > 0", "messageExpression": "self.x"},
            {"rule": "self.x > self.s"},
            {"rule": "self.x > 0", "optionalOldSelf": true},
            {"rule": "oldSelf.hasValue() || self.x == 1", "optionalOldSelf": true},
            {"rule": "self.s.matches('^a') && has(self.list) && self.list.all(i, i.n > self.x)"},
        ])))
        .iter()
        .map(ToString::to_string)
        .collect();
        let spec = "spec.validation.openAPIV3Schema.properties[spec]";
        let list = format!("{spec}.properties[list].items");
        assert_eq!(
            found,
            [
                format!(
                    "{spec}.x-kubernetes-validations[0].rule: Invalid value: \"self.z == 1\": compilation failed: ERROR: \
                     <input>:1:5: undefined field 'z'\n | self.z == 1\n | ....^"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[1].rule: Invalid value: \"self.x\": cel expression must evaluate to a bool"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[2].messageExpression: Invalid value: \"self.x\": messageExpression must \
                     evaluate to a string"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[3].rule: Invalid value: \"self.x > self.s\": compilation failed: ERROR: \
                     <input>:1:8: found no matching overload for '_>_' applied to '(int, string)'\n | self.x > self.s\n | .......^"
                ),
                format!(
                    "{spec}.x-kubernetes-validations[4].optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in \
                     rule"
                ),
                format!(
                    "{list}.x-kubernetes-validations[0].rule: Invalid value: \"self.n >= oldSelf.n\": oldSelf cannot be used on \
                     the uncorrelatable portion of the schema within {list}"
                ),
            ]
        );
    }

    /// In the manner of what widely used definitions have: none of it may be refused.
    #[test]
    fn what_others_have_written_is_let_pass() {
        let reference = json!({"type": "object", "properties": {
            "group": {"type": "string", "default": ""}, "kind": {"type": "string", "default": "Service"},
            "name": {"type": "string"}, "namespace": {"type": "string"},
            "port": {"type": "integer", "format": "int32"}, "sectionName": {"type": "string"}}});
        let listeners = json!({"type": "array", "maxItems": 16, "items": {"type": "object", "properties": {
            "hostname": {"type": "string"}, "name": {"type": "string"}, "port": {"type": "integer", "format": "int32"},
            "protocol": {"type": "string"},
            "tls": {"type": "object", "properties": {"mode": {"type": "string"},
                "certificateRefs": {"type": "array", "maxItems": 8, "items": reference}}}}}});
        let text = |limit: u64| json!({"type": "string", "maxLength": limit});
        let spec = |rules: Vec<&str>| {
            let rules: Vec<_> = rules.iter().map(|rule| json!({"rule": rule})).collect();
            json!({"type": "object", "x-kubernetes-validations": rules, "properties": {
                "type": text(32), "urlRewrite": {"type": "object", "properties": {"hostname": text(64)}},
                "refs": {"type": "array", "maxItems": 16, "items": reference}, "ref": reference,
                "listeners": listeners, "min_ready": {"type": "integer"}, "ratio": {"type": "number"},
                "port": {"x-kubernetes-int-or-string": true}, "note": {"type": "string", "nullable": true},
                "start": {"type": "string", "format": "date-time"}, "wait": {"type": "string", "format": "duration"},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "maxProperties": 8, "additionalProperties": text(63)},
                "namespace": text(63), "paused": {"type": "boolean"}, "names": {"type": "array", "maxItems": 8,
                    "x-kubernetes-list-type": "set", "items": text(63)}}})
        };
        let rules = vec![
            "!(self.type == 'URLRewrite' && !has(self.urlRewrite))",
            "has(self.urlRewrite) || self.type != 'URLRewrite'",
            "(size(self.ref.group) == 0 && self.ref.kind == 'Service') ? has(self.ref.port) : true",
            "self.refs.all(p1, self.refs.exists_one(p2, p1.group == p2.group && p1.kind == p2.kind && p1.name == p2.name && \
             ((!has(p1.__namespace__) || p1.__namespace__ == '') && (!has(p2.__namespace__) || p2.__namespace__ == '') || (has(p1.__namespace__) && \
             has(p2.__namespace__) && p1.__namespace__ == p2.__namespace__))))",
            "self.listeners.all(l, l.protocol in ['HTTP', 'TCP', 'UDP'] ? !has(l.tls) : true)",
            "self.listeners.all(l, (l.protocol == 'HTTPS' && has(l.tls)) ? (l.tls.mode == '' || l.tls.mode == 'Terminate') : true)",
            "self.listeners.filter(l, has(l.tls) && has(l.tls.certificateRefs)).map(l, size(l.tls.certificateRefs)).sum() < 100",
            "self.min_ready >= 0 && self.ratio <= 1.0 && self.ratio > 0",
            "type(self.port) == int ? self.port > 0 : self.port.matches('^[a-z]+$')",
            "self.note == null || size(self.note) > 0",
            "self.start < timestamp('2030-01-01T00:00:00Z') && self.wait > duration('1s')",
            "self.free.anything.at.all == 1 || !has(self.free.more)",
            "self.labels.all(k, k.startsWith('x/') && self.labels[k] != '') && !('forbidden' in self.labels)",
            "self.__namespace__ != 'kube-system' && !self.paused",
            "self.?urlRewrite.hostname.orValue('') != 'bad' && self.labels[?'a'].orValue('b') == 'b'",
            "self == oldSelf || (has(self.type) == has(oldSelf.type) && self.names.size() >= oldSelf.names.size())",
            "oldSelf.names.all(n, n in self.names) && self.names.exists(n, n.contains('a')) && sets.contains(self.names, ['b'])",
            "[has(self.type), has(self.urlRewrite)].filter(x, x == true).size() == 1",
            "(has(self.type) ? 1 : 0) + (has(self.paused) ? 1 : 0) <= 1",
            "self.names.join(',').split(',').size() == size(self.names) && self.type.lowerAscii() == self.type",
            "isURL(self.type) ? url(self.type).getHostname() != '' : quantity(self.type).isGreaterThan(quantity('1Mi'))",
            "!format.dns1123Label().validate(self.type).hasValue() && cidr('10.0.0.0/8').containsIP(ip(self.type))",
            "self.names.indexOf('a') >= 0 ? self.names[0].find('[0-9]+') != '' : dyn(self.type) == 'x'",
            "self.refs.filter(c, has(c.kind) && c.kind == 'epp').size() <= 1",
            "self.refs.all(a, !has(a.name) || self.refs.filter(b, has(b.name) && b.name.lowerAscii() == \
             a.name.lowerAscii()).size() == 1)",
            "isURL(self.type) ? (url(self.type).getScheme() == \"http\" || url(self.type).getScheme() == \"https\") : true",
            "semver(self.type).compareTo(semver('1.2.3')) >= 0 && isSemver(self.type)",
            "duration(self.type) >= duration('10s') && duration(self.type).getSeconds() < 60",
            "self.names.all(x, x == 'In' ? self.refs.size() != 0 : true) && self.names.all(k, !(k in ['kubernetes.io/hostname']))",
            "(has(self.paused) && self.paused) || (has(self.port) && quantity(self.port).isGreaterThan(quantity('0')))",
            "self.names.size() == 1 ? int(self.names[0]) >= 0 : self.names.map(n, int(n)).sum() <= 100 && self.names.isSorted()",
            "!self.type.startsWith('a') || self.type.split('/')[1].matches(r'^[a-z]+\\.[a-z]+$') || self.type.endsWith('%')",
            "self.names.map(n, n + ':' + self.type).exists_one(n, n == 'a:1') && [self.ratio, 1.0].max() >= 1.0",
            "string(self.min_ready) + self.type != 'x' && int(self.ratio) == 0 && double(self.min_ready) < 2.5",
        ];
        let mut schema = json!({"type": "object", "properties": {"spec": spec(rules)}});
        schema["x-kubernetes-validations"] = json!([
            {"rule": "self.metadata.name.size() < 10 && self.kind == 'A' && has(self.spec)",
                "messageExpression": "'name ' + self.metadata.name + ' is longer than %d'.format([10])"},
        ]);
        let definition = json!({"spec": {"versions": [{"schema": {"openAPIV3Schema": schema}}]}});
        let found: Vec<_> = faults(&definition)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found, [""; 0]);
    }
}
