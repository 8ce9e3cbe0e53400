//! Throwing away images that nobody uses, when their file system fills up.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use jiff::Timestamp;
use windlass_cri::v1::Image;

use crate::eviction::{Level, file_system};
use crate::node::Node;

/// An image younger than this may be about to be used.
const LEAST_AGE_SECONDS: i64 = 120;

/// What is remembered of images from one look to the next.
#[derive(Default)]
pub(crate) struct ImageKeeper {
    /// When each image was first seen, or last seen in use.
    used: HashMap<String, Timestamp>,
}

impl ImageKeeper {
    /// Removes unused images if their file system is too full, or if all of them must go.
    pub(crate) async fn tidy(&mut self, node: &Node, everything: bool) {
        let pulled = node.pulled.known();
        let (Ok(images), Ok(containers)) = (
            node.runtime.list_images().await,
            node.runtime.list_containers(&[]).await,
        ) else {
            return;
        };
        let in_use: HashSet<String> = containers
            .into_iter()
            .flat_map(|container| {
                [
                    container.image.map(|it| it.image),
                    Some(container.image_ref),
                ]
            })
            .flatten()
            .collect();
        let now = Timestamp::now();
        self.note(&images, &in_use, now);
        let there = images.iter().map(|image| image.id.as_str());
        if let Err(error) = pulled.and_then(|known| node.pulled.forget(known, there)) {
            tracing::warn!(%error, "who pulled images that are gone is not forgotten");
        }
        let Some(level) = image_level(node).await else {
            return;
        };
        let (high, low) = node.config.image_gc;
        let target = match everything {
            true => i64::MAX,
            false => to_free(level, high, low),
        };
        if target == 0 {
            return;
        }
        let mut freed = 0;
        for image in self.removable(&images, &in_use, now) {
            if freed >= target {
                break;
            }
            match node.runtime.remove_image(&image.id).await {
                Ok(()) => {
                    tracing::info!(image = image.id, bytes = image.size, "unused image removed");
                    freed += i64::try_from(image.size).unwrap_or(0);
                }
                Err(error) => tracing::warn!(image = image.id, %error, "image not removed"),
            }
        }
    }

    fn note(&mut self, images: &[Image], in_use: &HashSet<String>, now: Timestamp) {
        let present: HashSet<&str> = images.iter().map(|image| image.id.as_str()).collect();
        self.used.retain(|id, _| present.contains(id.as_str()));
        for image in images {
            let known = self.used.entry(image.id.clone()).or_insert(now);
            if is_used(image, in_use) {
                *known = now;
            }
        }
    }

    /// The one that was not used for the longest time first.
    fn removable<'a>(
        &self,
        images: &'a [Image],
        in_use: &HashSet<String>,
        now: Timestamp,
    ) -> Vec<&'a Image> {
        let last = |image: &Image| self.used.get(&image.id).copied().unwrap_or(now);
        let mut found: Vec<&Image> = images
            .iter()
            .filter(|image| !image.pinned && !is_used(image, in_use))
            .filter(|image| now.as_second() - last(image).as_second() >= LEAST_AGE_SECONDS)
            .collect();
        found.sort_by_key(|image| last(image));
        found
    }
}

fn is_used(image: &Image, in_use: &HashSet<String>) -> bool {
    let mut names = image.repo_tags.iter().chain(&image.repo_digests);
    in_use.contains(&image.id) || names.any(|name| in_use.contains(name))
}

/// Bytes to free so that no more than `low` percent are used, once `high` percent are.
fn to_free(level: Level, high: u8, low: u8) -> i64 {
    let used = level.capacity - level.available;
    let percent = |part: u8| level.capacity / 100 * i64::from(part);
    match used >= percent(high) {
        true => (used - percent(low)).max(0),
        false => 0,
    }
}

async fn image_level(node: &Node) -> Option<Level> {
    let infos = node.runtime.image_fs_info().await.ok()?;
    let place = infos.first()?.fs_id.as_ref()?;
    Some(file_system(Path::new(&place.mountpoint))?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_go_by_their_last_use_and_only_when_the_disk_is_full() {
        let level = |used: i64| Level {
            available: 1000 - used,
            capacity: 1000,
        };
        assert_eq!(to_free(level(849), 85, 80), 0);
        assert_eq!(to_free(level(900), 85, 80), 100);

        let at = |second| Timestamp::from_second(second).unwrap();
        let image = |id: &str, pinned| Image {
            id: id.into(),
            pinned,
            ..Image::default()
        };
        let images = [image("a", false), image("b", false), image("pause", true)];
        let mut keeper = ImageKeeper::default();
        keeper.note(&images, &["a".to_owned()].into(), at(0));
        keeper.note(&images, &["a".to_owned()].into(), at(1000));
        keeper.note(&images, &HashSet::new(), at(2000));
        let ids = |in_use: &[&str], now| -> Vec<String> {
            let in_use = in_use.iter().map(|id| (*id).to_owned()).collect();
            let found = keeper.removable(&images, &in_use, at(now));
            found.iter().map(|image| image.id.clone()).collect()
        };
        assert_eq!(ids(&[], 2000), ["b", "a"]);
        assert_eq!(ids(&["b"], 2000), ["a"]);
        assert_eq!(
            ids(&[], 1050),
            ["b"],
            "one that was used a moment ago stays"
        );
    }
}
