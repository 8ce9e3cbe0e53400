//! Conversion between the versions of a custom resource: by name alone, or by a webhook.
//!
//! Objects are stored in whichever version was the storage version when they were written, and without defaults
//! that their schema got later. So reading prunes and defaults by the schema of the version that an object is stored in,
//! then converts it, then prunes it by that of the version it is served in (upstream's order).
//!
//! Handlers convert in the middle of synchronous work (a patch's loop, a list's stream), so a webhook is waited
//! for in place: the runtime's other tasks go to another thread meanwhile. Lists convert all objects in one call.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::{Handle, RuntimeFlavor};
use windlass_api::resource::{Column, Convert, CustomVersion, Strategy, Subresource};
use windlass_machinery::schema::{Schema, TypeId};
use windlass_machinery::status::ApiError;
use windlass_machinery::{defaults, fields};

use super::strategy::{self, CustomResource};
use crate::outbound::Hook;
use crate::server::ApiServer;

/// As long as upstream waits for a conversion webhook.
const TIMEOUT: Duration = Duration::from_secs(30);

/// What all versions of a definition share.
pub(super) struct Versions {
    kind: String,
    /// `apiVersion` of the storage version.
    storage: String,
    /// By `apiVersion`.
    forms: HashMap<String, Form>,
    webhook: Option<Webhook>,
}

/// What objects look like in one version.
pub(super) struct Form {
    pub(super) schema: Arc<Schema>,
    pub(super) type_id: TypeId,
    pub(super) has_defaults: bool,
}

struct Webhook {
    hook: Hook,
    /// Weak: what is served belongs to the server.
    server: Weak<ApiServer>,
}

impl Versions {
    pub(super) fn new(
        definition: &Value,
        kind: &str,
        storage: String,
        server: &Weak<ApiServer>,
    ) -> Self {
        let conversion = &definition["spec"]["conversion"];
        let webhook = (conversion["strategy"] == "Webhook").then(|| Webhook {
            hook: Hook::new(&conversion["webhook"]["clientConfig"], TIMEOUT),
            server: server.clone(),
        });
        Self {
            kind: kind.to_owned(),
            storage,
            forms: HashMap::new(),
            webhook,
        }
    }

    pub(super) fn add(&mut self, api_version: String, form: Form) {
        self.forms.insert(api_version, form);
    }

    /// Whether reading a version that is also the storage version changes anything.
    pub(super) fn has_defaults(&self) -> bool {
        self.forms.values().any(|form| form.has_defaults)
    }

    fn form(&self, object: &Value) -> Option<&Form> {
        self.forms.get(object["apiVersion"].as_str()?)
    }

    fn fill(&self, object: &mut Value) {
        if let Some(form) = self.form(object).filter(|form| form.has_defaults) {
            defaults::apply(&form.schema, form.type_id, object);
        }
    }

    /// Takes away what the object's version does not have.
    fn prune(&self, object: &mut Value) {
        if self.forms.len() > 1
            && let Some(form) = self.form(object)
        {
            fields::check(&form.schema, form.type_id, object);
        }
    }

    /// Brings all objects to `wanted`.
    fn convert(&self, objects: &mut [Value], wanted: &str) -> Result<(), ApiError> {
        let mut others: Vec<&mut Value> = objects
            .iter_mut()
            .filter(|object| object["apiVersion"] != wanted)
            .collect();
        if others.is_empty() {
            return Ok(());
        }
        let Some(webhook) = &self.webhook else {
            for object in others {
                object["apiVersion"] = wanted.into();
            }
            return Ok(());
        };
        let asked: Vec<Value> = others.iter().map(|object| (**object).clone()).collect();
        let answered = wait_for(webhook.ask(wanted, &asked)).map_err(|why| {
            ApiError::internal(format!(
                "conversion webhook for {}, Kind={} failed: {why}",
                asked[0]["apiVersion"].as_str().unwrap_or_default(),
                self.kind
            ))
        })?;
        for (object, converted) in others.iter_mut().zip(answered) {
            **object = with_own_metadata(converted, object);
        }
        Ok(())
    }
}

impl Webhook {
    async fn ask(&self, wanted: &str, objects: &[Value]) -> Result<Vec<Value>, String> {
        let server = self.server.upgrade().ok_or("the server shuts down")?;
        let uid = uuid::Uuid::new_v4().to_string();
        let review = json!({
            "kind": "ConversionReview",
            "apiVersion": "apiextensions.k8s.io/v1",
            "request": {"uid": uid, "desiredAPIVersion": wanted, "objects": objects},
        });
        let answer = self.hook.post(&server, &review).await?;
        read(&answer, &uid, wanted, objects)
    }
}

