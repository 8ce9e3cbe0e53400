//! What an expression names: whoever writes it learns at once that something is not there, not everybody whose request it
//! is then asked about.

use kube_cel::cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr};

use super::functions::STANDARD_TYPES;
use super::program::has_function;

/// Names that libraries put before their functions.
const LIBRARIES: [&str; 12] = [
    "base64",
    "format",
    "ip",
    "jsonpatch",
    "lists",
    "math",
    "optional",
    "sets",
    "strings",
    "type",
    "cidr",
    "semver",
];
/// What types are named by beside the standard ones, which are values as well.
const TYPES: [&str; 3] = ["optional_type", "google", "kubernetes"];

/// What the expression names that is not there, and the compiler's words for it. No `variables`: any may be there.
pub(super) fn undeclared(
    expression: &IdedExpr,
    variables: Option<&[&str]>,
) -> Option<(String, String)> {
    let mut names = Names {
        variables,
        bound: Vec::new(),
    };
    names.look(&expression.expr)
}

struct Names<'v> {
    variables: Option<&'v [&'v str]>,
    /// By macros.
    bound: Vec<String>,
}

fn unknown(name: &str) -> Option<(String, String)> {
    let what = format!("undeclared reference to '{name}' (in container '')");
    Some((name.to_owned(), what))
}

impl Names<'_> {
    fn look(&mut self, expression: &Expr) -> Option<(String, String)> {
        match expression {
            Expr::Unspecified | Expr::Literal(_) => None,
            // No type that an expression may make objects of is known here, and the evaluator knows none.
            Expr::Struct(made) => unknown(&made.type_name),
            Expr::Ident(name) => match self.variables {
                Some(variables) if !self.knows(name, variables) => unknown(name),
                _ => None,
            },
            Expr::Select(select) => self.look(&select.operand.expr),
            Expr::List(list) => list.elements.iter().find_map(|e| self.look(&e.expr)),
            Expr::Map(map) => map.entries.iter().find_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => {
                    let of_key = self.look(&entry.key.expr);
                    of_key.or_else(|| self.look(&entry.value.expr))
                }
                EntryExpr::StructField(field) => unknown(&field.field),
            }),
            Expr::Call(call) => self.look_at_call(call),
            Expr::Comprehension(inner) => {
                let outside = [&inner.iter_range, &inner.accu_init];
                if let Some(found) = outside.into_iter().find_map(|e| self.look(&e.expr)) {
                    return Some(found);
                }
                let before = self.bound.len();
                self.bound.push(inner.iter_var.clone());
                self.bound.extend(inner.iter_var2.clone());
                self.bound.push(inner.accu_var.clone());
                let inside = [&inner.loop_cond, &inner.loop_step, &inner.result];
                let found = inside.into_iter().find_map(|e| self.look(&e.expr));
                self.bound.truncate(before);
                found
            }
        }
    }

    fn look_at_call(&mut self, call: &CallExpr) -> Option<(String, String)> {
        let name = call.func_name.as_str();
        // The others are operators.
        let is_function = name.starts_with(|c: char| c.is_ascii_alphabetic());
        let target = call.target.as_deref().map(|target| &target.expr);
        let of_library = match target {
            Some(Expr::Ident(library)) if LIBRARIES.contains(&library.as_str()) => {
                has_function(&format!("{library}.{name}"))
            }
            _ => false,
        };
        if !of_library {
            if is_function && !has_function(name) {
                return unknown(name);
            }
            if let Some(found) = target.and_then(|target| self.look(target)) {
                return Some(found);
            }
        }
        call.args.iter().find_map(|a| self.look(&a.expr))
    }

    fn knows(&self, name: &str, variables: &[&str]) -> bool {
        variables.contains(&name)
            || TYPES.contains(&name)
            || STANDARD_TYPES.contains(&name)
            || self.bound.iter().any(|bound| bound == name)
    }
}

#[cfg(test)]
mod tests {
    use kube_cel::cel::Program;

    use super::*;

    fn found(text: &str) -> Option<String> {
        let program = Program::compile(&super::super::plain(text)).unwrap();
        let found = undeclared(program.expression(), Some(&["object", "request"]));
        found.map(|(_, what)| what)
    }

    #[test]
    fn what_is_there_may_be_named_and_nothing_else() {
        for text in [
            "object.a.all(c, c.b.exists(d, d == c)) && request.name != ''",
            "sets.contains(['a'], object.a) || math.greatest(1, 2) == 2 && type(object.a) == string",
            "object.m.all(k, v, k != v) && object.?x.orValue(1) == 1 && object.l[?0].hasValue()",
            "{'a': object.b}.exists(k, k == 'a') && quantity('1Gi').isInteger()",
        ] {
            assert_eq!(found(text), None, "{text}");
        }
        let table = [
            ("objekt.a == 1", "objekt"),
            ("object.a.all(c, d == 1)", "d"),
            ("object.a == params.b", "params"),
            ("Object{a: 1} == object", "Object"),
            ("object.a.exists(c, c) && c", "c"),
        ];
        for (text, name) in table {
            let words = format!("undeclared reference to '{name}' (in container '')");
            assert_eq!(found(text).as_deref(), Some(words.as_str()), "{text}");
        }
    }
}
