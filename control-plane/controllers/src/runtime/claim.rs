//! Which objects belong to a controller object: those whose controlling ownerReference names it, plus
//! orphans that match its selector (adopted), minus own ones that no longer match (released).

use std::{fmt::Debug, sync::Arc};

use futures::future::try_join_all;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    core::{Selector, SelectorExt},
};
use serde::de::DeserializeOwned;
use serde_json::json;
use windlass_informers::{Cached, Informer};

use super::{Error, Owner, Result, ResultExt};

/// The reference that makes `owner` the controller of an object.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controlling owner of an object, if it is of kind `K`.
pub(crate) fn controlled_by<K: Resource<DynamicType = ()>>(
    object: &impl Resource,
) -> Option<&OwnerReference> {
    object.owner_references().iter().find(|owner| {
        owner.controller == Some(true)
            && owner.kind == K::kind(&())
            && owner.api_version.split('/').next() == K::api_version(&()).split('/').next()
    })
}

/// What a claim found.
pub(crate) struct Claim<W> {
    /// Ours, adopted ones in their new state.
    pub(crate) owned: Vec<Arc<W>>,
    /// Written by the claim itself: the view may not show it yet.
    pub(crate) adopted: Vec<Arc<W>>,
}

/// Sorts out which objects are `owner`'s, adopting and releasing on the way.
pub(crate) async fn claim<O, W>(
    owner: &O,
    owner_api: &Api<O>,
    selector: &Selector,
    view: &Informer<W>,
    api: &Api<W>,
    adoptable: fn(&W) -> bool,
) -> Result<Claim<W>>
where
    O: Owner,
    W: Cached,
{
    let uid = owner.uid().unwrap_or_default();
    let namespace = owner.namespace().unwrap_or_default();
    let leaving = owner.meta().deletion_timestamp.is_some();
    let (mut owned, misfits): (Vec<_>, Vec<_>) = view
        .controlled_by(&uid)
        .into_iter()
        .partition(|object| selector.matches(object.labels()));
    // An object whose owner is on its way out keeps its reference: the garbage collector needs it.
    if !leaving {
        let releasing = misfits
            .iter()
            .map(|object| release(api, object.as_ref(), &uid, O::FINALIZER));
        try_join_all(releasing).await?;
    }
    let mut adopted = Vec::new();
    if !leaving {
        let candidates: Vec<_> = view
            .orphans(&namespace)
            .into_iter()
            .filter(|object| {
                object.meta().deletion_timestamp.is_none()
                    && adoptable(object)
                    && selector.matches(object.labels())
            })
            .collect();
        if !candidates.is_empty() {
            may_adopt(owner, owner_api).await?;
        }
        for candidate in candidates {
            if let Some(object) = adopt(owner, api, candidate.as_ref()).await? {
                let object = Arc::new(object);
                owned.push(Arc::clone(&object));
                adopted.push(object);
            }
        }
    }
    Ok(Claim { owned, adopted })
}

/// An owner that was deleted and recreated under our feet must not adopt: ask the server, not the view.
async fn may_adopt<O>(owner: &O, api: &Api<O>) -> Result<()>
where
    O: Resource<DynamicType = ()> + DeserializeOwned + Clone + Debug,
{
    let name = owner.name_any();
    let fresh = api
        .get(&name)
        .await
        .doing(|| format!("get {} {name}", O::kind(&())))?;
    if fresh.meta().uid != owner.meta().uid || fresh.meta().deletion_timestamp.is_some() {
        return Err(Error::Invalid(format!(
            "{} {name} was deleted, not adopting",
            O::kind(&())
        )));
    }
    Ok(())
}

async fn adopt<O: Owner, W: Cached>(owner: &O, api: &Api<W>, object: &W) -> Result<Option<W>> {
    let mut owners = object.owner_references().to_vec();
    owners.push(controller_ref(owner));
    let mut finalizers = object.finalizers().to_vec();
    let missing = O::FINALIZER.filter(|own| !finalizers.iter().any(|name| name == own));
    finalizers.extend(missing.map(str::to_owned));
    write_owners(api, object, owners, finalizers).await
}

async fn release<W: Cached>(
    api: &Api<W>,
    object: &W,
    owner_uid: &str,
    finalizer: Option<&str>,
) -> Result<Option<W>> {
    let mut owners = object.owner_references().to_vec();
    owners.retain(|owner| owner.uid != owner_uid);
    let mut finalizers = object.finalizers().to_vec();
    finalizers.retain(|name| Some(name.as_str()) != finalizer);
    write_owners(api, object, owners, finalizers).await
}

async fn write_owners<W: Cached>(
    api: &Api<W>,
    object: &W,
    owners: Vec<OwnerReference>,
    finalizers: Vec<String>,
) -> Result<Option<W>> {
    let name = object.name_any();
    let body = json!({ "metadata": {
        "uid": object.meta().uid,
        "resourceVersion": object.meta().resource_version,
        "ownerReferences": (!owners.is_empty()).then_some(owners),
        "finalizers": (!finalizers.is_empty()).then_some(finalizers),
    }});
    match api
        .patch(&name, &PatchParams::default(), &Patch::Merge(&body))
        .await
    {
        Ok(object) => Ok(Some(object)),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
        Err(error) => Err(error).doing(|| format!("change owners of {} {name}", W::kind(&()))),
    }
}
