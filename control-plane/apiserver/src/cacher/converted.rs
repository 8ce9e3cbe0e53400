//! Field selectors over a version of a custom resource that is not the one its objects are stored in.
//!
//! Each version has selectable fields of its own, and the index of an entry knows only those of the storage version.
//! So objects are converted before they are looked at, for which a webhook may have to be asked. That must not happen
//! under a cache's lock: whatever the rest of the filter lets through is looked at afterwards.

use std::fmt;
use std::sync::Arc;

use windlass_api::resource::CustomVersion;
use windlass_machinery::selector::FieldSelector;
use windlass_machinery::status::ApiError;

use super::Entry;

#[derive(Clone)]
pub(super) struct Converted {
    convert: Arc<dyn CustomVersion>,
    fields: FieldSelector,
}

impl Converted {
    pub(super) fn new(convert: Arc<dyn CustomVersion>, fields: FieldSelector) -> Self {
        Self { convert, fields }
    }

    /// Whether `entry` is selected.
    ///
    /// # Errors
    /// When the conversion fails.
    pub(super) fn matches(&self, entry: &Arc<Entry>) -> Result<bool, ApiError> {
        let mut one = vec![entry.clone()];
        self.retain(&mut one)?;
        Ok(!one.is_empty())
    }

    /// Leaves what is selected, with one conversion for all entries.
    ///
    /// # Errors
    /// When the conversion fails.
    pub(super) fn retain(&self, entries: &mut Vec<Arc<Entry>>) -> Result<(), ApiError> {
        let mut objects = entries
            .iter()
            .map(|entry| entry.decode())
            .collect::<Result<Vec<_>, _>>()?;
        self.convert.serve(&mut objects)?;
        let mut selected = objects.iter().map(|object| {
            self.fields
                .matches(|field| self.convert.field(object, field))
        });
        entries.retain(|_| selected.next().unwrap_or(false));
        Ok(())
    }
}

impl fmt::Debug for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Converted")
            .field("fields", &self.fields)
            .finish_non_exhaustive()
    }
}
