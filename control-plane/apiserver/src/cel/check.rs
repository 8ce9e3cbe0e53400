//! What can be said against an expression before it is evaluated: fields that its objects do not have, operators and
//! functions between what they are not for.
//!
//! Policies are only warned of it, rules of schemas are refused for it, so it keeps silent in doubt: what is not known is
//! [`Type::Dyn`], and what is done with that is right.

use std::collections::BTreeMap;

use kube_cel::cel::Program;
use kube_cel::cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue};

use super::program::located;
use super::types::Type;

/// Deeper expressions are not looked into.
const MAX_DEPTH: usize = 200;
const METHODS_OF_TEXT: [&str; 17] = [
    "startsWith",
    "endsWith",
    "matches",
    "find",
    "findAll",
    "lowerAscii",
    "upperAscii",
    "split",
    "substring",
    "trim",
    "replace",
    "charAt",
    "contains",
    "getHours",
    "getMinutes",
    "getSeconds",
    "getMilliseconds",
];

/// The expression's type, and what is wrong with it.
pub(crate) fn check(expression: &str, variables: &BTreeMap<String, Type>) -> (Type, Vec<String>) {
    let plain = super::plain(expression);
    let Ok(program) = Program::compile(&plain) else {
        // Refused when it was written.
        return (Type::Dyn, Vec::new());
    };
    let scope = variables
        .iter()
        .map(|(name, ty)| (name.clone(), ty.clone()));
    let mut checker = Checker {
        source: expression,
        scope: scope.collect(),
        faults: Vec::new(),
    };
    let ty = checker.expression(&program.expression().expr, 0);
    (ty, checker.faults)
}

struct Checker<'e> {
    source: &'e str,
    /// Later ones hide earlier ones.
    scope: Vec<(String, Type)>,
    faults: Vec<String>,
}