/// Reads the answer to the question `uid`.
fn read(answer: &[u8], uid: &str, wanted: &str, asked: &[Value]) -> Result<Vec<Value>, String> {
    let mut review: Value =
        serde_json::from_slice(answer).map_err(|e| format!("the response is no JSON: {e}"))?;
    let response = &mut review["response"];
    if response["uid"] != uid {
        return Err(format!(
            "expected response.uid={uid:?}, got {}",
            response["uid"]
        ));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str();
        return Err(message.unwrap_or("the webhook gave no reason").to_owned());
    }
    let Value::Array(converted) = response["convertedObjects"].take() else {
        return Err("response.convertedObjects is no list".to_owned());
    };
    if converted.len() != asked.len() {
        return Err(format!(
            "expected {} converted objects, got {}",
            asked.len(),
            converted.len()
        ));
    }
    for (i, (new, old)) in converted.iter().zip(asked).enumerate() {
        if new["apiVersion"] != wanted || new["kind"] != old["kind"] {
            return Err(format!(
                "response.convertedObjects[{i}] is no {wanted}, Kind={}",
                old["kind"].as_str().unwrap_or_default()
            ));
        }
        for field in ["name", "namespace", "uid"] {
            if new["metadata"][field] != old["metadata"][field] {
                return Err(format!(
                    "response.convertedObjects[{i}].metadata.{field} was changed"
                ));
            }
        }
    }
    Ok(converted)
}

/// Webhooks may change labels and annotations, and nothing else of the metadata.
fn with_own_metadata(mut converted: Value, original: &Value) -> Value {
    let mut metadata = original["metadata"].clone();
    for field in ["labels", "annotations"] {
        let value = converted["metadata"][field].take();
        if let Some(map) = metadata.as_object_mut() {
            if value.is_null() {
                map.remove(field);
            } else {
                map.insert(field.to_owned(), value);
            }
        }
    }
    converted["metadata"] = metadata;
    converted
}

fn wait_for<T>(future: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    let runtime = Handle::current();
    if runtime.runtime_flavor() == RuntimeFlavor::CurrentThread {
        return Err("a runtime of one thread cannot wait for a webhook".to_owned());
    }
    tokio::task::block_in_place(|| runtime.block_on(future))
}

/// One served version.
pub(super) struct Version {
    pub(super) api_version: String,
    pub(super) selectable: &'static [&'static str],
    pub(super) strategy: Arc<CustomResource>,
    pub(super) columns: Vec<Column>,
    pub(super) subresources: Vec<Subresource>,
    pub(super) shared: Arc<Versions>,
}

impl Convert for Version {
    fn store(&self, objects: &mut [Value]) -> Result<(), ApiError> {
        objects
            .iter_mut()
            .for_each(|object| self.shared.fill(object));
        self.shared.convert(objects, &self.shared.storage)
    }

    fn serve(&self, objects: &mut [Value]) -> Result<(), ApiError> {
        for object in objects.iter_mut() {
            self.shared.prune(object);
            self.shared.fill(object);
        }
        self.shared.convert(objects, &self.api_version)?;
        objects
            .iter_mut()
            .for_each(|object| self.shared.prune(object));
        Ok(())
    }
}

impl CustomVersion for Version {
    fn asked(&self, objects: &mut [Value]) -> Result<(), ApiError> {
        self.shared.convert(objects, &self.api_version)
    }

    fn strategy(&self) -> &dyn Strategy {
        &*self.strategy
    }

    fn columns(&self) -> &[Column] {
        &self.columns
    }

    fn subresources(&self) -> &[Subresource] {
        &self.subresources
    }

    fn selectable(&self) -> &'static [&'static str] {
        self.selectable
    }

    fn field(&self, object: &Value, name: &str) -> String {
        strategy::field(object, name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(version: &str) -> Value {
        json!({"apiVersion": version, "kind": "W", "metadata": {"name": "a", "uid": "1", "labels": {"a": "b"}}})
    }

    #[test]
    fn an_answer_must_fit_its_question() {
        let asked = [object("x/v1")];
        let answer = |response: Value| {
            let review = json!({"kind": "ConversionReview", "response": response});
            read(review.to_string().as_bytes(), "u", "x/v2", &asked)
        };
        let success = json!({"status": "Success"});
        let fits = json!({"uid": "u", "result": success, "convertedObjects": [object("x/v2")]});
        assert_eq!(answer(fits.clone()).unwrap(), [object("x/v2")]);
        let mut other = fits.clone();
        other["uid"] = "v".into();
        assert!(answer(other).unwrap_err().contains("response.uid"));
        let mut renamed = fits.clone();
        renamed["convertedObjects"][0]["metadata"]["name"] = "b".into();
        assert!(answer(renamed).unwrap_err().contains("metadata.name"));
        let failed = json!({"uid": "u", "result": {"status": "Failed", "message": "no way"}});
        assert_eq!(answer(failed).unwrap_err(), "no way");
        let few = json!({"uid": "u", "result": success, "convertedObjects": []});
        assert!(answer(few).unwrap_err().contains("expected 1"));
    }

    #[test]
    fn a_webhook_changes_labels_but_no_owners() {
        let mut converted = object("x/v2");
        converted["metadata"] = json!({"name": "a", "labels": {"c": "d"}, "finalizers": ["f"]});
        assert_eq!(
            with_own_metadata(converted, &object("x/v1"))["metadata"],
            json!({"name": "a", "uid": "1", "labels": {"c": "d"}})
        );
    }
}
