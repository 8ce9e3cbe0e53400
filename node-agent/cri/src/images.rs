//! Images: presence, pulls, and the room that they take.

use std::time::Duration;

use crate::client::Call;
use crate::v1::*;
use crate::{Result, Runtime};

const SHORT: Duration = Duration::from_secs(30);
/// A pull has no deadline of its own in Kubernetes; a registry that trickles must
/// still not hold a pod for ever.
const PULL: Duration = Duration::from_secs(30 * 60);

impl Runtime {
    /// All images.
    pub async fn list_images(&self) -> Result<Vec<Image>> {
        let call = Call::repeatable("ListImages", SHORT);
        let response = call
            .make(|| {
                let mut client = self.image_service();
                async move { client.list_images(ListImagesRequest { filter: None }).await }
            })
            .await?;
        Ok(response.images)
    }

    /// The image of this name or id, if it is on the node.
    pub async fn image_status(&self, image: &str) -> Result<Option<Image>> {
        let spec = ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        };
        let request = ImageStatusRequest {
            image: Some(spec),
            verbose: false,
        };
        let call = Call::repeatable("ImageStatus", SHORT);
        let response = call
            .make(|| {
                let mut client = self.image_service();
                let request = request.clone();
                async move { client.image_status(request).await }
            })
            .await?;
        Ok(response.image)
    }

    /// Pulls an image; gives the reference by which containers are made from it.
    pub async fn pull_image(
        &self,
        image: &str,
        auth: Option<AuthConfig>,
        sandbox_config: PodSandboxConfig,
    ) -> Result<String> {
        let spec = ImageSpec {
            image: image.to_owned(),
            user_specified_image: image.to_owned(),
            ..Default::default()
        };
        let request = PullImageRequest {
            image: Some(spec),
            auth,
            sandbox_config: Some(sandbox_config),
        };
        let response = Call::once("PullImage", PULL)
            .make(|| {
                let mut client = self.image_service();
                let request = request.clone();
                async move { client.pull_image(request).await }
            })
            .await?;
        Ok(response.image_ref)
    }

    /// Removes an image with all its tags.
    pub async fn remove_image(&self, image: &str) -> Result<()> {
        let spec = ImageSpec {
            image: image.to_owned(),
            ..Default::default()
        };
        let request = RemoveImageRequest { image: Some(spec) };
        Call::repeatable("RemoveImage", Duration::from_secs(240))
            .make(|| {
                let mut client = self.image_service();
                let request = request.clone();
                async move { client.remove_image(request).await }
            })
            .await?;
        Ok(())
    }

    /// The filesystems on which images lie.
    pub async fn image_fs_info(&self) -> Result<Vec<FilesystemUsage>> {
        let call = Call::repeatable("ImageFsInfo", SHORT);
        let response = call
            .make(|| {
                let mut client = self.image_service();
                async move { client.image_fs_info(ImageFsInfoRequest {}).await }
            })
            .await?;
        Ok(response.image_filesystems)
    }
}
