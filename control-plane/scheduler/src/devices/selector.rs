//! Whether a device is what an expression asks for: CEL over the variable `device`.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
};

use k8s_openapi::api::resource::v1::{Device, DeviceAttribute};
use kube_cel::{
    KubeCelExt as _,
    cel::{
        Context, Program, Value,
        objects::{Key, Map},
    },
};
use parking_lot::Mutex;

/// Programs are kept by their text: they are few, and run for every device.
const KEPT: usize = 1024;

type Compiled = Result<Arc<Program>, String>;

static PROGRAMS: LazyLock<Mutex<HashMap<String, Compiled>>> = LazyLock::new(Mutex::default);

thread_local! {
    static BASE: Context<'static> = Context::default().with_all();
}

fn compile(expression: &str) -> Compiled {
    let mut programs = PROGRAMS.lock();
    if let Some(known) = programs.get(expression) {
        return known.clone();
    }
    let compiled = catch_unwind(|| Program::compile(expression).map_err(|error| error.to_string()))
        .unwrap_or_else(|_| Err("the expression cannot be understood".to_owned()))
        .map(Arc::new);
    if programs.len() >= KEPT {
        programs.clear();
    }
    programs.insert(expression.to_owned(), compiled.clone());
    compiled
}

fn run(expression: &str, variables: &[(&str, Value)]) -> Result<Value, String> {
    let program = compile(expression)?;
    // The evaluator panics at names that it does not know; users write them.
    let result = catch_unwind(AssertUnwindSafe(|| {
        BASE.with(|base| {
            let mut context = base.new_inner_scope();
            for (name, value) in variables {
                context.add_variable_from_value(*name, value.clone());
            }
            program.execute(&context).map_err(|error| error.to_string())
        })
    }));
    result.unwrap_or_else(|_| Err("the expression names what is not there".to_owned()))
}

/// Whether the expression holds for a device.
pub(super) fn matches(expression: &str, device: &Value) -> Result<bool, String> {
    match run(expression, &[("device", device.clone())])? {
        Value::Bool(verdict) => Ok(verdict),
        other => Err(format!(
            "the expression gives {:?}, not a bool",
            other.type_of()
        )),
    }
}

/// A device as expressions see it.
pub(super) fn described(driver: &str, device: &Device) -> Value {
    let mut attributes: HashMap<String, HashMap<Key, Value>> = HashMap::new();
    for (name, attribute) in device.attributes.iter().flatten() {
        let (domain, id) = qualified(driver, name);
        let entry = attributes.entry(domain.to_owned()).or_default();
        entry.insert(key(id), attribute_value(attribute));
    }
    let mut capacity: HashMap<String, HashMap<Key, Value>> = HashMap::new();
    for (name, amount) in device.capacity.iter().flatten() {
        let (domain, id) = qualified(driver, name);
        let amount = Value::from(amount.value.0.clone());
        let amount = run("quantity(v)", &[("v", amount)]).unwrap_or(Value::Null);
        let entry = capacity.entry(domain.to_owned()).or_default();
        entry.insert(key(id), amount);
    }
    let shared = device.allow_multiple_allocations.unwrap_or(false);
    map([
        (key("driver"), Value::from(driver)),
        (key("attributes"), by_domain(attributes)),
        (key("capacity"), by_domain(capacity)),
        (key("allowMultipleAllocations"), Value::Bool(shared)),
    ]
    .into())
}

/// Names without a domain are in the driver's own.
pub(super) fn qualified<'a>(driver: &'a str, name: &'a str) -> (&'a str, &'a str) {
    name.split_once('/').unwrap_or((driver, name))
}

fn attribute_value(attribute: &DeviceAttribute) -> Value {
    if let Some(value) = attribute.bool {
        return Value::Bool(value);
    }
    if let Some(value) = attribute.int {
        return Value::Int(value);
    }
    if let Some(value) = &attribute.string {
        return Value::from(value.as_str());
    }
    let version = attribute.version.clone().unwrap_or_default();
    run("semver(v)", &[("v", Value::from(version))]).unwrap_or(Value::Null)
}

fn by_domain(domains: HashMap<String, HashMap<Key, Value>>) -> Value {
    let domains = domains.into_iter();
    map(domains
        .map(|(domain, entries)| (key(&domain), map(entries)))
        .collect())
}

fn map(entries: HashMap<Key, Value>) -> Value {
    Value::Map(Map {
        map: Arc::new(entries),
    })
}

fn key(name: &str) -> Key {
    Key::String(Arc::new(name.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn expressions_see_driver_attributes_and_capacity() {
        let device = json!({"name": "gpu-0",
            "attributes": {"model": {"string": "a100"}, "index": {"int": 3}, "healthy": {"bool": true},
                           "other.example/driverVersion": {"version": "2.1.0"}},
            "capacity": {"memory": {"value": "40Gi"}}});
        let device: Device = serde_json::from_value(device).unwrap();
        let seen = described("gpu.example", &device);
        for (expression, verdict) in [
            (r#"device.driver == "gpu.example""#, true),
            (r#"device.attributes["gpu.example"].model == "a100""#, true),
            (r#"device.attributes["gpu.example"].index > 3"#, false),
            (r#"device.attributes["gpu.example"].healthy"#, true),
            (
                r#"device.capacity["gpu.example"].memory.compareTo(quantity("20Gi")) >= 0"#,
                true,
            ),
            (
                r#"device.attributes["other.example"].driverVersion.isGreaterThan(semver("2.0.0"))"#,
                true,
            ),
            (r#""absent.example" in device.attributes"#, false),
            ("!device.allowMultipleAllocations", true),
        ] {
            assert_eq!(matches(expression, &seen), Ok(verdict), "{expression}");
        }
        for broken in ["device.driver", "nothing.here", "device.attributes[", "1 +"] {
            assert!(matches(broken, &seen).is_err(), "{broken}");
        }
    }
}
