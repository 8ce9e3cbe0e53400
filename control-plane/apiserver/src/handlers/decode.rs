//! From a request's body to an object that fits its schema, or the 400 that says why not.

use http::HeaderMap;
use serde_json::Value;
use windlass_machinery::schema::{Schema, TypeId};
use windlass_machinery::status::ApiError;
use windlass_machinery::{fields, meta};

use crate::Body;
use crate::body::{self, Decoded};
use crate::catalog::Endpoint;
use crate::context::Context;
use crate::negotiation::MediaType;
use crate::options::FieldValidation;

/// What a body must be.
pub(super) struct Expected<'e> {
    pub api_version: &'e str,
    pub kind: &'e str,
    pub schema: &'e Schema,
    pub type_id: TypeId,
    /// A custom resource must say itself what it is; others are taken for what the path asks for.
    pub custom: bool,
}

impl<'e> Expected<'e> {
    /// An object of the endpoint's kind, whose apiVersion is given for as long as it is needed.
    pub(super) fn of(endpoint: &'e Endpoint, api_version: &'e str) -> Self {
        let version = endpoint.version();
        Self {
            api_version,
            kind: endpoint.kind(),
            schema: &version.schema,
            type_id: version.type_id,
            custom: endpoint.is_custom(),
        }
    }
}

/// Reads and checks an object of the endpoint's kind; answers it in the endpoint's version.
///
/// # Errors
/// 400, 413 or 415.
pub(super) async fn object(
    context: &Context,
    endpoint: &Endpoint,
    body: Body,
    validation: FieldValidation,
) -> Result<Value, ApiError> {
    let api_version = endpoint.api_version();
    read(
        context,
        &Expected::of(endpoint, &api_version),
        body,
        validation,
    )
    .await
}

/// Reads an object of a built-in type that is not the endpoint's own: a Scale, an Eviction, options.
///
/// # Errors
/// 400, 413 or 415.
pub(super) async fn builtin(
    context: &Context,
    api_version: &str,
    kind: &str,
    body: Body,
    validation: FieldValidation,
) -> Result<Value, ApiError> {
    let (schema, type_id) = crate::types::builtin(api_version, kind)
        .ok_or_else(|| ApiError::internal(format!("no type {api_version} {kind}")))?;
    let expected = Expected {
        api_version,
        kind,
        schema: &schema,
        type_id,
        custom: false,
    };
    read(context, &expected, body, validation).await
}

async fn read(
    context: &Context,
    expected: &Expected<'_>,
    body: Body,
    validation: FieldValidation,
) -> Result<Value, ApiError> {
    let media = MediaType::of_object(&context.headers)?;
    let bytes = body::read(&context.headers, body).await?;
    let decoded = body::decode(media, &bytes)
        .map_err(|error| error.message)
        .and_then(|decoded| stated(expected, &decoded.value).map(|()| decoded))
        .map_err(|why| {
            ApiError::bad_request(format!(
                "the object provided is unrecognized (must be of type {}): {why} ({})",
                expected.kind,
                summary(&bytes)
            ))
        })?;
    checked(context, expected, decoded, validation)
}

/// The body of a DELETE, if there is one.
///
/// # Errors
/// 400, 413 or 415.
pub(super) async fn delete_options(
    context: &Context,
    body: Body,
) -> Result<Option<Value>, ApiError> {
    let headers: &HeaderMap = &context.headers;
    let bytes = body::read(headers, body).await?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let media = MediaType::of_object(headers)?;
    let mut value = body::decode(media, &bytes)?.value;
    let kind = value["kind"].as_str().unwrap_or_default();
    if !kind.is_empty() && kind != "DeleteOptions" {
        return Err(ApiError::bad_request(format!(
            "decoded object cannot be converted to DeleteOptions: {kind}"
        )));
    }
    if let Some((schema, type_id)) = crate::types::builtin("v1", "DeleteOptions") {
        let report = fields::check(&schema, type_id, &mut value);
        if let Some(error) = report.errors.first() {
            return Err(ApiError::bad_request(error.clone()));
        }
    }
    Ok(Some(value))
}

/// The beginning of a body, as upstream shows it: JSON as it is, all else in hexadecimal digits.
fn summary(bytes: &[u8]) -> String {
    const SHOWN: usize = 30;
    let head = &bytes[..bytes.len().min(SHOWN)];
    let mut text = match head {
        [] => "<empty>".to_owned(),
        [b'{', ..] => String::from_utf8_lossy(head).into_owned(),
        _ => head.iter().map(|byte| format!("{byte:02x}")).collect(),
    };
    if bytes.len() > SHOWN {
        text.push_str(" ...");
    }
    text
}

/// Why an object of the right kind does not fit its schema.
pub(super) enum Misfit {
    /// A value of the wrong type, in the words of Go's decoder and in those of its converter.
    Type { decoding: String, restoring: String },
    /// Fields that are unknown or twice there, where that is not allowed.
    Fields(String),
}

