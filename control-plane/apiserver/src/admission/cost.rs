//! An upper bound of what evaluating a CEL expression costs, before it is evaluated.
//!
//! The evaluator has no budget of its own, and nested comprehensions multiply: without a bound, one short expression
//! could occupy a thread for days. The bound follows the data: a comprehension costs its body once for each element that
//! its list can have. A unit is one step, as upstream counts (KEP-2876); what is the same order is left out, so that an
//! expression that upstream accepts is accepted here. Of a rule in a schema there is no data yet: there the schema says how
//! much there may be.

use kube_cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue};
use serde_json::Value;

/// Upstream's limit for one expression (`RuntimeCELCostBudget`, `StaticEstimatedCostLimit`).
pub(crate) const LIMIT: u64 = 10_000_000;
/// Deeper expressions are not walked; the parser has its own limit below.
const MAX_DEPTH: usize = 500;

/// The largest request, in bytes: what has no limit of its own is no larger.
const LARGEST: u64 = 3 << 20;

/// What is known of a value.
#[derive(Clone, Copy)]
enum Known<'v> {
    Data(&'v Value),
    /// The schema that it keeps to.
    Schema(&'v Value),
}

impl<'v> Known<'v> {
    fn field(self, name: &str) -> Option<Self> {
        match self {
            Self::Data(value) => value.get(name).map(Self::Data),
            Self::Schema(schema) => {
                let others = &schema["additionalProperties"];
                let named = schema["properties"].get(name);
                named
                    .or(others.is_object().then_some(others))
                    .map(Self::Schema)
            }
        }
    }

    fn elements(self) -> Vec<Self> {
        match self {
            Self::Data(Value::Array(items)) => items.iter().map(Self::Data).collect(),
            Self::Data(Value::Object(map)) => map.values().map(Self::Data).collect(),
            Self::Data(_) => Vec::new(),
            Self::Schema(schema) => inside(schema).into_iter().map(Self::Schema).collect(),
        }
    }

    fn length(self) -> u64 {
        match self {
            Self::Data(Value::Array(items)) => items.len() as u64,
            Self::Data(Value::Object(map)) => map.len() as u64,
            Self::Data(Value::String(text)) => text.len() as u64,
            Self::Data(_) => 0,
            Self::Schema(schema) => longest(schema),
        }
    }
}

/// The schema of a list's or map's elements.
fn inside(schema: &Value) -> Option<&Value> {
    let found = [&schema["items"], &schema["additionalProperties"]];
    found.into_iter().find(|schema| schema.is_object())
}

/// How long what keeps to a schema can be.
fn longest(schema: &Value) -> u64 {
    let limit = |name: &str| schema[name].as_u64();
    match schema["type"].as_str() {
        Some("array") => limit("maxItems").unwrap_or(LARGEST / (smallest(&schema["items"]) + 1)),
        Some("object") => {
            let key_and_colon = 4;
            let each = smallest(&schema["additionalProperties"]) + key_and_colon;
            limit("maxProperties").unwrap_or(LARGEST / each)
        }
        Some("string") if schema["enum"].is_array() => 64,
        Some("string") => match schema["format"].as_str() {
            Some("date-time" | "date" | "duration") => 64,
            _ => limit("maxLength").unwrap_or(LARGEST),
        },
        _ => 0,
    }
}

/// The fewest bytes of JSON that keep to a schema.
fn smallest(schema: &Value) -> u64 {
    match schema["type"].as_str() {
        Some("string" | "array") => 2,
        Some("boolean") => 4,
        Some("object") => {
            let required = schema["required"].as_array().into_iter().flatten();
            let fields = required.filter_map(Value::as_str);
            let sizes =
                fields.map(|name| name.len() as u64 + 4 + smallest(&schema["properties"][name]));
            2 + sizes.sum::<u64>()
        }
        _ => 1,
    }
}

/// How often a rule of the elements is evaluated, for each time that one of the list or map itself is.
pub(super) fn repeats(schema: &Value) -> u64 {
    longest(schema).max(1)
}

/// All values that a part of an expression may have.
#[derive(Clone, Default)]
struct Values<'v> {
    of: Vec<Known<'v>>,
    /// The length of what the expression itself makes.
    made: u64,
}

impl<'v> Values<'v> {
    fn field(&self, name: &str) -> Self {
        let of = self.of.iter().filter_map(|known| known.field(name));
        Self {
            of: of.collect(),
            made: 0,
        }
    }

    /// What is inside, whether list or map.
    fn elements(&self) -> Self {
        // What an expression makes may have parts as large as itself.
        Self {
            of: self.of.iter().flat_map(|known| known.elements()).collect(),
            made: self.made,
        }
    }

