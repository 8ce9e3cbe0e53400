//! What a kind is: a [`Resource`] descriptor and the [`Strategy`] that holds its own rules.
//!
//! Everything else (storage, patches, watches, tables, discovery, OpenAPI) is generic code in the API server
//! that reads the descriptor. Custom resources produce the same descriptor at run time, hence owned strings.

use std::borrow::Cow;
use std::sync::Arc;

use serde_json::Value;
use windlass_machinery::schema::{Schema, TypeId};
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::Errors;

pub type Text = Cow<'static, str>;

/// A served resource, such as `deployments.apps`.
#[derive(Clone)]
pub struct Resource {
    /// `""` for the core group.
    pub group: Text,
    pub kind: Text,
    pub list_kind: Text,
    pub plural: Text,
    pub singular: Text,
    pub short_names: Vec<Text>,
    pub categories: Vec<Text>,
    pub namespaced: bool,
    /// Served versions, the preferred one first.
    pub versions: Vec<Version>,
    /// The index in `versions` of the one that is stored.
    pub storage: usize,
    pub verbs: Verbs,
    pub subresources: Vec<Subresource>,
    /// The key prefix in the store without a trailing slash, such as `/registry/services/specs`.
    pub prefix: Text,
    /// What `kubectl get` shows. NAME comes first and is not listed, unless a column has the format `name`
    /// (Events show it last); then [`Strategy::row`] gives its cell too.
    pub columns: Vec<Column>,
    pub name_rule: NameRule,
    /// How long an object lives after its last write; Events have one.
    pub ttl: Option<std::time::Duration>,
    pub strategy: Arc<dyn Strategy>,
}

/// One served version of a [`Resource`].
#[derive(Clone)]
pub struct Version {
    /// `v1`, `v1beta1`, …
    pub name: Text,
    pub schema: Arc<Schema>,
    /// The kind's type in `schema`.
    pub type_id: TypeId,
    /// Value -> Value, from this version to the storage version and back; `None` where they are the same.
    pub convert: Option<Conversion>,
    /// Whether requests can name it; objects may be stored in a version that is served no more.
    pub served: bool,
    /// The `Warning` that every request for this version is answered with.
    pub deprecation: Option<Text>,
    /// The OpenAPI v3 schema to publish; built-in types are described elsewhere.
    pub openapi: Option<Arc<Value>>,
}

impl Resource {
    /// What differs in one of the versions from the storage version, whose properties are the resource's.
    pub fn own(&self, version: usize) -> Option<&dyn CustomVersion> {
        match &self.versions[version].convert {
            Some(Conversion::Custom(custom)) if version != self.storage => Some(&**custom),
            _ => None,
        }
    }

    /// The subresources in the version of this name.
    pub fn subresources_in(&self, version: &str) -> &[Subresource] {
        let at = self.versions.iter().position(|v| v.name == version);
        let own = at.and_then(|at| self.own(at));
        own.map_or(&self.subresources, |own| own.subresources())
    }
}

/// Conversion between a served version and the storage version. `apiVersion` is set by the caller, to the
/// resource's own group; a version that is stored as another group's kind (events.k8s.io, whose only version has
/// a conversion) sets it itself in `to_storage`, and the caller leaves that alone.
#[derive(Clone)]
pub enum Conversion {
    /// Between built-in versions.
    Fixed {
        to_storage: fn(&mut Value),
        from_storage: fn(&mut Value),
    },
    /// Between the versions of a custom resource. It sets `apiVersion` itself.
    Custom(Arc<dyn CustomVersion>),
}

impl Convert for Conversion {
    fn store(&self, objects: &mut [Value]) -> Result<(), ApiError> {
        match self {
            Self::Fixed { to_storage, .. } => objects.iter_mut().for_each(to_storage),
            Self::Custom(custom) => custom.store(objects)?,
        }
        Ok(())
    }

    fn serve(&self, objects: &mut [Value]) -> Result<(), ApiError> {
        match self {
            Self::Fixed { from_storage, .. } => objects.iter_mut().for_each(from_storage),
            Self::Custom(custom) => custom.serve(objects)?,
        }
        Ok(())
    }
}

