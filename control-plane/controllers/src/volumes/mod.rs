//! What PersistentVolumes and their claims become: bound to each other, protected while in use, attached to
//! nodes, made for generic ephemeral volumes. Nothing here mounts, attaches or
//! provisions: node agents and CSI drivers do.

mod attachment;
mod binder;
mod claim;
mod ephemeral;
mod protection;
mod volume;

pub(crate) use attachment::start as start_attachment;
pub(crate) use binder::start as start_binder;
pub(crate) use ephemeral::start as start_ephemeral;
pub(crate) use protection::{
    start_claims as start_claim_protection, start_volumes as start_volume_protection,
};
