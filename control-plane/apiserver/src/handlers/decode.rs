//! From a request's body to an object that fits its schema, or the 400 that says why not.

use http::HeaderMap;
use serde_json::Value;
use windlass_machinery::schema::{Schema, TypeId};
use windlass_machinery::status::ApiError;
use windlass_machinery::{fields, meta};

use crate::Body;
use crate::body::{self, Decoded};
use crate::catalog::Endpoint;
use crate::context::{Context, to_stored};
use crate::negotiation::MediaType;
use crate::options::FieldValidation;

/// What a body must be.
pub(super) struct Expected<'e> {
    pub api_version: &'e str,
    pub kind: &'e str,
    pub schema: &'e Schema,
    pub type_id: TypeId,
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
    let version = endpoint.version();
    let expected = Expected {
        api_version: &api_version,
        kind: endpoint.kind(),
        schema: &version.schema,
        type_id: version.type_id,
    };
    let media = MediaType::of_object(&context.headers)?;
    let bytes = body::read(&context.headers, body).await?;
    let decoded = unrecognized(body::decode(media, &bytes), &expected)?;
    checked(context, &expected, decoded, validation)
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
    };
    let media = MediaType::of_object(&context.headers)?;
    let bytes = body::read(&context.headers, body).await?;
    let decoded = unrecognized(body::decode(media, &bytes), &expected)?;
    checked(context, &expected, decoded, validation)
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

fn unrecognized(
    decoded: Result<Decoded, ApiError>,
    expected: &Expected<'_>,
) -> Result<Decoded, ApiError> {
    decoded.map_err(|error| {
        ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {}",
            expected.kind, error.message
        ))
    })
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

/// Checks that the object says that it is of the expected type, or nothing, which is then added.
///
/// # Errors
/// 400.
pub(super) fn of_kind(expected: &Expected<'_>, value: &mut Value) -> Result<(), ApiError> {
    let Some(map) = value.as_object_mut() else {
        return Err(ApiError::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): couldn't get version/kind; \
             json parse error: json: cannot unmarshal {} into Go value of type struct",
            expected.kind,
            json_type(value)
        )));
    };
    for (field, wanted) in [
        ("apiVersion", expected.api_version),
        ("kind", expected.kind),
    ] {
        let given = map.get(field).and_then(Value::as_str).unwrap_or_default();
        if given.is_empty() {
            map.insert(field.to_owned(), wanted.into());
        }
    }
    let kind = map["kind"].as_str().unwrap_or_default();
    let api_version = map["apiVersion"].as_str().unwrap_or_default();
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

/// Places an object as [`place`] does and converts it to the storage version.
///
/// # Errors
/// 400 where it names another place.
pub(super) fn located(
    endpoint: &Endpoint,
    mut object: Value,
    namespace: &str,
    name: Option<&str>,
) -> Result<Value, ApiError> {
    place(endpoint, &mut object, namespace, name)?;
    to_stored(endpoint, &mut object)?;
    Ok(object)
}

/// Checks that an object's name and namespace are those of the path, and fills them in.
///
/// # Errors
/// 400 where they differ.
pub(super) fn place(
    endpoint: &Endpoint,
    object: &mut Value,
    namespace: &str,
    name: Option<&str>,
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
    if let Some(name) = name {
        let given = meta::name(object);
        if given.is_empty() {
            meta::set_name(object, name);
        } else if given != name {
            return Err(ApiError::bad_request(format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            )));
        }
    }
    Ok(())
}