/// The conversion of objects, for which, if they are custom resources, another server may have to be asked for.
pub trait Convert: Send + Sync + 'static {
    /// From the served version to the storage version.
    ///
    /// # Errors
    /// When whoever converts fails.
    fn store(&self, objects: &mut [Value]) -> Result<(), ApiError>;

    /// From whichever version each object is stored in to the served version, with the defaults that it was
    /// stored without.
    ///
    /// # Errors
    /// When whoever converts fails.
    fn serve(&self, objects: &mut [Value]) -> Result<(), ApiError>;
}

/// One served version of a custom resource, which has selectable fields, rules, columns and subresources of its own.
pub trait CustomVersion: Convert {
    /// Brings objects that were made of requests for this version back to it, with all that was asked for: also what the
    /// storage version has no place for, which serving them leaves out.
    ///
    /// # Errors
    /// When whoever converts fails.
    fn asked(&self, objects: &mut [Value]) -> Result<(), ApiError>;

    /// The rules of objects in this version.
    fn strategy(&self) -> &dyn Strategy;

    /// As [`Resource::columns`].
    fn columns(&self) -> &[Column];

    /// As [`Resource::subresources`].
    fn subresources(&self) -> &[Subresource];

    /// The fields, beside name and namespace, by which objects can be selected in the served version.
    fn selectable(&self) -> &'static [&'static str] {
        &[]
    }

    /// The value of such a field of an object in the served version.
    fn field(&self, _object: &Value, _name: &str) -> String {
        String::new()
    }
}

/// Which verbs the main resource answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbs {
    /// create, delete, deletecollection, get, list, patch, update, watch
    All,
    /// The same: custom resources, whose verbs are listed in another order
    Custom,
    /// All but create, though changes are not announced: custom resources whose definition is being deleted
    Ending,
    /// All but deletecollection: namespaces
    OneByOne,
    /// create only: reviews, bindings
    Create,
    /// get and list of what is not stored: componentstatuses, metrics
    Read,
}

impl Verbs {
    /// Whether objects of the resource are stored.
    pub fn stores(self) -> bool {
        matches!(
            self,
            Self::All | Self::Custom | Self::Ending | Self::OneByOne
        )
    }

    /// In the order in which discovery lists them.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Self::All => &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ],
            Self::Custom => &[
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ],
            Self::Ending => &["delete", "deletecollection", "get", "list", "watch"],
            Self::OneByOne => &[
                "create", "delete", "get", "list", "patch", "update", "watch",
            ],
            Self::Create => &["create"],
            Self::Read => &["get", "list"],
        }
    }
}

/// What may follow an object's name in the path.
#[derive(Clone, Debug, PartialEq)]
pub enum Subresource {
    /// Its own write path: a main-resource write keeps the old status, a status write keeps the rest.
    Status,
    Scale(ScalePaths),
    /// Pods.
    Binding,
    Eviction,
    EphemeralContainers,
    Resize,
    Log,
    Exec,
    Attach,
    PortForward,
    /// Pods, Services, Nodes.
    Proxy,
    /// ServiceAccounts.
    Token,
    /// CertificateSigningRequests.
    Approval,
    /// Namespaces.
    Finalize,
}

impl Subresource {
    /// The path segment.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Scale(_) => "scale",
            Self::Binding => "binding",
            Self::Eviction => "eviction",
            Self::EphemeralContainers => "ephemeralcontainers",
            Self::Resize => "resize",
            Self::Log => "log",
            Self::Exec => "exec",
            Self::Attach => "attach",
            Self::PortForward => "portforward",
            Self::Proxy => "proxy",
            Self::Token => "token",
            Self::Approval => "approval",
            Self::Finalize => "finalize",
        }
    }
}

/// Where a scalable kind keeps its numbers, as JSON pointers.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePaths {
    pub spec_replicas: Text,
    pub status_replicas: Text,
    /// A LabelSelector object, a plain map (ReplicationController), or a string (custom resources).
    pub selector: Option<Text>,
}

/// A column of `kubectl get`; the cells come from [`Strategy::row`], after NAME.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: Text,
    /// `string`, `integer`, `date`, …
    pub kind: Text,
    pub format: Text,
    pub description: Text,
    /// 0 is always shown, 1 only with `-o wide`.
    pub priority: i32,
}

/// Which names an object may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, the most common.
    DnsSubdomain,
    /// RFC 1123 label: Namespaces; Services since relaxed names.
    DnsLabel,
    /// RFC 1035 label.
    Dns1035Label,
    /// Anything that is one path segment: RBAC.
    PathSegment,
}

