//! Request options: `ListOptions`, `CreateOptions`, … parsed from the query (and DELETE's body) and validated.
//!
//! Values become types at the door: `fieldValidation` an enum, a resource version a [`Revision`], selectors
//! parsed. Wording and codes follow `k8s.io/apimachinery/pkg/apis/meta/{v1,internalversion}/validation`.

use serde_json::{Value, json};
use windlass_machinery::selector::{FieldSelector, LabelSelector};
use windlass_machinery::status::ApiError;
use windlass_machinery::validation::{Errors, Path};
use windlass_store::Revision;

use crate::query::Query;

/// How unknown and duplicate fields are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldValidation {
    Ignore,
    Warn,
    Strict,
}

/// `metadata.resourceVersion` of a read: none, `0` (anything will do), or a revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadVersion {
    Unset,
    Any,
    At(Revision),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    NotOlderThan,
    Exact,
}

/// Options of list, watch and deletecollection.
#[derive(Clone, Debug)]
pub struct ListOptions {
    pub labels: Option<LabelSelector>,
    pub fields: Option<FieldSelector>,
    pub version: ReadVersion,
    pub version_match: Option<VersionMatch>,
    /// 0: no limit.
    pub limit: usize,
    pub continue_token: Option<String>,
    pub timeout_seconds: Option<u64>,
    pub bookmarks: bool,
    pub send_initial_events: Option<bool>,
}

