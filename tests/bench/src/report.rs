//! What a measurement leaves: a report for people, beside the same for programs.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

/// Writes `NAME.md` and `NAME.json` into a folder, which is made.
pub fn write(folder: &Path, name: &str, results: &impl Serialize, text: &str) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    let json = serde_json::to_string_pretty(results)?;
    fs::write(folder.join(name).with_extension("json"), json + "\n")?;
    fs::write(folder.join(name).with_extension("md"), text)?;
    Ok(())
}
