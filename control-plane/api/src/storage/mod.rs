//! Classes, drivers and attachments of volumes: `storage.k8s.io/v1`.

use crate::resource::Resource;

fn storage(kind: &'static str, plural: &'static str) -> Resource {
    Resource::new("storage.k8s.io", "v1", kind, plural).cluster()
}

pub fn resources() -> Vec<Resource> {
    vec![
        storage("CSIDriver", "csidrivers").columns(
            "?AttachRequired, ?PodInfoOnMount, ?StorageCapacity, TokenRequests, ?RequiresRepublish, Modes, \
             Age",
        ),
        storage("CSINode", "csinodes").columns("#Drivers, Age"),
        storage("CSIStorageCapacity", "csistoragecapacities")
            .namespaced()
            .columns("StorageClassName, Capacity"),
        storage("StorageClass", "storageclasses").short("sc").columns(
            "=Name, Provisioner, ReclaimPolicy, VolumeBindingMode, AllowVolumeExpansion, Age",
        ),
        storage("VolumeAttachment", "volumeattachments")
            .status()
            .columns("Attacher, PV, Node, ?Attached, Age"),
        storage("VolumeAttributesClass", "volumeattributesclasses")
            .short("vac")
            .columns("=Name, DriverName, Age"),
    ]
}