/// Options of create, update and patch.
#[derive(Clone, Debug)]
pub(crate) struct WriteOptions {
    pub dry_run: bool,
    pub field_manager: String,
    pub field_validation: FieldValidation,
    /// Whether the write is a server-side apply, which has recorded its ownership itself.
    pub apply: bool,
    /// Apply patches only.
    pub force: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Propagation {
    Orphan,
    Background,
    Foreground,
}

/// Options of delete and deletecollection.
#[derive(Clone, Debug, Default)]
pub(crate) struct DeleteOptions {
    pub dry_run: bool,
    pub grace_seconds: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    /// The older way to say it, which the answer's code still depends on.
    pub orphan_dependents: Option<bool>,
}

impl ListOptions {
    /// # Errors
    /// 400 for what cannot be parsed, 422 for combinations that are not allowed.
    pub fn parse(query: &Query, watch: bool) -> Result<Self, ApiError> {
        let labels = query
            .get("labelSelector")
            .map(LabelSelector::parse)
            .transpose()
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let fields = query
            .get("fieldSelector")
            .map(FieldSelector::parse)
            .transpose()
            .map_err(|e| ApiError::bad_request(e.to_string()))?;
        let version = read_version(query.get("resourceVersion").unwrap_or_default())?;
        let limit = query.integer("limit")?.unwrap_or(0);
        let options = Self {
            labels,
            fields,
            version,
            version_match: version_match(query, version, watch)?,
            limit: usize::try_from(limit).unwrap_or(0),
            continue_token: query.get("continue").map(str::to_owned),
            timeout_seconds: query
                .integer("timeoutSeconds")?
                .and_then(|s| u64::try_from(s).ok()),
            bookmarks: query.flag("allowWatchBookmarks"),
            send_initial_events: query.optional_flag("sendInitialEvents"),
        };
        if options.continue_token.is_some() && !watch && matches!(version, ReadVersion::At(_)) {
            return Err(ApiError::bad_request(
                "specifying resource version is not allowed when using continue",
            ));
        }
        Ok(options)
    }
}

/// The `resourceVersion` of a read.
///
/// # Errors
/// 400 when it is not a number.
pub(crate) fn read_version(text: &str) -> Result<ReadVersion, ApiError> {
    match text {
        "" => Ok(ReadVersion::Unset),
        "0" => Ok(ReadVersion::Any),
        text => text
            .parse()
            .map(|n| ReadVersion::At(Revision(n)))
            .map_err(|_| {
                let mut errors = Errors::new();
                errors.invalid(
                    &Path::new("resourceVersion"),
                    text,
                    format!("strconv.ParseUint: parsing {text:?}: invalid syntax"),
                );
                ApiError::bad_request(format!("invalid resource version: {errors}"))
            }),
    }
}

fn version_match(
    query: &Query,
    version: ReadVersion,
    watch: bool,
) -> Result<Option<VersionMatch>, ApiError> {
    let path = Path::new("resourceVersionMatch");
    let mut errors = Errors::new();
    let text = query.get("resourceVersionMatch");
    let initial_events = query.optional_flag("sendInitialEvents");
    let parsed = match text {
        None => None,
        Some("NotOlderThan") => Some(VersionMatch::NotOlderThan),
        Some("Exact") if !watch => Some(VersionMatch::Exact),
        Some(other) if watch => {
            errors.not_supported(&path, other, &["NotOlderThan"]);
            None
        }
        Some(other) => {
            errors.not_supported(&path, other, &["Exact", "NotOlderThan", ""]);
            None
        }
    };
    let continues = query.get("continue").is_some();
    let mut refuse = |applies: bool, path: &Path, why: &str| {
        if applies {
            errors.forbidden(path, why);
        }
    };
    if watch {
        refuse(
            initial_events.is_some() && parsed != Some(VersionMatch::NotOlderThan),
            &path,
            "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        );
        refuse(
            initial_events.is_none() && text.is_some(),
            &path,
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        );
    } else {
        refuse(
            text.is_some() && version == ReadVersion::Unset,
            &path,
            "resourceVersionMatch is forbidden unless resourceVersion is provided",
        );
        refuse(
            parsed == Some(VersionMatch::Exact) && version == ReadVersion::Any,
            &path,
            "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        );
        refuse(
            initial_events.is_some(),
            &Path::new("sendInitialEvents"),
            "sendInitialEvents is forbidden for list",
        );
    }
    refuse(
        text.is_some() && continues,
        &path,
        "resourceVersionMatch is forbidden when continue is provided",
    );
    if errors.is_empty() {
        Ok(parsed)
    } else {
        Err(invalid("ListOptions", &errors))
    }
}

fn invalid(kind: &str, errors: &Errors) -> ApiError {
    ApiError::invalid("meta.k8s.io", kind, "", errors)
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>, errors: &mut Errors) -> bool {
    let values: Vec<_> = values.filter(|value| !value.is_empty()).collect();
    if values.iter().any(|value| *value != "All") {
        errors.not_supported(&Path::new("dryRun"), values.clone(), &["All"]);
    }
    values.contains(&"All")
}

impl WriteOptions {
    /// `kind` is `CreateOptions`, `UpdateOptions` or `PatchOptions`; `user_agent` names the manager of clients
    /// that do not name one themselves.
    ///
    /// # Errors
    /// 422 when a value is not allowed.
    pub(crate) fn parse(
        query: &Query,
        kind: &str,
        user_agent: &str,
        apply: bool,
    ) -> Result<Self, ApiError> {
        let mut errors = Errors::new();
        let dry_run = dry_run(query.all("dryRun"), &mut errors);
        let manager = query.get("fieldManager").unwrap_or_default();
        let path = Path::new("fieldManager");
        if manager.len() > 128 {
            errors.too_long(&path, 128);
        }
        if manager.chars().any(|c| c.is_control()) {
            errors.invalid(&path, manager, "should only contain printable characters");
        }
        if apply && manager.is_empty() {
            errors.required(&path, "is required for apply patch");
        }
        let force = query.optional_flag("force");
        if kind == "PatchOptions" && !apply && force.is_some() {
            errors.forbidden(
                &Path::new("force"),
                "may not be specified for non-apply patch",
            );
        }
        let field_validation = match query.get("fieldValidation") {
            None | Some("Warn") => FieldValidation::Warn,
            Some("Ignore") => FieldValidation::Ignore,
            Some("Strict") => FieldValidation::Strict,
            Some(other) => {
                errors.not_supported(
                    &Path::new("fieldValidation"),
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                );
                FieldValidation::Warn
            }
        };
        if !errors.is_empty() {
            return Err(invalid(kind, &errors));
        }
        let field_manager = if manager.is_empty() {
            manager_of(user_agent)
        } else {
            manager.to_owned()
        };
        let force = force.unwrap_or(false);
        Ok(Self {
            dry_run,
            field_manager,
            field_validation,
            apply,
            force,
        })
    }
}

/// `kubectl/v1.32 (linux/amd64)` is `kubectl`.
fn manager_of(user_agent: &str) -> String {
    let name = user_agent.split('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| !c.is_control()).take(128).collect();
    if name.is_empty() {
        "unknown".to_owned()
    } else {
        name
    }
}

impl DeleteOptions {
    /// The body's options win over the query's, which are only read where there is no body.
    ///
    /// # Errors
    /// 400 for what cannot be parsed, 422 when a value is not allowed.
    pub(crate) fn parse(query: &Query, body: Option<&Value>) -> Result<Self, ApiError> {
        let mut errors = Errors::new();
        let text = |field: &str| -> Option<String> {
            match body {
                Some(body) => body[field].as_str().map(str::to_owned),
                None => query.get(field).map(str::to_owned),
            }
        };
        let policy = text("propagationPolicy");
        let mut options = Self::default();
        let orphan = match body {
            Some(body) => {
                let preconditions = &body["preconditions"];
                options.uid = preconditions["uid"].as_str().map(str::to_owned);
                options.resource_version =
                    preconditions["resourceVersion"].as_str().map(str::to_owned);
                options.grace_seconds = body["gracePeriodSeconds"].as_i64();
                let values = body["dryRun"]
                    .as_array()
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                options.dry_run = dry_run(values.iter().filter_map(Value::as_str), &mut errors);
                body["orphanDependents"].as_bool()
            }
            None => {
                options.grace_seconds = query.integer("gracePeriodSeconds")?;
                options.dry_run = dry_run(query.all("dryRun"), &mut errors);
                query.optional_flag("orphanDependents")
            }
        };
        options.orphan_dependents = orphan;
        let path = Path::new("propagationPolicy");
        options.propagation = match policy.as_deref() {
            None | Some("") => orphan.map(|orphan| {
                if orphan {
                    Propagation::Orphan
                } else {
                    Propagation::Background
                }
            }),
            Some("Orphan") => Some(Propagation::Orphan),
            Some("Background") => Some(Propagation::Background),
            Some("Foreground") => Some(Propagation::Foreground),
            Some(other) => {
                errors.not_supported(&path, other, &["Foreground", "Background", "Orphan", "nil"]);
                None
            }
        };
        if let Some(policy) = policy.filter(|p| !p.is_empty() && orphan.is_some()) {
            let detail = "orphanDependents and deletionPropagation cannot be both set";
            errors.invalid(&path, &*policy, detail);
        }
        if errors.is_empty() {
            Ok(options)
        } else {
            Err(invalid("DeleteOptions", &errors))
        }
    }

    /// The `meta.k8s.io/v1` object that says the same.
    pub(crate) fn to_object(&self) -> Value {
        let mut object = json!({"kind": "DeleteOptions", "apiVersion": "meta.k8s.io/v1"});
        if let Some(seconds) = self.grace_seconds {
            object["gracePeriodSeconds"] = seconds.into();
        }
        for (field, wanted) in [
            ("uid", &self.uid),
            ("resourceVersion", &self.resource_version),
        ] {
            if let Some(wanted) = wanted {
                object["preconditions"][field] = wanted.as_str().into();
            }
        }
        if let Some(orphan) = self.orphan_dependents {
            object["orphanDependents"] = orphan.into();
        } else if let Some(policy) = self.propagation {
            object["propagationPolicy"] = format!("{policy:?}").into();
        }
        if self.dry_run {
            object["dryRun"] = json!(["All"]);
        }
        object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_match_needs_a_fitting_version() {
        let list = |raw: &str| ListOptions::parse(&Query::parse(raw), false);
        assert!(list("resourceVersion=5&resourceVersionMatch=Exact").is_ok());
        for bad in [
            "resourceVersionMatch=Exact",
            "resourceVersion=0&resourceVersionMatch=Exact",
            "resourceVersion=1&resourceVersionMatch=Sometimes",
            "sendInitialEvents=true",
        ] {
            assert_eq!(list(bad).unwrap_err().code, 422, "{bad}");
        }
        assert_eq!(list("resourceVersion=abc").unwrap_err().code, 400);
        assert_eq!(list("continue=x&resourceVersion=7").unwrap_err().code, 400);
    }

    #[test]
    fn write_options_are_checked_and_the_manager_comes_from_the_user_agent() {
        let parse =
            |raw: &str| WriteOptions::parse(&Query::parse(raw), "CreateOptions", "curl/8", false);
        let options = parse("dryRun=All&fieldValidation=Strict").unwrap();
        assert!(options.dry_run && options.field_validation == FieldValidation::Strict);
        assert_eq!(options.field_manager, "curl");
        let error = parse("dryRun=Some").unwrap_err();
        assert_eq!(
            (error.code, error.message.as_str()),
            (
                422,
                "CreateOptions.meta.k8s.io \"\" is invalid: dryRun: Unsupported value: [\"Some\"]: \
                   supported values: \"All\""
            )
        );
        let apply = WriteOptions::parse(&Query::parse(""), "PatchOptions", "curl", true);
        assert_eq!(apply.unwrap_err().code, 422);
    }

    #[test]
    fn delete_options_come_from_the_body_or_else_the_query() {
        let body = json!({"propagationPolicy": "Foreground", "preconditions": {"uid": "u"}});
        let options =
            DeleteOptions::parse(&Query::parse("propagationPolicy=Orphan"), Some(&body)).unwrap();
        assert_eq!(options.propagation, Some(Propagation::Foreground));
        assert_eq!(options.uid.as_deref(), Some("u"));
        let options = DeleteOptions::parse(&Query::parse("orphanDependents=true"), None).unwrap();
        assert_eq!(options.propagation, Some(Propagation::Orphan));
        let bad = DeleteOptions::parse(&Query::parse("propagationPolicy=Never"), None);
        assert_eq!(bad.unwrap_err().code, 422);
    }
}
