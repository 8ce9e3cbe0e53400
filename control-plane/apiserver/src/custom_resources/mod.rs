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
    /// Uid and `metadata.generation`, which deletion raises too: what the resource was made from.
    version: (String, i64),
    resource: Arc<Resource>,
}

/// Serves what is established, then follows the definitions until the server shuts down.
///
/// # Errors
/// When their cache cannot be watched.
pub(crate) async fn start(server: &Arc<ApiServer>) -> Result<(), ApiError> {
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
    // Before anybody can ask: who is told 404 believes that his objects are gone.
    if let Err(error) = controller.begin().await {
        tracing::warn!(%error, "custom resources are not all served yet");
    }
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
    /// Serves what an earlier server has established. Its clients go on where they were.
    async fn begin(&mut self) -> anyhow::Result<()> {
        let mut established = self.definitions()?;
        established.retain(|_, definition| naming::established(definition));
        let mut served = HashMap::new();
        for (name, definition) in established {
            // What is wrong with one is said when it is tried again.
            if let Ok(resource) = self.resource_of(&definition) {
                served.insert(name, resource);
            }
        }
        let resources: Vec<_> = served.values().map(|one| one.resource.clone()).collect();
        self.server.caches.serve_from_the_past(&resources).await?;
        self.served = served;
        self.publish();
        Ok(())
    }

    fn resource_of(&self, definition: &Value) -> anyhow::Result<Served> {
        let version = version(definition);
        let resource = definition::resource(definition, &Arc::downgrade(&self.server))?;
        let resource = Arc::new(resource);
        Ok(Served { version, resource })
    }

    /// Brings names, catalog and caches in step with the definitions.
    async fn sync(&mut self) -> anyhow::Result<()> {
        let mut definitions = self.definitions()?;
        let statuses = self.judge(&mut definitions);
        // What one definition cannot have is no reason to let others wait.
        let mut trouble = Ok(());
        let mut changed = false;
        for (name, definition) in &definitions {
            if naming::established(definition) {
                match self.serve(name, definition).await {
                    Ok(is_new) => changed |= is_new,
                    Err(error) => trouble = Err(error),
                }
            }
        }
        let is_wanted = |name: &String| definitions.get(name).is_some_and(naming::established);
        let gone: Vec<Served> = self
            .served
            .extract_if(|name, _| !is_wanted(name))
            .map(|(_, served)| served)
            .collect();
        if changed || !gone.is_empty() {
            self.publish();
        }
        for served in gone {
            self.server.caches.forget(&served.resource.prefix);
        }
        // Only now: who reads that a definition is established finds it in discovery, and served.
        for (name, status) in statuses {
            if let Err(error) = self.write_status(&name, &status).await {
                trouble = Err(error);
            }
        }
        for definition in definitions.values() {
            if let Err(error) = self.finalize(definition).await {
                trouble = Err(error);
            }
        }
        trouble
    }

    /// Gives every definition the status that it should have; answers those that are new.
    fn judge(&self, definitions: &mut BTreeMap<String, Value>) -> Vec<(String, Value)> {
        let names: Vec<String> = definitions.keys().cloned().collect();
        let mut statuses = Vec::new();
        for name in names {
            let definition = &definitions[&name];
            let Some(status) = naming::status(definition, definitions, &self.builtin) else {
                continue;
            };
            // Names are given in turn: whoever comes next finds these taken.
            if let Some(definition) = definitions.get_mut(&name) {
                for field in ["conditions", "acceptedNames"] {
                    definition["status"][field] = status[field].clone();
                }
            }
            statuses.push((name, status));
        }
        statuses
    }

    /// Serves a definition as it is now; answers whether that is new.
    async fn serve(&mut self, name: &str, definition: &Value) -> anyhow::Result<bool> {
        let served = self.served.get(name);
        if served.is_some_and(|served| served.version == version(definition)) {
            return Ok(false);
        }
        let served = self.resource_of(definition)?;
        self.server.caches.serve(served.resource.clone()).await?;
        self.served.insert(name.to_owned(), served);
        tracing::info!(definition = name, "custom resource served");
        Ok(true)
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

fn version(definition: &Value) -> (String, i64) {
    let uid = meta::uid(definition).to_owned();
    (uid, meta::generation(definition))
}

/// What was deleted meanwhile, or changed (which is an event of its own), is no failure.
fn found<T>(result: kube::Result<T>) -> anyhow::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
