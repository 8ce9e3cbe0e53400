//! Custom resources: every established CustomResourceDefinition is served like a built-in resource.
//!
//! [`definition`] turns a definition into a [`Resource`]; [`naming`] decides whether its names are free;
//! this file follows the definitions, keeps the catalog in step, and removes the instances of a definition
//! that is being deleted. Writes go through the server's own pipeline, as any client's.

mod conversion;
mod definition;
mod embedded;
pub(crate) mod expressions;
mod json_path;
mod naming;
mod strategy;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use windlass_api::resource::Resource;
use windlass_machinery::meta;
use windlass_machinery::status::ApiError;

use crate::authn::UserInfo;
use crate::cacher::{Filter, From};
use crate::catalog::Catalog;
use crate::server::ApiServer;

const GROUP: &str = "apiextensions.k8s.io";
const PLURAL: &str = "customresourcedefinitions";
/// Holds a definition until its instances are gone.
const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";
/// Between attempts after a failure.
const RETRY: Duration = Duration::from_secs(1);

/// What of a definition is being served.
struct Served {
    /// `metadata.generation` and uid: what the resource was made from.
    version: (String, i64),
    resource: Arc<Resource>,
}

/// Follows the definitions until the server shuts down.
///
/// # Errors
/// When their cache cannot be watched.
pub(crate) fn start(server: &Arc<ApiServer>) -> Result<(), ApiError> {
    let Some(cacher) = server.cacher(GROUP, PLURAL) else {
        return Ok(());
    };
    let filter = Filter::new(&cacher.resource, None, None, None)?;
    let watch = server.caches.watch(
        &cacher,
        filter,
        From::Now {
            with_initial: false,
        },
    )?;
    let mut controller = Controller {
        builtin: server.catalog.load().resources().to_vec(),
        served: HashMap::new(),
        client: server.local_client(UserInfo::new("system:apiserver", &["system:masters"])),
        server: server.clone(),
    };
    let shutdown = server.shutdown.clone();
    tokio::spawn(shutdown.run_until_cancelled_owned(async move {
        let mut watch = watch;
        loop {
            if let Err(error) = controller.sync().await {
                tracing::warn!(%error, "custom resources not in step yet");
                tokio::time::sleep(RETRY).await;
                continue;
            }
            if watch.next().await.is_err() {
                // Too slow for the ring: what there is now is read on the next round.
                let cacher = watch.cacher().clone();
                let everything = Filter::new(&cacher.resource, None, None, None);
                let again = everything.and_then(|filter| {
                    controller.server.caches.watch(
                        &cacher,
                        filter,
                        From::Now {
                            with_initial: false,
                        },
                    )
                });
                match again {
                    Ok(again) => watch = again,
                    Err(error) => {
                        tracing::error!(%error, "custom resource definitions cannot be watched");
                        return;
                    }
                }
            }
        }
    }));
    Ok(())
}

struct Controller {
    server: Arc<ApiServer>,
    builtin: Vec<Arc<Resource>>,
    served: HashMap<String, Served>,
    client: kube::Client,
}

impl Controller {
    /// Brings names, catalog and caches in step with the definitions.
    async fn sync(&mut self) -> anyhow::Result<()> {
        let definitions = self.definitions()?;
        let mut wanted = BTreeMap::new();
        let mut changed = false;
        for definition in definitions.values() {
            let name = meta::name(definition).to_owned();
            let status = naming::status(definition, &definitions, &self.builtin);
            if let Some(status) = status {
                self.write_status(&name, &status).await?;
            }
            if !naming::established(definition) {
                continue;
            }
            let version = (
                meta::uid(definition).to_owned(),
                meta::generation(definition),
            );
            let current = self
                .served
                .get(&name)
                .is_some_and(|served| served.version == version);
            if !current {
                let resource = Arc::new(definition::resource(
                    definition,
                    &Arc::downgrade(&self.server),
                )?);
                self.server.caches.serve(resource.clone()).await?;
                self.served
                    .insert(name.clone(), Served { version, resource });
                changed = true;
                tracing::info!(definition = name, "custom resource served");
            }
            wanted.insert(name, ());
        }
        let gone: Vec<String> = self
            .served
            .keys()
            .filter(|name| !wanted.contains_key(*name))
            .cloned()
            .collect();
        changed |= !gone.is_empty();
        let removed: Vec<Served> = gone
            .iter()
            .filter_map(|name| self.served.remove(name))
            .collect();
        if changed {
            self.publish();
        }
        for served in removed {
            self.server.caches.forget(&served.resource.prefix);
        }
        for definition in definitions.values() {
            self.finalize(definition).await?;
        }
        Ok(())
    }

