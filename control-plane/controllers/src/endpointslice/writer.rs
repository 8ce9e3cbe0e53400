//! Carries out a plan for one Service: the writes shared by the EndpointSlice controller and its
//! mirroring twin, which differ in whose slices they are.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kube::{Api, api::PostParams};
use windlass_informers::Key;

use super::{desired::AddressType, plan::Group, plan::plan};
use crate::{
    runtime::{Freshness, Result, ResultExt, delete, patch},
    services::TRIGGER_TIME,
};

pub(crate) const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub(crate) const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";

/// What all slices of one Service share.
pub(crate) struct Target<'a> {
    pub(crate) key: &'a Key,
    pub(crate) api: Api<EndpointSlice>,
    pub(crate) owner: OwnerReference,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) trigger: Option<Timestamp>,
    pub(crate) freshness: &'a Freshness<EndpointSlice>,
}

impl Target<'_> {
    /// Brings the slices of one family to `wanted`.
    pub(crate) async fn write(
        &self,
        family: AddressType,
        existing: &[Arc<EndpointSlice>],
        wanted: Vec<Group>,
    ) -> Result<()> {
        let views: Vec<&EndpointSlice> = existing.iter().map(AsRef::as_ref).collect();
        let plan = plan(&views, wanted);
        for (at, ports, endpoints) in plan.update {
            self.update(views[at], Some((ports, endpoints))).await?;
        }
        for at in plan.keep {
            self.update(views[at], None).await?;
        }
        for (ports, endpoints) in plan.create {
            self.create(family, ports, endpoints).await?;
        }
        for at in plan.delete {
            self.delete(views[at]).await?;
        }
        Ok(())
    }

    pub(crate) async fn delete(&self, slice: &EndpointSlice) -> Result<()> {
        let observer = self.freshness.observer(self.key);
        delete(&self.api, slice).await?;
        observer.deleted(slice);
        Ok(())
    }

    async fn create(
        &self,
        family: AddressType,
        ports: Vec<EndpointPort>,
        endpoints: Vec<Endpoint>,
    ) -> Result<()> {
        let slice = EndpointSlice {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", self.key.name)),
                namespace: Some(self.key.namespace.clone()),
                labels: Some(self.labels.clone()),
                annotations: self
                    .trigger
                    .map(|at| [(TRIGGER_TIME.to_owned(), at.to_string())].into()),
                owner_references: Some(vec![self.owner.clone()]),
                ..Default::default()
            },
            address_type: family.as_str().to_owned(),
            endpoints,
            ports: Some(ports),
        };
        let observer = self.freshness.observer(self.key);
        match self
            .api
            .create(&PostParams::default(), &slice)
            .await
            .doing(|| format!("create endpoint slice for service {}", self.key))
        {
            Ok(created) => {
                observer.wrote(&created);
                Ok(())
            }
            Err(error) if error.is_namespace_terminating() => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn update(
        &self,
        slice: &EndpointSlice,
        content: Option<(Vec<EndpointPort>, Vec<Endpoint>)>,
    ) -> Result<()> {
        let mut updated = slice.clone();
        updated.metadata.labels = Some(self.labels.clone());
        if let Some((ports, endpoints)) = content {
            updated.ports = Some(ports);
            updated.endpoints = endpoints;
            let annotations = updated.metadata.annotations.get_or_insert_default();
            match self.trigger {
                Some(at) => annotations.insert(TRIGGER_TIME.to_owned(), at.to_string()),
                None => annotations.remove(TRIGGER_TIME),
            };
        }
        let observer = self.freshness.observer(self.key);
        if let Some(written) = patch(&self.api, slice, &updated).await? {
            observer.wrote(&written);
        }
        Ok(())
    }
}
