//! LIST: the cached bytes, streamed.

use std::sync::Arc;

use bytes::Bytes;
use http::{Response, StatusCode};
use serde_json::{Map, Value, json};
use windlass_api::resource::Conversion;
use windlass_machinery::protobuf;
use windlass_machinery::status::ApiError;

use crate::cacher::{Entry, Filter, Page};
use crate::catalog::Endpoint;
use crate::context::{Context, now, to_served};
use crate::negotiation::{Encoding, Transform};
use crate::options::ListOptions;
use crate::table::{self, Include};
use crate::{Body, encode, response};

/// A list is sent in pieces of about this size; smaller ones go out whole, with their length.
const CHUNK: usize = 128 << 10;

pub(super) async fn list(
    context: &Context,
    endpoint: &Arc<Endpoint>,
) -> Result<Response<Body>, ApiError> {
    if let Transform::Metadata { list: false, .. } = context.accepted.transform {
        return Err(ApiError::not_acceptable(
            "you requested PartialObjectMetadata, but the requested object is a list",
        ));
    }
    let options = ListOptions::parse(&context.query, false)?;
    let filter = filter(context, endpoint, &options)?;
    let mut page = context
        .server
        .caches
        .list(endpoint.cacher()?, &filter, &options)
        .await?;
    present(endpoint, &mut page.entries)?;
    let form = Form::of(context)?;
    let writer = Writer {
        endpoint: endpoint.clone(),
        form,
        now: now(),
    };
    match context.accepted.encoding {
        Encoding::Json => {}
        Encoding::Yaml => return Ok(context.respond_plain(StatusCode::OK, writer.value(&page)?)),
        Encoding::Protobuf => {
            return Ok(response::with_type(
                StatusCode::OK,
                Encoding::Protobuf.content_type(),
                response::full(writer.protobuf(&page)?),
            ));
        }
    }
    Ok(response::with_type(
        StatusCode::OK,
        "application/json",
        writer.body(page),
    ))
}

/// What a list or watch of this request selects.
pub(super) fn filter(
    context: &Context,
    endpoint: &Endpoint,
    options: &ListOptions,
) -> Result<Filter, ApiError> {
    let info = &context.info;
    let namespace = endpoint
        .resource
        .namespaced
        .then_some(info.namespace.as_str());
    let namespace = namespace.filter(|namespace| !namespace.is_empty());
    // Where two groups share stored objects, each has its own names for the same selectable fields, in one order.
    let shares = endpoint.stored.group != endpoint.resource.group;
    let resource = if shares {
        &endpoint.resource
    } else {
        &endpoint.cacher()?.resource
    };
    if let (Some(Conversion::Custom(custom)), Some(fields)) =
        (&endpoint.version().convert, &options.fields)
    {
        let labels = options.labels.clone();
        return Filter::converting(resource, namespace, labels, fields, custom.clone());
    }
    Filter::new(
        resource,
        namespace,
        options.labels.clone(),
        options.fields.as_ref(),
    )
}

/// Converts entries of a custom resource all at once: another server may have to be asked.
///
/// # Errors
/// When the conversion fails.
pub(super) fn present(endpoint: &Endpoint, entries: &mut [Arc<Entry>]) -> Result<(), ApiError> {
    let Some(Conversion::Custom(custom)) = &endpoint.version().convert else {
        return Ok(());
    };
    let mut objects = entries
        .iter()
        .map(|entry| entry.decode())
        .collect::<Result<Vec<_>, _>>()?;
    custom.serve(&mut objects)?;
    for (entry, object) in entries.iter_mut().zip(objects) {
        let (_, bytes) = encode::for_storage(object);
        *entry = Arc::new(entry.converted(bytes));
    }
    Ok(())
}

/// What becomes of each object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The object in the endpoint's version.
    Object,
    Metadata {
        beta: bool,
    },
    Row {
        beta: bool,
        include: Include,
    },
}

impl Form {
    /// # Errors
    /// 400 for an unknown `includeObject`.
    pub(super) fn of(context: &Context) -> Result<Self, ApiError> {
        Ok(match context.accepted.transform {
            Transform::None | Transform::Discovery { .. } => Self::Object,
            Transform::Metadata { beta, .. } => Self::Metadata { beta },
            Transform::Table { beta } => Self::Row {
                beta,
                include: Include::parse(&context.query)?,
            },
        })
    }
}

struct Writer {
    endpoint: Arc<Endpoint>,
    form: Form,
    now: i64,
}