/// What a DELETE does to an object that has no finalizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    Immediate,
    /// Marked, then removed by whoever ends it, after at most this many seconds: Pods.
    Graceful {
        seconds: i64,
    },
}

/// A kind's own rules. All values are in the storage version. The defaults suit a plain kind.
pub trait Strategy: Send + Sync + 'static {
    /// Fills in the defaults that the schema table cannot express. Idempotent; runs on every write.
    fn default(&self, _object: &mut Value) {}

    /// After decoding, defaulting and admission, with name and uid set: resets what a client may not set. Status is already gone for kinds
    /// with a status subresource, and `metadata.generation` is handled by the caller.
    fn prepare_for_create(&self, _object: &mut Value) {}

    /// The same for an update; `status` of kinds with that subresource is already the old one.
    fn prepare_for_update(&self, _new: &mut Value, _old: &Value) {}

    /// For a write to the status subresource; everything but `status` is already the old one.
    fn prepare_for_status_update(&self, _new: &mut Value, _old: &Value) {}

    /// The metadata that a write to the status subresource may change.
    fn status_metadata(&self) -> &'static [&'static str] {
        &["labels", "annotations", "finalizers", "ownerReferences"]
    }

    /// Whether `metadata.generation` is kept (1 at creation, +1 when anything but metadata and status changes).
    fn has_generation(&self) -> bool {
        false
    }

    /// Faults of an object; metadata is checked by the caller. `old` is what it takes the place of, if it does: what was
    /// let in before there was a rule against it may stay.
    fn validate(&self, _object: &Value, _old: Option<&Value>, _errors: &mut Errors) {}

    /// Faults that only a new object can have; runs after `validate`.
    fn validate_create(&self, _object: &Value, _errors: &mut Errors) {}

    /// Faults of a change; runs after `validate`.
    fn validate_update(&self, _new: &Value, _old: &Value, _errors: &mut Errors) {}

    /// All faults of a new state: those of any object, and those of the change.
    fn validate_change(&self, new: &Value, old: &Value, errors: &mut Errors) {
        self.validate(new, Some(old), errors);
        self.validate_update(new, old, errors);
    }

    /// Faults of a status write.
    fn validate_status_update(&self, _new: &Value, _old: &Value, _errors: &mut Errors) {}

    /// Faults, besides those of any object, of a write to a subresource with an object of the same kind (`ephemeralcontainers`, `resize`,
    /// `approval`, `finalize`), of which the caller has taken only what that subresource may change.
    fn validate_subresource(&self, _name: &str, _new: &Value, _old: &Value, _errors: &mut Errors) {}

    /// Texts for `Warning` headers.
    fn warnings(&self, _new: &Value, _old: Option<&Value>) -> Vec<String> {
        Vec::new()
    }

    /// Names of the fields that field selectors may use besides `metadata.name` and `metadata.namespace`.
    fn selectable(&self) -> &'static [&'static str] {
        &[]
    }

    /// Whether the kind lists its selectable fields itself, as upstream's conversion functions do, so that those of
    /// every object are not added unasked: an object of the cluster then has no `metadata.namespace`.
    fn lists_fields(&self) -> bool {
        !self.selectable().is_empty()
    }

    /// What is said of a field that is not selectable.
    fn unselectable(&self, field: &str) -> String {
        if self.lists_fields() {
            format!("field label not supported: {field}")
        } else {
            format!(
                "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
            )
        }
    }

    /// The value of a selectable field; absent is `""`.
    fn field(&self, _object: &Value, _name: &str) -> String {
        String::new()
    }

    /// The cells of the resource's columns, without NAME. `now` is in seconds of the Unix epoch.
    fn row(&self, _object: &Value, _now: i64) -> Vec<Value> {
        Vec::new()
    }

    /// Why and how an object has come to its end, for those who read rows: reason and message.
    fn completed(&self, _object: &Value) -> Option<(&'static str, &'static str)> {
        None
    }

    /// How a DELETE with `grace` (the client's gracePeriodSeconds) acts.
    fn deletion(&self, _object: &Value, _grace: Option<i64>) -> Deletion {
        Deletion::Immediate
    }

    /// Whether an update of a name that does not exist creates it (Leases, Events, …).
    fn create_on_update(&self) -> bool {
        false
    }

    /// Whether an update without a resourceVersion overwrites unconditionally.
    fn unconditional_update(&self) -> bool {
        true
    }
}