/// Checks type and fields, according to `validation`.
///
/// # Errors
/// 400 for another type, for values of a wrong type, and for unknown fields where they are not allowed.
pub(super) fn checked(
    context: &Context,
    expected: &Expected<'_>,
    mut decoded: Decoded,
    validation: FieldValidation,
) -> Result<Value, ApiError> {
    of_kind(expected, &mut decoded.value)?;
    fitting(context, expected, decoded, validation).map_err(|misfit| match misfit {
        Misfit::Type { decoding: why, .. } | Misfit::Fields(why) => {
            cannot((expected.api_version, expected.kind), expected, &why)
        }
    })
}

/// Checks that what a body says of its own type can be read, and that a custom resource says it.
///
/// # Errors
/// Why it is no object of any kind.
pub(super) fn stated(expected: &Expected<'_>, value: &Value) -> Result<(), String> {
    let unreadable = |value: &Value, field: &str, ty: &str| {
        let json = json_type(value);
        Err(format!(
            "couldn't get version/kind; json parse error: json: cannot unmarshal {json} into Go {field} of type {ty}"
        ))
    };
    if !value.is_object() {
        return unreadable(value, "value", "struct");
    }
    for field in ["apiVersion", "kind"] {
        match &value[field] {
            Value::Null | Value::String(_) => {}
            other => return unreadable(other, &format!("struct field .{field}"), "string"),
        }
    }
    if expected.custom && value["kind"].as_str().is_none_or(str::is_empty) {
        return Err(format!("Object 'Kind' is missing in '{value}'"));
    }
    Ok(())
}

/// Checks that the object says that it is of the expected type. A built-in one that says nothing is told.
///
/// # Errors
/// 400.
pub(super) fn of_kind(expected: &Expected<'_>, value: &mut Value) -> Result<(), ApiError> {
    if !expected.custom {
        for (field, wanted) in [
            ("apiVersion", expected.api_version),
            ("kind", expected.kind),
        ] {
            if value[field].as_str().is_none_or(str::is_empty) {
                value[field] = wanted.into();
            }
        }
    }
    let kind = value["kind"].as_str().unwrap_or_default();
    let api_version = value["apiVersion"].as_str().unwrap_or_default();
    if kind != expected.kind {
        let why = format!(
            "converting ({api_version}.{kind}) to ({}.{}): unknown conversion",
            expected.api_version, expected.kind
        );
        return Err(cannot((api_version, kind), expected, &why));
    }
    if api_version != expected.api_version {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    Ok(())
}

fn cannot((api_version, kind): (&str, &str), expected: &Expected<'_>, why: &str) -> ApiError {
    let version = api_version.rsplit('/').next().unwrap_or_default();
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {}: {why}",
        expected.kind
    ))
}

/// Checks the fields of an object of the right kind.
///
/// # Errors
/// The first value of a wrong type, or all complaints where there must be none.
pub(super) fn fitting(
    context: &Context,
    expected: &Expected<'_>,
    decoded: Decoded,
    validation: FieldValidation,
) -> Result<Value, Misfit> {
    let Decoded {
        mut value,
        duplicates,
    } = decoded;
    let report = fields::check(expected.schema, expected.type_id, &mut value);
    let wrong = report.errors.into_iter().zip(report.restoring).next();
    if let Some((decoding, restoring)) = wrong {
        return Err(Misfit::Type {
            decoding,
            restoring,
        });
    }
    let mut complaints: Vec<String> = report
        .unknown
        .iter()
        .map(|field| format!("unknown field {field:?}"))
        .collect();
    complaints.extend(duplicates);
    match validation {
        FieldValidation::Strict if !complaints.is_empty() => {
            let complaints = complaints.join(", ");
            return Err(Misfit::Fields(format!(
                "strict decoding error: {complaints}"
            )));
        }
        FieldValidation::Warn => complaints.into_iter().for_each(|text| context.warn(text)),
        _ => {}
    }
    Ok(value)
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Checks that a written object's namespace is that of the path, which it is given where it says none.
///
/// # Errors
/// 400 where it is another one.
pub(super) fn place(
    endpoint: &Endpoint,
    object: &mut Value,
    namespace: &str,
) -> Result<(), ApiError> {
    let given = meta::namespace(object);
    if endpoint.resource.namespaced {
        if !given.is_empty() && given != namespace {
            return Err(ApiError::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        meta::set_namespace(object, namespace);
    } else if !given.is_empty() {
        return Err(ApiError::bad_request(
            "namespace may not be specified for a cluster-scoped resource",
        ));
    }
    Ok(())
}

/// Checks namespace and name of what replaces an object.
///
/// # Errors
/// 400 where they are not those of the path.
pub(super) fn replaces(
    endpoint: &Endpoint,
    object: &mut Value,
    (namespace, name): (&str, &str),
) -> Result<(), ApiError> {
    place(endpoint, object, namespace)?;
    match meta::name(object) {
        given if given == name => Ok(()),
        "" => Err(ApiError::bad_request(format!(
            "the name of the object ({name} based on URL) was undeterminable: name must be provided"
        ))),
        given => Err(ApiError::bad_request(format!(
            "the name of the object ({given}) does not match the name on the URL ({name})"
        ))),
    }
}
