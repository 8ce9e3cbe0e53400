//! Functions that make maps, for the macros that do ([`super::syntax`]).

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, ExecutionError, ResolveResult, Value as Cel};

pub(super) fn define(context: &mut Context<'static>) {
    context.add_function("mapOfPairs", |pairs: Arc<Vec<Cel>>| {
        let entries = pairs.iter().map(|pair| match pair {
            Cel::List(pair) => match pair.as_slice() {
                [key, value] => Ok((key_of(key)?, value.clone())),
                _ => Err(failed("transformMap", "an entry is no pair")),
            },
            _ => Err(failed("transformMap", "an entry is no pair")),
        });
        map_of(entries)
    });
    context.add_function("mapOfMaps", |maps: Arc<Vec<Cel>>| {
        let mut entries = Vec::new();
        for map in maps.iter() {
            let Cel::Map(map) = map else {
                return Err(failed("transformMapEntry", "must evaluate to a map"));
            };
            entries.extend(map.map.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        let mut made = HashMap::new();
        for (key, value) in entries {
            if made.insert(key.clone(), value).is_some() {
                return Err(failed(
                    "transformMapEntry",
                    &format!("insert failed: key {key} already exists"),
                ));
            }
        }
        Ok(Cel::Map(Map {
            map: Arc::new(made),
        }))
    });
}

fn map_of(entries: impl Iterator<Item = Result<(Key, Cel), ExecutionError>>) -> ResolveResult {
    let map: HashMap<Key, Cel> = entries.collect::<Result<_, _>>()?;
    Ok(Cel::Map(Map { map: Arc::new(map) }))
}

fn key_of(value: &Cel) -> Result<Key, ExecutionError> {
    match value {
        Cel::String(text) => Ok(Key::String(text.clone())),
        Cel::Int(number) => Ok(Key::Int(*number)),
        Cel::UInt(number) => Ok(Key::Uint(*number)),
        Cel::Bool(truth) => Ok(Key::Bool(*truth)),
        _ => Err(failed("transformMap", "no key for a map")),
    }
}

fn failed(function: &str, why: &str) -> ExecutionError {
    ExecutionError::function_error(function, why)
}