impl Checker<'_> {
    /// `at` is a text in the expression that the fault is about.
    fn fault(&mut self, at: &str, what: &str) -> Type {
        self.faults.push(located(self.source, at, what));
        Type::Dyn
    }

    fn no_overload(&mut self, at: &str, function: &str, arguments: &[Type]) -> Type {
        let shown: Vec<_> = arguments.iter().map(ToString::to_string).collect();
        let shown = shown.join(", ");
        let what = format!("found no matching overload for '{function}' applied to '({shown})'");
        self.fault(at, &what)
    }

    fn expression(&mut self, expression: &Expr, depth: usize) -> Type {
        if depth > MAX_DEPTH {
            return Type::Dyn;
        }
        let deeper = depth + 1;
        match expression {
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Bytes(_) => Type::Bytes,
                LiteralValue::Double(_) => Type::Double,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::Null => Type::Null,
                LiteralValue::String(_) => Type::String,
                LiteralValue::UInt(_) => Type::Uint,
            },
            Expr::Ident(name) => {
                let known = self.scope.iter().rev().find(|(known, _)| known == name);
                known.map_or(Type::Dyn, |(_, ty)| ty.clone())
            }
            Expr::Select(select) => {
                let of = self.expression(&select.operand.expr, deeper);
                match of.select(&select.field) {
                    Ok(_) if select.test => Type::Bool,
                    Ok(ty) => ty,
                    Err(what) => self.fault(&format!(".{}", select.field), &what),
                }
            }
            Expr::List(list) => {
                let types = list
                    .elements
                    .iter()
                    .map(|e| self.expression(&e.expr, deeper));
                let types: Vec<_> = types.collect();
                let first = types.first().cloned().unwrap_or(Type::Dyn);
                let same = types.iter().all(|ty| ty.fits(&first));
                Type::List(Box::new(if same { first } else { Type::Dyn }))
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.expression(&entry.key.expr, deeper);
                        self.expression(&entry.value.expr, deeper);
                    }
                }
                Type::Map(Box::new(Type::Dyn))
            }
            Expr::Call(call) => self.call(call, deeper),
            Expr::Comprehension(inner) => self.comprehension(inner, deeper),
            Expr::Struct(_) | Expr::Unspecified => Type::Dyn,
        }
    }

    fn comprehension(&mut self, inner: &ComprehensionExpr, depth: usize) -> Type {
        let range = self.expression(&inner.iter_range.expr, depth);
        if !matches!(
            range,
            Type::Dyn | Type::List(_) | Type::Map(_) | Type::Object(..)
        ) {
            let what = format!(
                "expression of type '{range}' cannot be range of a comprehension (must be list, map, or dynamic)"
            );
            return self.fault("", &what);
        }
        let start = self.expression(&inner.accu_init.expr, depth);
        let before = self.scope.len();
        self.scope.push((inner.iter_var.clone(), range.visited()));
        self.scope.push((inner.accu_var.clone(), start));
        self.expression(&inner.loop_cond.expr, depth);
        let step = self.expression(&inner.loop_step.expr, depth);
        self.scope.push((inner.accu_var.clone(), step));
        let result = self.expression(&inner.result.expr, depth);
        self.scope.truncate(before);
        result
    }

    fn call(&mut self, call: &CallExpr, depth: usize) -> Type {
        let target = call.target.as_deref().map(|target| match &target.expr {
            // `quantity(…)` and `sets.contains(…)` alike: a library is no variable.
            Expr::Ident(name) if !self.scope.iter().any(|(known, _)| known == name) => None,
            target => Some(self.expression(target, depth)),
        });
        let arguments = call.args.iter().map(|a| self.expression(&a.expr, depth));
        let arguments: Vec<_> = arguments.collect();
        let name = call.func_name.as_str();
        match (target.flatten(), arguments.as_slice()) {
            (Some(of), _) => self.method(name, &of, &arguments),
            (None, [one]) if call.target.is_none() => self.of_one(name, one),
            (None, [a, b]) if call.target.is_none() => self.of_two(name, a, b),
            (None, [condition, a, b]) if name == "_?_:_" => match condition {
                Type::Bool | Type::Dyn if a.fits(b) => {
                    if a.is_dyn() {
                        b.clone()
                    } else {
                        a.clone()
                    }
                }
                _ => self.no_overload("?", name, &arguments),
            },
            _ => Type::Dyn,
        }
    }

    fn of_one(&mut self, name: &str, one: &Type) -> Type {
        match (name, one) {
            ("!_", Type::Bool | Type::Dyn) => Type::Bool,
            ("-_", Type::Int | Type::Double | Type::Dyn) => one.clone(),
            ("!_" | "-_", _) => self.no_overload(&name[..1], name, std::slice::from_ref(one)),
            ("@not_strictly_false", _) => Type::Bool,
            ("size", Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Null) => {
                self.no_overload(name, name, std::slice::from_ref(one))
            }
            ("size" | "int", _) => Type::Int,
            ("string", _) => Type::String,
            ("double", _) => Type::Double,
            ("isQuantity" | "isURL" | "isIP" | "isCIDR" | "isSemver", _) => Type::Bool,
            _ => Type::Dyn,
        }
    }

    fn of_two(&mut self, name: &str, a: &Type, b: &Type) -> Type {
        let sign = name.trim_matches('_').trim_start_matches('@');
        let (fits, result) = match name {
            "_&&_" | "_||_" => (is_truth(a) && is_truth(b), Type::Bool),
            // How [`super::syntax`] tells a list from a map.
            "_==_" if matches!((a, b), (Type::Map(_), Type::List(_))) => (true, Type::Bool),
            "_==_" | "_!=_" => (a.fits(b), Type::Bool),
            "_<_" | "_<=_" | "_>_" | "_>=_" => (is_ordered(a, b), Type::Bool),
            "_+_" | "_-_" | "_*_" | "_/_" | "_%_" => match computed(name, a, b) {
                Some(result) => (true, result),
                None => (false, Type::Dyn),
            },
            "@in" | "_in_" => match b {
                // An optional index asks for both kinds of key.
                _ if self.source.contains("[?") => (true, Type::Bool),
                Type::List(inner) => (a.fits(inner), Type::Bool),
                Type::Map(_) => (a.fits(&Type::String), Type::Bool),
                Type::Dyn | Type::Object(..) | Type::Record(_) => (true, Type::Bool),
                _ => (false, Type::Bool),
            },
            "_[_]" => match a {
                Type::List(inner) => (b.is_dyn() || b.is_number(), (**inner).clone()),
                Type::Map(inner) => (b.fits(&Type::String), (**inner).clone()),
                Type::Dyn | Type::Object(..) | Type::Record(_) => (true, Type::Dyn),
                _ => (false, Type::Dyn),
            },
            _ => (true, Type::Dyn),
        };
        if fits {
            return result;
        }
        let at = if name == "_[_]" { "[" } else { sign };
        self.no_overload(at, name, &[a.clone(), b.clone()])
    }

    fn method(&mut self, name: &str, of: &Type, arguments: &[Type]) -> Type {
        let of_text = METHODS_OF_TEXT.contains(&name);
        let is_wrong = match of {
            Type::Bool | Type::Int | Type::Uint | Type::Double | Type::Null => {
                of_text || name == "size"
            }
            _ => false,
        };
        if is_wrong {
            let shown: Vec<_> = arguments.iter().map(ToString::to_string).collect();
            let shown = shown.join(", ");
            let what =
                format!("found no matching overload for '{name}' applied to '{of}.({shown})'");
            return self.fault(&format!(".{name}"), &what);
        }
        match name {
            "startsWith" | "endsWith" | "matches" | "contains" | "isSorted" => Type::Bool,
            "size" | "indexOf" | "lastIndexOf" => Type::Int,
            "lowerAscii" | "upperAscii" | "trim" | "replace" | "substring" | "charAt" | "join"
            | "find" => Type::String,
            "split" | "findAll" => Type::List(Box::new(Type::String)),
            _ => Type::Dyn,
        }
    }
}

