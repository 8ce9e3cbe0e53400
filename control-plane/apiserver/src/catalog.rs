//! What is served: resources by path and kind, each version an [`Endpoint`].

use std::collections::HashMap;
use std::sync::Arc;

use windlass_api::resource::{Column, CustomVersion, Resource, Strategy, Subresource, Version};
use windlass_machinery::status::ApiError;

use crate::cacher::{Cacher, Caches};

/// One version of one resource.
pub(crate) struct Endpoint {
    pub resource: Arc<Resource>,
    version: usize,
    /// The resource under which objects are stored: another one where two groups share them (Events).
    pub stored: Arc<Resource>,
    /// `None` for resources that are not stored, such as reviews.
    cacher: Option<Arc<Cacher>>,
}

impl Endpoint {
    pub(crate) fn version(&self) -> &Version {
        &self.resource.versions[self.version]
    }

    /// `apps/v1`, or `v1` for the core group.
    pub(crate) fn api_version(&self) -> String {
        api_version(&self.resource.group, &self.version().name)
    }

    /// The `apiVersion` that stored objects carry.
    pub(crate) fn stored_api_version(&self) -> String {
        api_version(
            &self.stored.group,
            &self.stored.versions[self.stored.storage].name,
        )
    }

    /// Whether stored objects are served as they are.
    pub(crate) fn is_stored_version(&self) -> bool {
        self.version().convert.is_none()
    }

    pub(crate) fn strategy(&self) -> &dyn Strategy {
        &*self.stored.strategy
    }

    pub(crate) fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources().iter().find(|s| s.name() == name)
    }

    pub(crate) fn has_status(&self) -> bool {
        self.subresources().contains(&Subresource::Status)
    }

    fn subresources(&self) -> &[Subresource] {
        self.resource.subresources_in(&self.version().name)
    }

    /// Whether a definition describes it.
    pub(crate) fn is_custom(&self) -> bool {
        self.version().openapi.is_some()
    }

    /// What differs from the storage version: custom resources' other versions.
    pub(crate) fn own(&self) -> Option<&dyn CustomVersion> {
        self.resource.own(self.version)
    }

    pub(crate) fn columns(&self) -> &[Column] {
        self.own()
            .map_or(&self.resource.columns, |own| own.columns())
    }

    /// # Errors
    /// 405 for resources that are not stored.
    pub(crate) fn cacher(&self) -> Result<&Arc<Cacher>, ApiError> {
        self.cacher
            .as_ref()
            .ok_or_else(ApiError::method_not_allowed)
    }

    pub(crate) fn group(&self) -> &str {
        &self.resource.group
    }

    pub(crate) fn plural(&self) -> &str {
        &self.resource.plural
    }

    pub(crate) fn kind(&self) -> &str {
        &self.resource.kind
    }

    pub(crate) fn not_found(&self, name: &str) -> ApiError {
        ApiError::not_found(self.group(), self.plural(), name)
    }
}

/// `group/version`, or `version` alone for the core group.
pub(crate) fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// All that is served at one time.
pub(crate) struct Catalog {
    resources: Vec<Arc<Resource>>,
    endpoints: HashMap<(String, String, String), Arc<Endpoint>>,
}

impl Catalog {
    /// `resources` in the order in which discovery lists them.
    pub(crate) fn new(resources: Vec<Arc<Resource>>, caches: &Caches) -> Self {
        let mut endpoints = HashMap::new();
        for resource in &resources {
            let cacher = caches.get(&resource.prefix);
            let stored = cacher.as_ref().map_or(resource, |c| &c.resource).clone();
            for (index, version) in resource.versions.iter().enumerate() {
                if !version.served {
                    continue;
                }
                let endpoint = Endpoint {
                    resource: resource.clone(),
                    version: index,
                    stored: stored.clone(),
                    cacher: cacher.clone(),
                };
                let key = (
                    resource.group.to_string(),
                    version.name.to_string(),
                    resource.plural.to_string(),
                );
                endpoints.insert(key, Arc::new(endpoint));
            }
        }
        Self {
            resources,
            endpoints,
        }
    }

    pub(crate) fn resources(&self) -> &[Arc<Resource>] {
        &self.resources
    }

    pub(crate) fn endpoint(
        &self,
        group: &str,
        version: &str,
        plural: &str,
    ) -> Option<Arc<Endpoint>> {
        let key = (group.to_owned(), version.to_owned(), plural.to_owned());
        self.endpoints.get(&key).cloned()
    }

    /// Whether a resource of this group is part of Kubernetes.
    pub(crate) fn is_builtin_group(&self, group: &str) -> bool {
        self.endpoints
            .values()
            .any(|endpoint| endpoint.group() == group && !endpoint.is_custom())
    }

    /// The endpoint of a resource in its preferred version.
    pub(crate) fn preferred(&self, group: &str, plural: &str) -> Option<Arc<Endpoint>> {
        let resource = self
            .resources
            .iter()
            .find(|r| r.group == group && r.plural == plural)?;
        self.endpoint(group, &resource.versions[0].name, plural)
    }

    /// The groups in order, each with its versions in order of preference.
    pub(crate) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        let served = |resource: &&Arc<Resource>| resource.versions.iter().any(|v| v.served);
        for resource in self.resources.iter().filter(served) {
            let at = groups
                .iter()
                .position(|(group, _)| *group == resource.group);
            let at = at.unwrap_or_else(|| {
                groups.push((resource.group.to_string(), Vec::new()));
                groups.len() - 1
            });
            for version in resource.versions.iter().filter(|version| version.served) {
                if !groups[at].1.iter().any(|known| *known == version.name) {
                    groups[at].1.push(version.name.to_string());
                }
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(maturity(version)));
        }
        groups
    }
}

/// Orders versions as Kubernetes does: stable before beta before alpha, then the higher number.
fn maturity(version: &str) -> (u8, u32, u32) {
    let digits = |text: &str| text.parse().unwrap_or(0);
    let rest = version.strip_prefix('v').unwrap_or(version);
    if let Some((major, minor)) = rest.split_once("beta") {
        (1, digits(major), digits(minor))
    } else if let Some((major, minor)) = rest.split_once("alpha") {
        (0, digits(major), digits(minor))
    } else {
        (2, digits(rest), 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stable_versions_come_first() {
        let mut versions = ["v1beta1", "v1", "v2", "v2alpha1", "v2beta2"];
        versions.sort_by_key(|v| std::cmp::Reverse(maturity(v)));
        assert_eq!(versions, ["v2", "v1", "v2beta2", "v1beta1", "v2alpha1"]);
    }
}
