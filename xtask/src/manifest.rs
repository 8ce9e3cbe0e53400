//! `cargo xtask manifest`: the chart of the node agent as a manifest, without helm.
//!
//! The templates insert values and do nothing else, so this is all of helm that they need. With the chart's own
//! values it gives `deploy/node-agent.yaml`, which is checked in for those who have neither helm nor Rust.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Write as _, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::layout;

/// In the order in which they are to be applied.
const TEMPLATES: [&str; 3] = ["rbac.yaml", "configmap.yaml", "daemonset.yaml"];
const NAMESPACE: &str = "kube-system";
const USAGE: &str = "usage: cargo xtask manifest [--write | --set KEY=VALUE...]";

const HEAD: &str = "\
# The Windlass node agent in place of kube-proxy and the CNI plugin of a Kubernetes cluster. README.md beside this file
# says how to use it. Written by `cargo xtask manifest --write` from chart/: change it there.
";

/// Values by their path, such as `image.reference`.
type Values = BTreeMap<String, String>;

pub fn run(arguments: &[String]) -> Result<()> {
    let mut values = defaults()?;
    let mut words = arguments.iter();
    let mut write = false;
    while let Some(word) = words.next() {
        match word.as_str() {
            "--write" => write = true,
            "--set" => {
                let set = words.next().and_then(|word| word.split_once('='));
                let (key, value) = set.context(USAGE)?;
                let Some(held) = values.get_mut(key) else {
                    bail!("the chart has no value {key}");
                };
                value.clone_into(held);
            }
            _ => bail!(USAGE),
        }
    }
    let manifest = manifest(&values)?;
    if write {
        fs::write(checked_in(), manifest).context("writing the manifest")
    } else {
        stdout().write_all(manifest.as_bytes())?;
        Ok(())
    }
}

fn checked_in() -> PathBuf {
    layout::repository().join("deploy/node-agent.yaml")
}

fn chart() -> PathBuf {
    layout::repository().join("deploy/chart")
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))
}

fn defaults() -> Result<Values> {
    parse_values(&read(&chart().join("values.yaml"))?)
}

fn manifest(values: &Values) -> Result<String> {
    let documents = TEMPLATES.iter().map(|name| {
        let path = chart().join("templates").join(name);
        render(&read(&path)?, values).with_context(|| format!("in {}", path.display()))
    });
    let documents: Vec<String> = documents.collect::<Result<_>>()?;
    Ok(format!("{HEAD}{}", documents.join("---\n")))
}

/// Mappings of mappings of plain or quoted texts: the chart's values are nothing else.
fn parse_values(text: &str) -> Result<Values> {
    let mut values = Values::new();
    let mut parent = String::new();
    for line in text.lines() {
        let content = line.trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (key, value) = content
            .split_once(':')
            .with_context(|| format!("no value in {line:?}"))?;
        let value = value.trim();
        let nested = line.starts_with("  ");
        if !nested && value.is_empty() {
            parent = format!("{key}.");
            continue;
        }
        if !nested {
            parent.clear();
        }
        values.insert(format!("{parent}{key}"), value.trim_matches('"').to_owned());
    }
    Ok(values)
}

fn render(template: &str, values: &Values) -> Result<String> {
    let mut out = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let (expression, after) = after.split_once("}}").context("a {{ without its }}")?;
        out.push_str(before);
        out.push_str(&evaluate(expression.trim(), values)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(expression: &str, values: &Values) -> Result<String> {
    let (name, quoted) = match expression.split_once('|') {
        None => (expression, false),
        Some((name, function)) if function.trim() == "quote" => (name.trim(), true),
        Some((_, function)) => bail!("only `quote` is known here, not `{}`", function.trim()),
    };
    let value = match name.strip_prefix(".Values.") {
        Some(key) => values
            .get(key)
            .with_context(|| format!("no value {key}"))?
            .as_str(),
        None if name == ".Release.Namespace" => NAMESPACE,
        None => bail!("{name} is not known here"),
    };
    Ok(if quoted {
        format!("{value:?}")
    } else {
        value.to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_manifest_is_the_charts() {
        let rendered = manifest(&defaults().unwrap()).unwrap();
        let held = read(&checked_in()).unwrap();
        assert!(
            rendered == held,
            "run `cargo xtask manifest --write` and commit what it writes"
        );
    }

    #[test]
    fn values_are_inserted_and_quoted_where_the_template_says_so() {
        let values =
            parse_values("# why\na: \"\"\nb: x\nc:\n  # why\n  d: /y\ne: \"8\"\n").unwrap();
        let text = render(
            "{{ .Values.b }} {{ .Values.c.d | quote }} {{ .Values.a | quote }}{{ .Values.e }}",
            &values,
        );
        assert_eq!(text.unwrap(), "x \"/y\" \"\"8");
        for wrong in [
            "{{ .Values.z }}",
            "{{ if .Values.a }}",
            "{{ .Values.b | upper }}",
            "{{ .Values.b",
        ] {
            assert!(render(wrong, &values).is_err(), "{wrong}");
        }
    }
}
