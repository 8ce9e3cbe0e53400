//! DefaultStorageClass and DefaultIngressClass: what names no class gets the one that is marked as default.

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use super::{Attributes, Operation, Plugin};
use crate::cacher::Filter;

/// A kind whose objects get a class, and where their classes are.
pub(super) struct DefaultClass {
    group: &'static str,
    plural: &'static str,
    /// The field of `spec` that names the class.
    field: &'static str,
    /// The annotation that named it before there was the field.
    old_annotation: &'static str,
    class_group: &'static str,
    class_plural: &'static str,
    /// Annotations of which `"true"` marks the default.
    marks: &'static [&'static str],
}

pub(super) const STORAGE: DefaultClass = DefaultClass {
    group: "",
    plural: "persistentvolumeclaims",
    field: "storageClassName",
    old_annotation: "volume.beta.kubernetes.io/storage-class",
    class_group: "storage.k8s.io",
    class_plural: "storageclasses",
    marks: &[
        "storageclass.kubernetes.io/is-default-class",
        "storageclass.beta.kubernetes.io/is-default-class",
    ],
};

pub(super) const INGRESS: DefaultClass = DefaultClass {
    group: "networking.k8s.io",
    plural: "ingresses",
    field: "ingressClassName",
    old_annotation: "kubernetes.io/ingress.class",
    class_group: "networking.k8s.io",
    class_plural: "ingressclasses",
    marks: &["ingressclass.kubernetes.io/is-default-class"],
};

#[async_trait]
impl Plugin for DefaultClass {
    async fn admit(&self, attributes: &Attributes<'_>, object: &mut Value) -> Result<(), ApiError> {
        let concerned = attributes.operation == Operation::Create
            && attributes.subresource.is_empty()
            && attributes.is(self.group, self.plural);
        if !concerned || !self.lacks_class(object) {
            return Ok(());
        }
        let server = &attributes.context.server;
        let Some(classes) = server.cacher(self.class_group, self.class_plural) else {
            return Ok(());
        };
        let everything = Filter::new(&classes.resource, None, None, None)?;
        let classes: Vec<Value> = classes
            .entries(&everything)
            .iter()
            .map(|entry| entry.decode())
            .collect::<Result<_, _>>()?;
        if let Some(class) = self.default_of(&classes) {
            object["spec"][self.field] = class.into();
        }
        Ok(())
    }
}

impl DefaultClass {
    /// An empty name is a choice: no class.
    fn lacks_class(&self, object: &Value) -> bool {
        object["spec"][self.field].is_null()
            && meta::annotation(object, self.old_annotation).is_none()
    }

    /// The newest of the classes that are marked; of equally old ones the first by name.
    fn default_of<'a>(&self, classes: &'a [Value]) -> Option<&'a str> {
        let marked = classes.iter().filter(|class| {
            let marks = &mut self.marks.iter();
            marks.any(|mark| meta::annotation(class, mark) == Some("true"))
        });
        let newest = marked.max_by(|a, b| {
            let age = meta::creation_timestamp(a).cmp(&meta::creation_timestamp(b));
            age.then_with(|| meta::name(b).cmp(meta::name(a)))
        });
        newest.map(meta::name)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(name: &str, created: &str, mark: &str) -> Value {
        json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": {STORAGE.marks[0]: mark}}})
    }

    #[test]
    fn the_newest_marked_class_is_the_default() {
        let (older, newer) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
        let table = [
            (vec![], None),
            (vec![class("a", older, "false")], None),
            (
                vec![class("a", older, "true"), class("b", newer, "true")],
                Some("b"),
            ),
            (
                vec![class("b", older, "true"), class("a", older, "true")],
                Some("a"),
            ),
            (
                vec![class("a", older, "true"), class("b", newer, "false")],
                Some("a"),
            ),
        ];
        for (classes, expected) in table {
            assert_eq!(STORAGE.default_of(&classes), expected, "{classes:?}");
        }
    }

    #[test]
    fn a_stated_class_stays() {
        let table = [
            (json!({"spec": {}}), true),
            (json!({"spec": {"storageClassName": ""}}), false),
            (json!({"spec": {"storageClassName": "x"}}), false),
            (
                json!({"metadata": {"annotations": {STORAGE.old_annotation: "x"}}, "spec": {}}),
                false,
            ),
        ];
        for (claim, lacks) in table {
            assert_eq!(STORAGE.lacks_class(&claim), lacks, "{claim}");
        }
    }
}
