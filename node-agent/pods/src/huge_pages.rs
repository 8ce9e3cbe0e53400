//! Pages larger than the usual ones, which a machine sets aside size by size for those that ask for them: a resource of
//! the Node (`hugepages-2Mi`), and a limit of each container.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use k8s_openapi::api::core::v1::Container;
use windlass_cri::v1::HugepageLimit;
use windlass_machinery::quantity::{Format, Quantity};

/// The pages of each size in bytes that the machine has set aside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages(BTreeMap<i64, i64>);

impl HugePages {
    /// As the kernel tells it in `/sys/kernel/mm/hugepages`, which a kernel without them does not have.
    pub fn of_machine(folder: &Path) -> io::Result<Self> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut sizes = BTreeMap::new();
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let size = name
                .to_str()
                .and_then(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB"))
                .and_then(|kilobytes| kilobytes.parse::<i64>().ok());
            let Some(kilobytes) = size else { continue };
            let pages = fs::read_to_string(entry.path().join("nr_hugepages"))?;
            sizes.insert(kilobytes * 1024, pages.trim().parse().unwrap_or(0));
        }
        Ok(Self(sizes))
    }

    /// What a Node has of them: the resource's name and the bytes.
    pub fn resources(&self) -> impl Iterator<Item = (String, i64)> {
        let sizes = self.0.iter();
        sizes.map(|(size, pages)| (resource_name(*size), size * pages))
    }

    /// All of them, in bytes: no other memory can be had from there.
    pub fn bytes(&self) -> i64 {
        self.0.iter().map(|(size, pages)| size * pages).sum()
    }

    /// How much a container may have of each size: what it asks for, which is nothing unless it says so.
    pub(crate) fn limits(&self, container: &Container) -> Vec<HugepageLimit> {
        let limits = container
            .resources
            .as_ref()
            .and_then(|it| it.limits.as_ref());
        let asked = |size: i64| {
            let text = limits?.get(&resource_name(size))?;
            let amount = Quantity::parse(&text.0).ok()?;
            u64::try_from(amount.value()).ok()
        };
        let limit = |size: &i64| HugepageLimit {
            page_size: runtime_name(*size),
            limit: asked(*size).unwrap_or(0),
        };
        self.0.keys().map(limit).collect()
    }
}

fn resource_name(size: i64) -> String {
    format!("hugepages-{}", Quantity::new(size, Format::BinarySi))
}

/// As the kernel names the control files.
fn runtime_name(mut size: i64) -> String {
    let mut units = ["B", "KB", "MB", "GB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while size >= 1024
        && let Some(next) = units.next()
    {
        (size, unit) = (size / 1024, next);
    }
    format!("{size}{unit}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pages_are_offered_by_size_and_limited_to_what_is_asked_for() {
        let root = tempfile::tempdir().unwrap();
        for (name, pages) in [("hugepages-2048kB", "3\n"), ("hugepages-1048576kB", "0\n")] {
            let folder = root.path().join(name);
            fs::create_dir(&folder).unwrap();
            fs::write(folder.join("nr_hugepages"), pages).unwrap();
        }
        let found = HugePages::of_machine(root.path()).unwrap();
        let resources: Vec<_> = found.resources().collect();
        let expected = [
            ("hugepages-2Mi".to_owned(), 6 << 20),
            ("hugepages-1Gi".into(), 0),
        ];
        assert_eq!(resources, expected);
        assert_eq!(found.bytes(), 6 << 20);

        let container: Container = serde_json::from_value(json!({
            "name": "c", "resources": {"limits": {"hugepages-2Mi": "4Mi"}},
        }))
        .unwrap();
        let limits: Vec<_> = found
            .limits(&container)
            .into_iter()
            .map(|limit| (limit.page_size, limit.limit))
            .collect();
        assert_eq!(limits, [("2MB".to_owned(), 4 << 20), ("1GB".to_owned(), 0)]);
    }

    #[test]
    fn a_kernel_without_them_has_none() {
        let found = HugePages::of_machine(Path::new("/sys/kernel/mm/no such")).unwrap();
        assert_eq!(found, HugePages::default());
    }
}