    fn definitions(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let Some(cacher) = self.server.cacher(GROUP, PLURAL) else {
            return Ok(BTreeMap::new());
        };
        let everything = Filter::new(&cacher.resource, None, None, None)?;
        let mut definitions = BTreeMap::new();
        for entry in cacher.entries(&everything) {
            definitions.insert(entry.name().to_owned(), entry.decode()?);
        }
        Ok(definitions)
    }

    fn publish(&self) {
        let mut custom: Vec<&Served> = self.served.values().collect();
        custom.sort_by(|a, b| {
            (&a.resource.group, &a.resource.plural).cmp(&(&b.resource.group, &b.resource.plural))
        });
        let custom = custom.into_iter().map(|served| served.resource.clone());
        let resources = self.builtin.iter().cloned().chain(custom).collect();
        self.server
            .catalog
            .store(Arc::new(Catalog::new(resources, &self.server.caches)));
    }

    fn api(&self) -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk(GROUP, "v1", "CustomResourceDefinition");
        Api::all_with(
            self.client.clone(),
            &ApiResource::from_gvk_with_plural(&gvk, PLURAL),
        )
    }

    async fn write_status(&self, name: &str, status: &Value) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({"status": status}));
        found(
            self.api()
                .patch_status(name, &PatchParams::default(), &patch)
                .await,
        )?;
        Ok(())
    }

    /// Keeps the finalizer on living definitions; of a dying one, removes the instances, then the finalizer.
    async fn finalize(&self, definition: &Value) -> anyhow::Result<()> {
        let name = meta::name(definition);
        let held = meta::finalizers(definition).any(|finalizer| finalizer == FINALIZER);
        let others: Vec<&str> = meta::finalizers(definition)
            .filter(|f| *f != FINALIZER)
            .collect();
        let dying = meta::is_deleting(definition);
        let finalizers = match (dying, held) {
            (false, true) | (true, false) => return Ok(()),
            (false, false) => [others.as_slice(), &[FINALIZER]].concat(),
            (true, true) => {
                if self.remove_instances(name).await? > 0 {
                    // Their own finalizers hold them: look again, an instance's end is no event here.
                    anyhow::bail!("instances of {name} are still there");
                }
                others
            }
        };
        let version = meta::resource_version(definition);
        let patch = json!({"metadata": {"finalizers": finalizers, "resourceVersion": version}});
        let patched = self
            .api()
            .patch(name, &PatchParams::default(), &Patch::Merge(patch))
            .await;
        found(patched)?;
        Ok(())
    }

    /// Deletes every instance; answers how many are left.
    async fn remove_instances(&self, name: &str) -> anyhow::Result<usize> {
        let Some(served) = self.served.get(name) else {
            return Ok(0);
        };
        let resource = &served.resource;
        // The first one is served, if any is.
        let version = &resource.versions[0].name;
        let gvk = GroupVersionKind::gvk(&resource.group, version, &resource.kind);
        let kind = ApiResource::from_gvk_with_plural(&gvk, &resource.plural);
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let delete = DeleteParams::background();
        for instance in all.list(&ListParams::default()).await?.items {
            let name = instance.metadata.name.unwrap_or_default();
            let api = match &instance.metadata.namespace {
                Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &kind),
                None => all.clone(),
            };
            if instance.metadata.deletion_timestamp.is_none() {
                found(api.delete(&name, &delete).await.map(drop))?;
            }
        }
        Ok(all.list(&ListParams::default()).await?.items.len())
    }
}

/// What was deleted meanwhile, or changed (which is an event of its own), is no failure.
fn found<T>(result: kube::Result<T>) -> anyhow::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
