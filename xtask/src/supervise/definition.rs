//! What the supervisor is told about each service: a JSON file, so that a person can read it too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

/// One service, in the terms of a systemd unit.
pub struct Definition {
    pub name: String,
    pub command: Vec<String>,
    pub log: PathBuf,
    pub pid_file: PathBuf,
    /// Files that must exist before the first start (`After=` and `ConditionPathExists=` in one).
    pub after: Vec<PathBuf>,
    /// Runs to its end before the process is told to stop (`ExecStop=`).
    pub before_stop: Vec<String>,
    /// How long the process may take to end after SIGTERM (`TimeoutStopSec=`).
    pub stop_limit: Duration,
}

pub fn write(file: &Path, definitions: &[Definition]) -> Result<()> {
    let services: Vec<Value> = definitions
        .iter()
        .map(|definition| {
            json!({
                "name": definition.name,
                "command": definition.command,
                "log": definition.log,
                "pidFile": definition.pid_file,
                "after": definition.after,
                "beforeStop": definition.before_stop,
                "stopLimitSeconds": definition.stop_limit.as_secs(),
            })
        })
        .collect();
    fs::write(file, format!("{:#}\n", json!({ "services": services })))
        .with_context(|| format!("writing {}", file.display()))
}

pub fn read(file: &Path) -> Result<Vec<Definition>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    parse(&text).with_context(|| format!("in {}", file.display()))
}

fn parse(text: &str) -> Result<Vec<Definition>> {
    let document: Value = serde_json::from_str(text)?;
    let services = document["services"]
        .as_array()
        .context("`services` is not a list")?;
    services
        .iter()
        .map(|service| {
            Ok(Definition {
                name: string(service, "name")?,
                command: strings(service, "command")?,
                log: string(service, "log")?.into(),
                pid_file: string(service, "pidFile")?.into(),
                after: strings(service, "after")?
                    .into_iter()
                    .map(PathBuf::from)
                    .collect(),
                before_stop: strings(service, "beforeStop")?,
                stop_limit: Duration::from_secs(
                    service["stopLimitSeconds"]
                        .as_u64()
                        .context("`stopLimitSeconds` is no number")?,
                ),
            })
        })
        .collect()
}

fn string(service: &Value, field: &str) -> Result<String> {
    service[field]
        .as_str()
        .map(str::to_owned)
        .with_context(|| format!("`{field}` is no string"))
}

fn strings(service: &Value, field: &str) -> Result<Vec<String>> {
    service[field]
        .as_array()
        .with_context(|| format!("`{field}` is no list"))?
        .iter()
        .map(|item| {
            item.as_str()
                .map(str::to_owned)
                .with_context(|| format!("`{field}` holds no strings"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let file = std::env::temp_dir().join(format!("windlass-supervise-{}", std::process::id()));
        let service = Definition {
            name: "sleeper".into(),
            command: vec!["sleep".into(), "10".into()],
            log: "/tmp/log".into(),
            pid_file: "/tmp/pid".into(),
            after: vec!["/etc/hosts".into()],
            before_stop: vec![],
            stop_limit: Duration::from_secs(3),
        };
        write(&file, &[service]).unwrap();
        let read = read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(read.len(), 1);
        assert_eq!(read[0].command, ["sleep", "10"]);
        assert_eq!(read[0].after, [PathBuf::from("/etc/hosts")]);
        assert_eq!(read[0].stop_limit, Duration::from_secs(3));
    }

    #[test]
    fn a_broken_definition_names_the_field() {
        let error = parse(r#"{"services": [{"name": "x", "command": "sleep"}]}"#)
            .err()
            .unwrap();
        assert!(format!("{error:#}").contains("command"));
    }
}
