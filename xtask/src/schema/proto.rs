//! Reads messages, fields and comment markers from `generated.proto` files.
//!
//! They are written by one generator in one shape (one field a line, markers in the comment above it), so a
//! line reader is enough; a line that it does not understand is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::files_below;

/// Messages by full name, such as `api.core.v1.Pod`.
pub(super) type Messages = BTreeMap<String, Message>;

#[derive(Debug, Default)]
pub(super) struct Message {
    pub(super) markers: Vec<(String, String)>,
    pub(super) fields: Vec<Field>,
}

#[derive(Debug)]
pub(super) struct Field {
    pub(super) name: String,
    pub(super) tag: u32,
    pub(super) shape: Shape,
    /// A scalar (`int32`), or the full name of a message.
    pub(super) ty: String,
    pub(super) markers: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    List,
    /// Keys are always strings.
    Map,
}

impl Field {
    pub(super) fn marker<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        let name = name.to_owned();
        self.markers
            .iter()
            .filter(move |(key, _)| *key == name)
            .map(|(_, value)| value.as_str())
    }
}

pub(super) fn read(root: &Path) -> Result<Messages> {
    let mut messages = Messages::new();
    for path in files_below(root, "proto")? {
        let text = fs::read_to_string(&path)?;
        parse(&text, &mut messages).with_context(|| path.display().to_string())?;
    }
    Ok(messages)
}

fn parse(text: &str, messages: &mut Messages) -> Result<()> {
    let mut package = "";
    let mut markers = Vec::new();
    let mut current: Option<(String, Message)> = None;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix("//") {
            if let Some(marker) = comment.trim().strip_prefix('+') {
                let (key, value) = marker.split_once('=').unwrap_or((marker, ""));
                markers.push((key.to_owned(), value.to_owned()));
            }
        } else if line.is_empty() {
            // The comment block above a message may be separated by a blank line only from what precedes it.
            markers.clear();
        } else if let Some(name) = line.strip_prefix("package ") {
            package = name.trim_end_matches(';');
        } else if let Some(name) = line.strip_prefix("message ") {
            let name = name.trim_end_matches('{').trim();
            let message = Message {
                markers: std::mem::take(&mut markers),
                fields: Vec::new(),
            };
            current = Some((format!("{package}.{name}"), message));
        } else if line == "}" {
            messages.extend(current.take());
            markers.clear();
        } else if let Some((_, message)) = &mut current {
            message
                .fields
                .push(field(line, package, std::mem::take(&mut markers))?);
        }
    }
    Ok(())
}

fn field(line: &str, package: &str, markers: Vec<(String, String)>) -> Result<Field> {
    let (declaration, tag) = line
        .trim_end_matches(';')
        .rsplit_once('=')
        .with_context(|| format!("not a field: {line}"))?;
    let tag = tag
        .trim()
        .parse()
        .with_context(|| format!("no tag: {line}"))?;
    let (ty, name) = declaration
        .trim()
        .rsplit_once(' ')
        .with_context(|| format!("no name: {line}"))?;
    let (shape, ty) = if let Some(ty) = ty.strip_prefix("repeated ") {
        (Shape::List, ty)
    } else if let Some(ty) = ty.strip_prefix("optional ") {
        (Shape::One, ty)
    } else if let Some(value) = ty
        .strip_prefix("map<string, ")
        .and_then(|t| t.strip_suffix('>'))
    {
        (Shape::Map, value)
    } else {
        bail!("unknown shape: {line}");
    };
    let ty = match ty.strip_prefix('.') {
        Some(full) => full.to_owned(),
        None if ty.starts_with(char::is_uppercase) => format!("{package}.{ty}"),
        None => ty.to_owned(),
    };
    Ok(Field {
        name: name.to_owned(),
        tag,
        shape,
        ty,
        markers,
    })
}