fn is_truth(ty: &Type) -> bool {
    matches!(ty, Type::Bool | Type::Dyn)
}

fn is_ordered(a: &Type, b: &Type) -> bool {
    match (a, b) {
        (Type::Dyn, other) | (other, Type::Dyn) => !matches!(
            other,
            Type::List(_) | Type::Map(_) | Type::Object(..) | Type::Record(_) | Type::Null
        ),
        (a, b) if a.is_number() && b.is_number() => true,
        (Type::List(_) | Type::Map(_) | Type::Object(..) | Type::Record(_) | Type::Null, _) => {
            false
        }
        (a, b) => a.fits(b),
    }
}

/// The type of what an operator computes; `None` where it is not for these.
fn computed(name: &str, a: &Type, b: &Type) -> Option<Type> {
    use Type::{Bytes, Double, Duration, Dyn, Int, List, String, Timestamp, Uint};
    let result = match (name, a, b) {
        (_, Dyn, _) | (_, _, Dyn) => Dyn,
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", Int, Int) => Int,
        ("_+_" | "_-_" | "_*_" | "_/_" | "_%_", Uint, Uint) => Uint,
        ("_+_" | "_-_" | "_*_" | "_/_", Double, Double) => Double,
        ("_+_", String, String) => String,
        ("_+_", Bytes, Bytes) => Bytes,
        ("_+_", List(one), List(other)) => match (one.is_dyn(), one.fits(other)) {
            (true, _) => b.clone(),
            (false, true) => a.clone(),
            (false, false) => return None,
        },
        ("_+_", Timestamp, Duration) | ("_+_", Duration, Timestamp) => Timestamp,
        ("_-_", Timestamp, Duration) => Timestamp,
        ("_-_", Timestamp, Timestamp) | ("_+_" | "_-_", Duration, Duration) => Duration,
        _ => return None,
    };
    Some(result)
}

#[cfg(test)]
mod tests {
    use windlass_machinery::schema::Schema;

    use super::*;

    fn faults(expression: &str) -> Vec<String> {
        let schema = Schema::builtin();
        let id = schema.kind_id("apps", "v1", "Deployment").unwrap();
        let object = Type::object(&schema, id);
        let variables = BTreeMap::from([
            ("object".to_owned(), object.clone()),
            ("oldObject".to_owned(), object),
            ("params".to_owned(), Type::Dyn),
        ]);
        check(expression, &variables).1
    }

    #[test]
    fn what_is_right_or_unknown_is_not_warned_of() {
        for expression in [
            "object.spec.replicas > 1",
            "object.spec.replicas <= params.max && params.anything.at.all == 3",
            "object.spec.template.spec.containers.all(c, c.image.startsWith('x/') && c.name != '')",
            "has(object.metadata.labels) && object.metadata.labels['a'] == 'b'",
            "object.metadata.labels.exists(k, k.startsWith('a')) || 'b' in object.metadata.labels",
            "object.spec.template.spec.containers.map(c, c.name) == ['a'] ? 1 > 0 : false",
            "object.?spec.?replicas.orValue(1) > 0 && oldObject == null",
            "quantity('1Gi').isGreaterThan(quantity('1Mi')) && size(object.metadata.name) < 10",
            "object.metadata.creationTimestamp < timestamp('2026-01-01T00:00:00Z')",
            "object.spec.template.spec.containers.filter(c, c.name == 'a').size() > 0",
            "object.metadata.labels.all(k, v, k != v)",
            "object.spec.replicas > 1.5",
        ] {
            assert_eq!(faults(expression), [""; 0], "{expression}");
        }
    }

    #[test]
    fn confusions_are_told_as_the_compiler_would() {
        let table = [
            (
                "object.spec.replicas > '1'",
                "ERROR: <input>:1:22: found no matching overload for '_>_' applied to '(int, string)'\n | object.spec.replicas > '1'\n | .....................^",
            ),
            (
                "'wants ' + object.spec.replicas",
                "found no matching overload for '_+_' applied to '(string, int)'",
            ),
            ("object.spec.replica > 1", "undefined field 'replica'"),
            (
                "object.spec.template.spec.containers.all(c, c.image > 1)",
                "found no matching overload for '_>_' applied to '(string, int)'",
            ),
            (
                "object.spec.replicas.startsWith('a')",
                "applied to 'int.(string)'",
            ),
            (
                "object.metadata.name.first",
                "type 'string' does not support field selection",
            ),
            (
                "object.spec.replicas && true",
                "'_&&_' applied to '(int, bool)'",
            ),
            (
                "object.metadata.name == 1",
                "'_==_' applied to '(string, int)'",
            ),
        ];
        for (expression, expected) in table {
            let found = faults(expression);
            assert_eq!(found.len(), 1, "{expression}: {found:?}");
            assert!(found[0].contains(expected), "{expression}: {found:?}");
        }
    }
}