impl Writer {
    /// The list without its items, and under which key those stand.
    fn shell(&self, page: &Page) -> (Value, &'static str) {
        let mut metadata = Map::new();
        metadata.insert(
            "resourceVersion".to_owned(),
            page.revision.to_string().into(),
        );
        if let Some(token) = &page.continue_token {
            metadata.insert("continue".to_owned(), token.as_str().into());
        } else if self.form == Form::Object && self.endpoint.is_custom() {
            // What has no Go type shows it also where there is nothing to go on with.
            metadata.insert("continue".to_owned(), "".into());
        }
        if let Some(remaining) = page.remaining {
            metadata.insert("remainingItemCount".to_owned(), remaining.into());
        }
        let metadata = Value::Object(metadata);
        match self.form {
            Form::Row { beta, .. } => {
                let mut table = table::empty(&self.endpoint, beta, metadata, true);
                table
                    .as_object_mut()
                    .expect("a table is an object")
                    .remove("rows");
                (table, "rows")
            }
            Form::Metadata { beta } => {
                let (kind, api_version) = table::metadata_list(beta);
                let shell = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
                (shell, "items")
            }
            Form::Object => {
                let shell = json!({
                    "kind": self.endpoint.resource.list_kind,
                    "apiVersion": self.endpoint.api_version(),
                    "metadata": metadata,
                });
                (shell, "items")
            }
        }
    }

    fn write(&self, out: &mut Vec<u8>, entry: &Entry) -> Result<(), ApiError> {
        if self.form == Form::Object && self.endpoint.is_stored_version() {
            entry
                .value
                .read(|stored| encode::splice(out, stored, entry.revision));
        } else {
            encode::write_object(out, &self.item(entry)?);
        }
        Ok(())
    }

    fn item(&self, entry: &Entry) -> Result<Value, ApiError> {
        let mut object = entry.decode()?;
        Ok(match self.form {
            Form::Object => {
                to_served(&self.endpoint, &mut object)?;
                object
            }
            Form::Metadata { beta } => table::metadata_of(&object, beta),
            Form::Row { beta, include } => {
                table::row(&self.endpoint, object, include, beta, self.now)?
            }
        })
    }

    fn value(&self, page: &Page) -> Result<Value, ApiError> {
        let (mut shell, key) = self.shell(page);
        shell[key] = page
            .entries
            .iter()
            .map(|e| self.item(e))
            .collect::<Result<_, _>>()?;
        Ok(shell)
    }

    /// The list's message in its envelope, object by object.
    fn protobuf(&self, page: &Page) -> Result<Vec<u8>, ApiError> {
        let unencodable = |error| ApiError::internal(format!("no protobuf of a list: {error}"));
        let (shell, _) = self.shell(page);
        let text = |key: &str| shell[key].as_str().unwrap_or_default();
        let mut raw = Vec::new();
        if let Some((schema, id)) = crate::types::builtin("v1", "ListMeta") {
            let metadata = protobuf::encode(&schema, id, &shell["metadata"]);
            protobuf::put_list_metadata(&mut raw, &metadata.map_err(unencodable)?);
        }
        for entry in &page.entries {
            let item = self.item(entry)?;
            let encoded = match self.form {
                Form::Metadata { .. } => {
                    let (schema, id) =
                        crate::types::builtin(text("apiVersion"), "PartialObjectMetadata")
                            .ok_or_else(|| ApiError::internal("no type of bare metadata"))?;
                    protobuf::encode(&schema, id, &item)
                }
                _ => {
                    let version = self.endpoint.version();
                    protobuf::encode(&version.schema, version.type_id, &item)
                }
            };
            protobuf::put_item(&mut raw, &encoded.map_err(unencodable)?);
        }
        Ok(protobuf::wrap(text("apiVersion"), text("kind"), &raw))
    }

    fn body(self, page: Page) -> Body {
        let (shell, key) = self.shell(&page);
        let mut out = encode::object(&shell);
        out.pop();
        out.extend_from_slice(format!(",\"{key}\":[").as_bytes());
        let mut pieces = Pieces {
            writer: self,
            entries: page.entries.into_iter(),
            first: true,
            ended: false,
        };
        if pieces.fill(&mut out) {
            return response::full(out);
        }
        let head = futures::stream::iter([Bytes::from(out)]);
        response::streamed(futures::StreamExt::chain(
            head,
            futures::stream::iter(pieces),
        ))
    }
}

/// The rest of a list, made as it is sent. Only pointers to the entries are held meanwhile.
struct Pieces {
    writer: Writer,
    entries: std::vec::IntoIter<Arc<Entry>>,
    first: bool,
    ended: bool,
}

impl Pieces {
    /// Appends objects until the piece is full; answers whether the list has ended.
    fn fill(&mut self, out: &mut Vec<u8>) -> bool {
        while out.len() < CHUNK {
            let Some(entry) = self.entries.next() else {
                out.extend_from_slice(b"]}\n");
                self.ended = true;
                return true;
            };
            let before = out.len();
            if !self.first {
                out.push(b',');
            }
            match self.writer.write(out, &entry) {
                Ok(()) => self.first = false,
                Err(error) => {
                    out.truncate(before);
                    tracing::error!(key = %entry.key, %error, "an object is left out of a list");
                }
            }
        }
        false
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK + 4096);
        self.fill(&mut out);
        Some(out.into())
    }
}
