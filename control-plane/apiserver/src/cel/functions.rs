//! Standard functions that the evaluator lacks: `type`, `dyn` and `bool`, and the types that values are compared with.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, Map, Opaque};
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

/// A type as a value.
#[derive(Clone, Debug, PartialEq, Eq)]
struct TypeName(&'static str);

impl Opaque for TypeName {
    fn runtime_type_name(&self) -> &str {
        "type"
    }
}

/// Types that have names of one word.
pub(super) const STANDARD_TYPES: [&str; 10] = [
    "bool",
    "bytes",
    "double",
    "int",
    "list",
    "map",
    "null_type",
    "string",
    "type",
    "uint",
];
const TIMESTAMP: &str = "Timestamp";
const DURATION: &str = "Duration";

fn named(name: &'static str) -> Cel {
    Cel::Opaque(Arc::new(TypeName(name)))
}

fn map(entries: impl IntoIterator<Item = (&'static str, Cel)>) -> Cel {
    let entries = entries
        .into_iter()
        .map(|(name, value)| (Key::String(Arc::new(name.to_owned())), value));
    let map: HashMap<Key, Cel> = entries.collect();
    Cel::Map(Map { map: Arc::new(map) })
}

pub(super) fn define(context: &mut Context<'static>) {
    for name in STANDARD_TYPES {
        context.add_variable_from_value(name, named(name));
    }
    let protobuf = map([TIMESTAMP, DURATION].map(|name| (name, named(name))));
    context.add_variable_from_value("google", map([("protobuf", protobuf)]));
    context.add_function("type", |value: Cel| -> ResolveResult {
        Ok(type_of(&value))
    });
    context.add_function("dyn", |value: Cel| -> ResolveResult { Ok(value) });
    context.add_function("bool", |value: Cel| -> ResolveResult {
        match &value {
            Cel::Bool(_) => Ok(value),
            Cel::String(text) => match text.as_str() {
                "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Cel::Bool(true)),
                "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Cel::Bool(false)),
                _ => Err(ExecutionError::function_error(
                    "bool",
                    "type conversion error",
                )),
            },
            _ => Err(ExecutionError::NoSuchOverload),
        }
    });
}

fn type_of(value: &Cel) -> Cel {
    named(match value {
        Cel::Bool(_) => "bool",
        Cel::Bytes(_) => "bytes",
        Cel::Float(_) => "double",
        Cel::Int(_) => "int",
        Cel::UInt(_) => "uint",
        Cel::List(_) => "list",
        Cel::Map(_) => "map",
        Cel::Null => "null_type",
        Cel::String(_) => "string",
        Cel::Timestamp(_) => TIMESTAMP,
        Cel::Duration(_) => DURATION,
        Cel::Opaque(_) | Cel::Function(..) => "type",
    })
}

#[cfg(test)]
mod tests {
    use kube_cel::cel::Program;

    #[test]
    fn types_are_values() {
        for text in [
            "type(1) == int && type('a') == string && type(1) != type('a')",
            "type([1]) == list && type({'a': 1}) == map && type(null) == null_type && type(1.5) == double",
            "type(duration('1s')) == google.protobuf.Duration",
            "dyn(1) == 1 && bool('true') && !bool('0')",
            "type(int) == type",
        ] {
            let program = Program::compile(text).unwrap();
            let answer = super::super::program::with_context(|context| program.execute(context));
            assert_eq!(answer.unwrap(), true.into(), "{text}");
        }
    }
}