    /// The longest one's length.
    fn length(&self) -> u64 {
        let longest = self.of.iter().map(|known| known.length()).max();
        self.made.max(longest.unwrap_or(0))
    }

    fn and(mut self, other: Self) -> Self {
        self.of.extend(other.of);
        self.made = self.made.max(other.made);
        self
    }
}

struct Walk<'v> {
    /// Variables and what they may be; later ones hide earlier ones.
    scope: Vec<(String, Values<'v>)>,
}

/// The bound for an expression over these variables.
pub(super) fn bound(expression: &IdedExpr, variables: &[(String, &Value)]) -> u64 {
    let known = variables
        .iter()
        .map(|(name, value)| (name.clone(), Known::Data(value)));
    Walk::over(known).cost(&expression.expr, 0).0
}

/// The bound for a rule of values that keep to a schema.
pub(super) fn bound_of_rule(rule: &IdedExpr, schema: &Value) -> u64 {
    let known = ["self", "oldSelf"].map(|name| (name.to_owned(), Known::Schema(schema)));
    Walk::over(known.into_iter()).cost(&rule.expr, 0).0
}

impl<'v> Walk<'v> {
    fn over(known: impl Iterator<Item = (String, Known<'v>)>) -> Self {
        let values = |known| Values {
            of: vec![known],
            made: 0,
        };
        Self {
            scope: known.map(|(name, known)| (name, values(known))).collect(),
        }
    }

    /// The cost, and what the expression may be.
    fn cost(&mut self, expression: &Expr, depth: usize) -> (u64, Values<'v>) {
        if depth > MAX_DEPTH {
            return (u64::MAX, Values::default());
        }
        let deeper = depth + 1;
        match expression {
            Expr::Unspecified => (0, Values::default()),
            Expr::Literal(LiteralValue::String(text)) => {
                let made = text.inner().len() as u64;
                (
                    0,
                    Values {
                        of: Vec::new(),
                        made,
                    },
                )
            }
            Expr::Literal(_) => (0, Values::default()),
            Expr::Ident(name) => {
                let known = self.scope.iter().rev().find(|(known, _)| known == name);
                // What comprehensions keep for themselves costs nothing, as upstream.
                let own = u64::from(!name.starts_with('@') && !name.starts_with("__"));
                let values = known.map(|(_, values)| values.clone());
                (own, values.unwrap_or_default())
            }
            Expr::Select(select) => {
                let (cost, values) = self.cost(&select.operand.expr, deeper);
                (cost.saturating_add(1), values.field(&select.field))
            }
            Expr::List(list) => {
                let (cost, inside) = self.all(list.elements.iter(), deeper);
                let made = inside.made.max(list.elements.len() as u64);
                (cost, Values { made, ..inside })
            }
            Expr::Map(map) => {
                let parts = map.entries.iter().flat_map(|entry| match &entry.expr {
                    EntryExpr::MapEntry(entry) => vec![&entry.key, &entry.value],
                    EntryExpr::StructField(field) => vec![&field.value],
                });
                let (cost, inside) = self.all(parts, deeper);
                let made = inside.made.max(map.entries.len() as u64);
                (cost, Values { made, ..inside })
            }
            Expr::Struct(_) => (1, Values::default()),
            Expr::Call(call) => {
                let target = call.target.as_deref();
                let mut parts = target.into_iter().chain(call.args.iter());
                if call.func_name == "_+_"
                    && let (Some(a), Some(b)) = (parts.next(), parts.next())
                {
                    let ((cost, a), (more, b)) =
                        (self.cost(&a.expr, deeper), self.cost(&b.expr, deeper));
                    let made = a.length().saturating_add(b.length());
                    let cost = cost.saturating_add(more).saturating_add(1);
                    return (cost, Values { made, ..a.and(b) });
                }
                let (cost, inside) = self.all(parts, deeper);
                let own = match call.func_name.as_str() {
                    // Reads texts through.
                    "contains" | "matches" | "find" | "findAll" | "split" | "replace"
                    | "indexOf" | "lastIndexOf" => 1 + inside.length() / 10,
                    "_&&_" | "_||_" | "_?_:_" | "!_" | "@not_strictly_false" => 0,
                    _ => 1,
                };
                // What comes out is made of what went in, or an element of it.
                let out = match call.func_name.as_str() {
                    "_[_]" | "_?._" | "_[?_]" => inside.elements(),
                    _ => inside,
                };
                (cost.saturating_add(own), out)
            }
            Expr::Comprehension(inner) => {
                let (of_range, range) = self.cost(&inner.iter_range.expr, deeper);
                let (of_start, start) = self.cost(&inner.accu_init.expr, deeper);
                let times = range.length();
                let before = self.scope.len();
                // A list may hold what it was made of as well as what is inside of that.
                let element = range.elements().and(range.clone());
                self.scope.push((inner.iter_var.clone(), element.clone()));
                if let Some(second) = &inner.iter_var2 {
                    self.scope.push((second.clone(), element.clone()));
                }
                let made = times.max(start.made).max(element.made);
                let result = Values {
                    made,
                    ..start.and(element)
                };
                self.scope.push((inner.accu_var.clone(), result.clone()));
                let (of_condition, _) = self.cost(&inner.loop_cond.expr, deeper);
                let (of_step, made) = self.cost(&inner.loop_step.expr, deeper);
                let (of_result, _) = self.cost(&inner.result.expr, deeper);
                self.scope.truncate(before);
                let body = of_condition.saturating_add(of_step).max(1);
                let cost = [of_start, of_result, body.saturating_mul(times)]
                    .into_iter()
                    .fold(of_range, u64::saturating_add);
                (cost, result.and(made))
            }
        }
    }

    fn all<'e>(
        &mut self,
        parts: impl Iterator<Item = &'e IdedExpr>,
        depth: usize,
    ) -> (u64, Values<'v>) {
        let mut sum = (0_u64, Values::default());
        for part in parts {
            let (cost, values) = self.cost(&part.expr, depth);
            sum = (sum.0.saturating_add(cost), sum.1.and(values));
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use kube_cel::cel::Program;
    use serde_json::json;

    use super::*;

    fn bound_of(expression: &str, object: &Value) -> u64 {
        let program = Program::compile(expression).unwrap();
        bound(program.expression(), &[("object".to_owned(), object)])
    }

    #[test]
    fn nested_loops_multiply_and_others_add() {
        let object = json!({"a": [1, 2, 3, 4], "b": {"c": ["x", "y"]}});
        let one = bound_of("object.a.all(x, x > 0)", &object);
        assert!((4..100).contains(&one), "{one}");
        let two = bound_of("object.a.all(x, object.a.all(y, x > y))", &object);
        assert!(two > 3 * one && two < 20 * one, "{one} {two}");
        let beside = bound_of("object.a.all(x, x > 0) && object.a.all(x, x > 0)", &object);
        assert!(beside < 3 * one, "{beside}");
    }

    #[test]
    fn a_rule_costs_what_its_schema_lets_it() {
        let cost = |rule: &str, schema: &Value| {
            bound_of_rule(Program::compile(rule).unwrap().expression(), schema)
        };
        let list = |of: Value| json!({"type": "array", "items": of});
        let text = json!({"type": "string"});
        let nested = list(list(list(text.clone())));
        let all = "self.all(a, a.all(b, b.all(c, c.contains('x'))))";
        assert!(cost(all, &nested) > LIMIT);
        let limited = json!({"type": "array", "maxItems": 10, "items": {
            "type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 100},
        }});
        let all = "self.all(a, a.all(b, b.contains('x')))";
        assert!(cost(all, &limited) < LIMIT / 100);
        // As upstream: numbers may be many, texts not.
        let numbers = list(json!({"type": "integer"}));
        assert!(cost("self.all(x, x > 0)", &numbers) < LIMIT);
        assert!(cost("self.all(x, x.contains('a'))", &list(text)) > LIMIT);
        assert!(cost("self.a <= self.b", &json!({"type": "object"})) < 10);
        assert_eq!(repeats(&limited), 10);
    }

    #[test]
    fn a_bomb_is_above_the_limit_and_the_usual_is_far_below() {
        let tens = (0..8).fold("true".to_owned(), |body, n| {
            format!("[0,1,2,3,4,5,6,7,8,9].all(v{n}, {body})")
        });
        assert!(bound_of(&tens, &json!({})) > LIMIT);
        let grown = "[0,1,2,3,4,5,6,7,8,9].map(a, [0,1,2,3,4,5,6,7,8,9])";
        let texts = json!({"list": vec!["x".repeat(100); 1000]});
        assert!(bound_of(&format!("{grown}.all(x, x.size() > 0)"), &json!({})) < LIMIT);
        assert!(bound_of("object.list.all(x, x.contains('y'))", &texts) < LIMIT);
        let pod =
            json!({"spec": {"containers": vec![json!({"ports": vec![json!({"p": 1}); 50]}); 20]}});
        let usual = "object.spec.containers.all(c, c.ports.all(p, p.p > 0 && p.p < 70000))";
        assert!(bound_of(usual, &pod) < LIMIT / 100);
    }
}
