//! Admission: what may change or refuse a write after it has been decoded, one file each, in upstream's order.

mod authorizer;
mod certificate_requester;
mod certificate_signers;
mod claim_resize;
mod cost;
mod default_class;
mod default_toleration_seconds;
mod expression;
mod limit_ranger;
mod matching;
mod namespace_lifecycle;
mod node_restriction;
mod pod_security;
mod pod_topology_labels;
mod priority;
mod question;
mod rbac_escalation;
mod resource_quota;
mod runtime_class;
mod service_account;
mod storage_protection;
mod taint_nodes_by_condition;
pub(crate) mod validating_policy;
mod webhooks;

use async_trait::async_trait;
use serde_json::Value;
use windlass_machinery::status::ApiError;

use crate::catalog::Endpoint;
use crate::context::Context;
use crate::options::DeleteOptions;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    /// exec, attach, port-forward, proxy.
    Connect,
}

impl Operation {
    /// As AdmissionRequests and rules name it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Create => "CREATE",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Connect => "CONNECT",
        }
    }
}

/// What is about to happen. Objects are in their storage version.
pub(crate) struct Attributes<'a> {
    pub context: &'a Context,
    pub operation: Operation,
    pub endpoint: &'a Endpoint,
    pub subresource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// The present object of an update or deletion.
    pub old: Option<&'a Value>,
    /// How it is to be deleted; of deletions alone.
    pub deletion: Option<&'a DeleteOptions>,
    pub dry_run: bool,
}

impl Attributes<'_> {
    fn is(&self, group: &str, plural: &str) -> bool {
        self.endpoint.group() == group && self.endpoint.plural() == plural
    }

    /// Whether a new pod is to be created.
    fn creates_pod(&self) -> bool {
        self.is_of_pod(Operation::Create, "")
    }

    /// Whether this is done to a pod, or to this subresource of it.
    fn is_of_pod(&self, operation: Operation, subresource: &str) -> bool {
        self.operation == operation && self.subresource == subresource && self.is("", "pods")
    }

    fn forbidden(&self, why: &str) -> ApiError {
        ApiError::forbidden(
            self.endpoint.group(),
            self.endpoint.plural(),
            self.name,
            why,
        )
    }
}

/// One rule. Plugins keep no state about objects: they look into the caches.
#[async_trait]
pub(crate) trait Plugin: Send + Sync {
    /// May change the object.
    async fn admit(&self, _: &Attributes<'_>, _object: &mut Value) -> Result<(), ApiError> {
        Ok(())
    }

    /// May only refuse; `object` is `None` for deletions.
    async fn validate(&self, _: &Attributes<'_>, _object: Option<&Value>) -> Result<(), ApiError> {
        Ok(())
    }

    /// May refuse a connection; `options` are those of the connection, such as `PodExecOptions`.
    async fn connect(&self, _: &Attributes<'_>, _options: &Value) -> Result<(), ApiError> {
        Ok(())
    }

    /// Takes back what `validate` did for a write that then failed.
    async fn withdraw(&self, _: &Attributes<'_>, _object: &Value) {}
}

/// The plugins in order.
pub(crate) struct Admission(Vec<Box<dyn Plugin>>);

impl Admission {
    pub(crate) fn standard() -> Self {
        Self(vec![
            Box::new(namespace_lifecycle::NamespaceLifecycle),
            Box::new(certificate_requester::CertificateRequester),
            Box::new(limit_ranger::LimitRanger),
            Box::new(service_account::ServiceAccount),
            Box::new(node_restriction::NodeRestriction),
            Box::new(taint_nodes_by_condition::TaintNodesByCondition),
            Box::new(pod_security::PodSecurity),
            Box::new(priority::Priority),
            Box::new(default_toleration_seconds::DefaultTolerationSeconds),
            Box::new(default_class::STORAGE),
            Box::new(storage_protection::StorageObjectInUseProtection),
            Box::new(claim_resize::PersistentVolumeClaimResize),
            Box::new(runtime_class::RuntimeClass),
            Box::new(certificate_signers::CertificateSigners),
            Box::new(default_class::INGRESS),
            Box::new(pod_topology_labels::PodTopologyLabels),
            Box::new(rbac_escalation::RbacEscalation),
            Box::new(webhooks::Mutating),
            Box::new(validating_policy::ValidatingPolicy),
            Box::new(webhooks::Validating),
            // Last: it charges, and nothing after it may refuse.
            Box::new(resource_quota::ResourceQuota::new()),
        ])
    }

    /// What may change the object: the plugins, then the mutating webhooks. When one of these did, the plugins have their say
    /// about that too (a sidecar needs its token and its limits), and webhooks that asked for it see the outcome.
    pub(crate) async fn admit(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        let mut rounds = webhooks::Rounds::default();
        self.admit_in_process(attributes, object).await?;
        if !webhooks::mutate(attributes, object, &mut rounds).await? {
            return Ok(());
        }
        let left = object.clone();
        self.admit_in_process(attributes, object).await?;
        rounds.again(*object != left);
        webhooks::mutate(attributes, object, &mut rounds).await?;
        Ok(())
    }

    async fn admit_in_process(
        &self,
        attributes: &Attributes<'_>,
        object: &mut Value,
    ) -> Result<(), ApiError> {
        for plugin in &self.0 {
            plugin.admit(attributes, object).await?;
        }
        Ok(())
    }

    pub(crate) async fn validate(
        &self,
        attributes: &Attributes<'_>,
        object: Option<&Value>,
    ) -> Result<(), ApiError> {
        for plugin in &self.0 {
            plugin.validate(attributes, object).await?;
        }
        Ok(())
    }

    pub(crate) async fn connect(
        &self,
        attributes: &Attributes<'_>,
        options: &Value,
    ) -> Result<(), ApiError> {
        for plugin in &self.0 {
            plugin.connect(attributes, options).await?;
        }
        Ok(())
    }

    pub(crate) async fn withdraw(&self, attributes: &Attributes<'_>, object: &Value) {
        for plugin in &self.0 {
            plugin.withdraw(attributes, object).await;
        }
    }
}
