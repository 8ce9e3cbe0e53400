//! Content negotiation: what the client wants back, and in which form its body came.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use windlass_machinery::status::ApiError;

/// How objects are encoded in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
}

impl Encoding {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
        }
    }
}

/// What objects are turned into on the way out (`as=` of the Accept header).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transform {
    None,
    /// `meta.k8s.io/v1` or `v1beta1` Table.
    Table {
        beta: bool,
    },
    /// PartialObjectMetadata or its list.
    Metadata {
        beta: bool,
    },
    /// `apidiscovery.k8s.io` APIGroupDiscoveryList.
    Discovery {
        beta: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub encoding: Encoding,
    pub transform: Transform,
}

/// One clause of an Accept header.
struct Clause<'a> {
    media: &'a str,
    params: Vec<(&'a str, &'a str)>,
    quality: f32,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut quality = 1.0;
        let mut params = Vec::new();
        for (key, value) in parts.filter_map(|p| p.split_once('=')) {
            if key == "q" {
                quality = value.parse().unwrap_or(1.0);
            } else {
                params.push((key, value.trim_matches('"')));
            }
        }
        Self {
            media,
            params,
            quality,
        }
    }

    fn param(&self, name: &str) -> &'a str {
        self.params
            .iter()
            .find(|(key, _)| *key == name)
            .map_or("", |(_, value)| value)
    }

    fn encoding(&self) -> Option<Encoding> {
        match self.media {
            "application/json" | "application/*" | "*/*" => Some(Encoding::Json),
            "application/yaml" => Some(Encoding::Yaml),
            _ => None,
        }
    }

    fn transform(&self) -> Option<Transform> {
        let beta = self.param("v") != "v1" && self.param("v") != "v2";
        match (self.param("as"), self.param("g")) {
            ("", _) => Some(Transform::None),
            ("Table", "meta.k8s.io") => Some(Transform::Table { beta }),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io") => {
                Some(Transform::Metadata { beta })
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io") => Some(Transform::Discovery { beta }),
            _ => None,
        }
    }
}

const OFFERED: &str = "application/json, application/yaml";

/// Picks the best clause of the Accept header; without the header it is JSON.
///
/// # Errors
/// 406 when nothing that the client accepts can be served.
pub(crate) fn accept(headers: &HeaderMap) -> Result<Accepted, ApiError> {
    let mut clauses: Vec<Clause<'_>> = headers
        .get_all(ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|text| Clause::parse(text.trim()))
        .filter(|clause| !clause.media.is_empty() && clause.quality > 0.0)
        .collect();
    if clauses.is_empty() {
        return Ok(Accepted {
            encoding: Encoding::Json,
            transform: Transform::None,
        });
    }
    // Stable: clauses of the same quality keep the client's order.
    clauses.sort_by(|a, b| b.quality.total_cmp(&a.quality));
    clauses
        .iter()
        .find_map(|clause| {
            Some(Accepted {
                encoding: clause.encoding()?,
                transform: clause.transform()?,
            })
        })
        .ok_or_else(|| ApiError::not_acceptable(OFFERED))
}

/// The form of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MediaType {
    Json,
    Yaml,
    Protobuf,
    JsonPatch,
    MergePatch,
    StrategicMergePatch,
    ApplyPatch,
}

const PATCHES: &str = "application/json-patch+json, application/merge-patch+json, \
                       application/strategic-merge-patch+json, application/apply-patch+yaml";

impl MediaType {
    fn of(headers: &HeaderMap) -> (Option<Self>, &str) {
        let text = headers
            .get(CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        let media = text.split(';').next().unwrap_or_default().trim();
        let parsed = match media {
            "application/json" => Some(Self::Json),
            "application/yaml" => Some(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Some(Self::Protobuf),
            "application/json-patch+json" => Some(Self::JsonPatch),
            "application/merge-patch+json" => Some(Self::MergePatch),
            "application/strategic-merge-patch+json" => Some(Self::StrategicMergePatch),
            "application/apply-patch+yaml" => Some(Self::ApplyPatch),
            _ => None,
        };
        (parsed, media)
    }

    /// The form of an object in a body; without a Content-Type it is JSON.
    ///
    /// # Errors
    /// 415 for anything else.
    pub(crate) fn of_object(headers: &HeaderMap) -> Result<Self, ApiError> {
        match Self::of(headers) {
            (_, "") => Ok(Self::Json),
            (Some(media @ (Self::Json | Self::Yaml | Self::Protobuf)), _) => Ok(media),
            _ => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: \
                 {OFFERED}, application/vnd.kubernetes.protobuf"
            ))),
        }
    }

    /// The form of a PATCH's body.
    ///
    /// # Errors
    /// 415 for what is not a patch.
    pub(crate) fn of_patch(headers: &HeaderMap) -> Result<Self, ApiError> {
        match Self::of(headers) {
            (
                Some(
                    media @ (Self::JsonPatch
                    | Self::MergePatch
                    | Self::StrategicMergePatch
                    | Self::ApplyPatch),
                ),
                _,
            ) => Ok(media),
            _ => Err(ApiError::unsupported_media_type(format!(
                "the body of the request was in an unknown format - accepted media types include: {PATCHES}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(value: &str) -> Option<Accepted> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, value.parse().unwrap());
        accept(&headers).ok()
    }

    #[test]
    fn the_first_servable_clause_wins() {
        let json = |transform| {
            Some(Accepted {
                encoding: Encoding::Json,
                transform,
            })
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(accepted(table), json(Transform::Table { beta: false }));
        assert_eq!(
            accepted("application/vnd.kubernetes.protobuf,application/json"),
            json(Transform::None)
        );
        assert_eq!(
            accepted("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
            json(Transform::Discovery { beta: false })
        );
        assert_eq!(accepted("*/*"), json(Transform::None));
        assert_eq!(
            accepted("application/yaml;q=0.9, application/json;q=0.1")
                .unwrap()
                .encoding,
            Encoding::Yaml
        );
        assert_eq!(accepted("text/html"), None);
    }

    #[test]
    fn a_body_of_unknown_form_is_415() {
        let mut headers = HeaderMap::new();
        assert_eq!(MediaType::of_object(&headers).unwrap(), MediaType::Json);
        headers.insert(CONTENT_TYPE, "text/plain".parse().unwrap());
        assert_eq!(MediaType::of_object(&headers).unwrap_err().code, 415);
        headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
        assert_eq!(MediaType::of_patch(&headers).unwrap_err().code, 415);
        headers.insert(
            CONTENT_TYPE,
            "application/json; charset=utf-8".parse().unwrap(),
        );
        assert_eq!(MediaType::of_object(&headers).unwrap(), MediaType::Json);
    }
}
