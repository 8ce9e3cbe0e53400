//! What a watch tells of a Service or a slice, read down to what this node needs of it as soon as it comes:
//! a list of thousands then never stands in memory as whole objects.
//!
//! `managedFields`, often more than half of an object, are not even decoded.

use std::{borrow::Cow, collections::BTreeMap, net::IpAddr, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service, ServiceSpec as ApiServiceSpec, ServiceStatus},
        discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Resource, runtime::watcher::Event};
use serde::{Deserialize, Deserializer};

use super::parse::{Balancing, ServiceName, ServiceSpec, SliceSpec};

/// A slice by namespace and name.
pub(super) type SliceName = (Arc<str>, Arc<str>);

/// What a proxy needs to know of a Service.
#[derive(Debug)]
pub(super) struct ServiceNews {
    pub(super) name: ServiceName,
    /// `None`: nothing for a proxy to do.
    pub(super) spec: Option<ServiceSpec>,
    /// What it asks for in vain: the Service, and why.
    pub(super) misread: Option<(ObjectReference, String)>,
}

impl ServiceNews {
    pub(super) fn of(service: &Service) -> Self {
        let (namespace, name) = name_of(&service.metadata);
        Self {
            name: ServiceName { namespace, name },
            spec: ServiceSpec::parse(service),
            misread: Balancing::of(service)
                .err()
                .map(|why| (service.object_ref(&()), why)),
        }
    }
}

/// What a proxy needs to know of a slice.
#[derive(Debug)]
pub(super) struct SliceNews {
    pub(super) name: SliceName,
    /// Whose it is and what it says; `None`: nobody's.
    pub(super) spec: Option<(ServiceName, SliceSpec)>,
    /// When what it tells of happened.
    pub(super) trigger: Option<Timestamp>,
    /// Addresses that must not be endpoints.
    pub(super) refused: Option<(ObjectReference, Vec<IpAddr>)>,
}

impl SliceNews {
    /// `node` is this node's name.
    pub(super) fn of(slice: &EndpointSlice, node: &str) -> Self {
        let unfit = SliceSpec::unfit_addresses(slice);
        let name = name_of(&slice.metadata);
        let owner = SliceSpec::service_of(slice, &name.0);
        Self {
            name,
            spec: owner.map(|owner| (owner, SliceSpec::parse(slice, node))),
            trigger: trigger(slice),
            refused: (!unfit.is_empty()).then(|| (slice.object_ref(&()), unfit)),
        }
    }
}

fn name_of(metadata: &ObjectMeta) -> (Arc<str>, Arc<str>) {
    let part = |part: &Option<String>| part.as_deref().unwrap_or_default().into();
    (part(&metadata.namespace), part(&metadata.name))
}

/// When the change happened that a slice tells of (the upstream annotation).
fn trigger(slice: &EndpointSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    let text = annotations.get("endpoints.kubernetes.io/last-change-trigger-time")?;
    text.parse().ok()
}

/// The same event about what has been read of the object.
pub(super) fn read<T, U>(event: Event<T>, read: impl Fn(&T) -> U) -> Event<U> {
    match event {
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(read(&object)),
        Event::InitDone => Event::InitDone,
        Event::Apply(object) => Event::Apply(read(&object)),
        Event::Delete(object) => Event::Delete(read(&object)),
    }
}

/// An object as the API sends it, without what decides nothing here.
#[derive(Clone, Debug)]
pub(super) struct Light<K>(pub(super) K);

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct LightMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    annotations: Option<BTreeMap<String, String>>,
}

impl From<LightMetadata> for ObjectMeta {
    fn from(light: LightMetadata) -> Self {
        Self {
            name: light.name,
            namespace: light.namespace,
            uid: light.uid,
            resource_version: light.resource_version,
            labels: light.labels,
            annotations: light.annotations,
            ..Self::default()
        }
    }
}

impl<'de> Deserialize<'de> for Light<Service> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Wire {
            #[serde(default)]
            metadata: LightMetadata,
            spec: Option<ApiServiceSpec>,
            status: Option<ServiceStatus>,
        }
        let wire = Wire::deserialize(deserializer)?;
        Ok(Self(Service {
            metadata: wire.metadata.into(),
            spec: wire.spec,
            status: wire.status,
        }))
    }
}

impl<'de> Deserialize<'de> for Light<EndpointSlice> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Wire {
            #[serde(default)]
            metadata: LightMetadata,
            #[serde(default)]
            address_type: String,
            endpoints: Option<Vec<Endpoint>>,
            ports: Option<Vec<EndpointPort>>,
        }
        let wire = Wire::deserialize(deserializer)?;
        Ok(Self(EndpointSlice {
            metadata: wire.metadata.into(),
            address_type: wire.address_type,
            endpoints: wire.endpoints.unwrap_or_default(),
            ports: wire.ports,
        }))
    }
}

impl<K: Resource> Resource for Light<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_light_object_is_the_object_without_its_managed_fields() {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "web-1", "namespace": "d", "uid": "u", "resourceVersion": "7",
                "labels": {"kubernetes.io/service-name": "web"}, "annotations": null,
                "managedFields": [{"manager": "m", "fieldsV1": {"f:endpoints": {}}}],
            },
            "addressType": "IPv4", "ports": null,
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1"}, {"addresses": ["127.0.0.1"]}],
        });
        let Light(light) = serde_json::from_value::<Light<EndpointSlice>>(object.clone()).unwrap();
        let mut whole: EndpointSlice = serde_json::from_value(object).unwrap();
        whole.metadata.managed_fields = None;
        assert_eq!(light, whole);
        let news = SliceNews::of(&light, "n1");
        assert_eq!((&*news.name.0, &*news.name.1), ("d", "web-1"));
        assert_eq!(news.spec.unwrap().1.endpoints.len(), 1);
        assert_eq!(news.refused.unwrap().1.len(), 1);
    }

    #[test]
    fn a_light_service_says_what_the_whole_one_does() {
        let object = json!({
            "metadata": {"name": "web", "namespace": "d", "managedFields": []},
            "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}},
        });
        let Light(light) = serde_json::from_value::<Light<Service>>(object.clone()).unwrap();
        let whole: Service = serde_json::from_value(object).unwrap();
        assert_eq!(ServiceNews::of(&light).spec, ServiceNews::of(&whole).spec);
        assert!(ServiceNews::of(&light).spec.is_some());
    }
}
