//! Content negotiation: what the client wants back, and in which form its body came.

use http::HeaderMap;
use http::header::{ACCEPT, CONTENT_TYPE};
use windlass_machinery::status::ApiError;

/// How objects are encoded in a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    Json,
    Yaml,
    /// Made on demand, so only for clients that accept nothing else.
    Protobuf,
}

impl Encoding {
    pub(crate) fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Yaml => "application/yaml",
            Self::Protobuf => "application/vnd.kubernetes.protobuf",
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
    /// PartialObjectMetadata, or its list: whoever asks for the one is not answered with the other.
    Metadata {
        beta: bool,
        list: bool,
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
            "application/vnd.kubernetes.protobuf" => Some(Encoding::Protobuf),
            _ => None,
        }
    }

    fn transform(&self) -> Option<Transform> {
        let kind = self.param("as");
        if kind.is_empty() {
            return Some(Transform::None);
        }
        let (beta, group) = match (self.param("g"), self.param("v")) {
            (group @ "meta.k8s.io", "v1") | (group @ "apidiscovery.k8s.io", "v2") => (false, group),
            (group @ "meta.k8s.io", "v1beta1") | (group @ "apidiscovery.k8s.io", "v2beta1") => {
                (true, group)
            }
            _ => return None,
        };
        match (kind, group) {
            ("Table", "meta.k8s.io") => Some(Transform::Table { beta }),
            ("PartialObjectMetadata", "meta.k8s.io") => {
                Some(Transform::Metadata { beta, list: false })
            }
            ("PartialObjectMetadataList", "meta.k8s.io") => {
                Some(Transform::Metadata { beta, list: true })
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io") => Some(Transform::Discovery { beta }),
            _ => None,
        }
    }
}

/// What can be answered besides JSON and YAML of the objects themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Offers {
    /// Objects as protobuf: of built-in kinds.
    pub protobuf: bool,
    /// Tables and bare metadata: of whatever is stored.
    pub transforms: bool,
}

impl Offers {
    fn serves(self, accepted: Accepted) -> bool {
        let Accepted {
            encoding,
            transform,
        } = accepted;
        let transformed = match transform {
            Transform::None | Transform::Discovery { .. } => true,
            Transform::Table { .. } | Transform::Metadata { .. } => self.transforms,
        };
        let encoded = match (encoding, transform) {
            (Encoding::Json | Encoding::Yaml, _) => true,
            // There is no protobuf of a Table.
            (Encoding::Protobuf, Transform::Table { .. } | Transform::Discovery { .. }) => false,
            (Encoding::Protobuf, Transform::Metadata { .. }) => true,
            (Encoding::Protobuf, Transform::None) => self.protobuf,
        };
        transformed && encoded
    }

    fn media_types(self) -> &'static str {
        if self.protobuf {
            "application/json, application/yaml, application/vnd.kubernetes.protobuf"
        } else {
            "application/json, application/yaml"
        }
    }
}

/// Picks the best clause of the Accept header; without the header it is JSON. Where a client lists protobuf
/// before the same thing as JSON it gets JSON, which is at hand.
///
/// # Errors
/// 406 when nothing that the client accepts can be served.
pub(crate) fn accept(headers: &HeaderMap, offers: Offers) -> Result<Accepted, ApiError> {
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
    let servable: Vec<Accepted> = clauses
        .iter()
        .filter_map(|clause| {
            Some(Accepted {
                encoding: clause.encoding()?,
                transform: clause.transform()?,
            })
        })
        .filter(|accepted| offers.serves(*accepted))
        .collect();
    let Some(first) = servable.first().copied() else {
        return Err(ApiError::not_acceptable(format!(
            "only the following media types are accepted: {}",
            offers.media_types()
        )));
    };
    let as_json = Accepted {
        encoding: Encoding::Json,
        ..first
    };
    if first.encoding == Encoding::Protobuf && servable.contains(&as_json) {
        return Ok(as_json);
    }
    Ok(first)
}

/// All that a built-in, stored kind is answered in.
pub(crate) const EVERYTHING: Offers = Offers {
    protobuf: true,
    transforms: true,
};

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
                 {}",
                EVERYTHING.media_types()
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
        accept(&headers, EVERYTHING).ok()
    }

    #[test]
    fn protobuf_is_for_those_who_accept_nothing_else() {
        let encoding = |text: &str| accepted(text).map(|accepted| accepted.encoding);
        const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
        assert_eq!(encoding(PROTOBUF), Some(Encoding::Protobuf));
        assert_eq!(encoding(&format!("{PROTOBUF}, */*")), Some(Encoding::Json));
        assert_eq!(
            encoding(&format!("{PROTOBUF};as=Table;v=v1;g=meta.k8s.io")),
            None
        );
        let metadata = format!("{PROTOBUF};as=PartialObjectMetadata;v=v1;g=meta.k8s.io");
        assert_eq!(encoding(&metadata), Some(Encoding::Protobuf));
        // Of a custom resource there is only the metadata.
        let custom = Offers {
            protobuf: false,
            transforms: true,
        };
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, metadata.parse().unwrap());
        assert!(accept(&headers, custom).is_ok());
        headers.insert(ACCEPT, PROTOBUF.parse().unwrap());
        assert_eq!(accept(&headers, custom).unwrap_err().code, 406);
        // Reviews have neither rows nor metadata.
        let review = Offers {
            protobuf: true,
            transforms: false,
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
        headers.insert(ACCEPT, table.parse().unwrap());
        assert_eq!(accept(&headers, review).unwrap_err().code, 406);
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
        for unknown in [
            "text/html",
            "application/json;as=Table;v=v2;g=meta.k8s.io",
            "application/json;as=Table;v=v1;g=example.test",
        ] {
            assert_eq!(accepted(unknown), None, "{unknown}");
        }
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
