//! What an image is made of, as SPDX 2.3 in JSON: a scanner finds the crates of a static binary by it alone.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::dependencies::{Closure, Crate};

/// The document of the image called `name`. It says nothing of when and where it was written, so that the
/// same crates give the same bytes.
pub fn document(name: &str, closure: &Closure, main: &str) -> Value {
    let packages: Vec<Value> = closure.crates.iter().map(package).collect();
    let describes = closure
        .crates
        .iter()
        .filter(|it| it.name == main)
        .map(|it| {
            json!({
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": identifier(it),
            })
        });
    let depends = closure.edges.iter().map(|(from, to)| {
        json!({
            "spdxElementId": identifier(&closure.crates[*from]),
            "relationshipType": "DEPENDS_ON",
            "relatedSpdxElement": identifier(&closure.crates[*to]),
        })
    });
    let relationships: Vec<Value> = describes.chain(depends).collect();
    let content = json!([&packages, &relationships]).to_string();
    let hash: String = Sha256::digest(content)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    json!({
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": name,
        // Has to be unique, and need not lead anywhere.
        "documentNamespace": format!("https://windlass.dev/spdx/{name}-{hash}"),
        "creationInfo": { "created": "1970-01-01T00:00:00Z", "creators": ["Tool: windlass-xtask"] },
        "packages": packages,
        "relationships": relationships,
    })
}

fn package(it: &Crate) -> Value {
    let license = it
        .license
        .as_deref()
        .map_or("NOASSERTION".into(), expression);
    let mut package = json!({
        "SPDXID": identifier(it),
        "name": it.name,
        "versionInfo": it.version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": false,
        "licenseConcluded": license,
        "licenseDeclared": license,
        "copyrightText": "NOASSERTION",
    });
    if !it.is_ours() {
        package["externalRefs"] = json!([{
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": format!("pkg:cargo/{}@{}", it.name, it.version.replace('+', "%2B")),
        }]);
    }
    if let Some(checksum) = &it.checksum {
        package["checksums"] = json!([{ "algorithm": "SHA256", "checksumValue": checksum }]);
    }
    package
}

/// Letters, digits, dots and hyphens are all that an identifier may have.
fn identifier(it: &Crate) -> String {
    let text = format!("{}-{}", it.name, it.version);
    let plain = text.chars().map(|c| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    });
    format!("SPDXRef-crate-{}", plain.collect::<String>())
}

/// Cargo once wrote alternatives with a slash.
fn expression(license: &str) -> String {
    license
        .split('/')
        .map(str::trim)
        .collect::<Vec<_>>()
        .join(" OR ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_describes_the_main_crate_and_names_every_other() {
        let one = |name: &str, license: &str| Crate {
            name: name.into(),
            version: "1.0.0+x".into(),
            license: Some(license.into()),
            checksum: Some("abc".into()),
            folder: "/elsewhere".into(),
        };
        let closure = Closure {
            crates: vec![one("agent", "Apache-2.0"), one("old_one", "MIT/Apache-2.0")],
            edges: vec![(0, 1)],
        };
        let document = document("agent", &closure, "agent");
        assert_eq!(document, super::document("agent", &closure, "agent"));
        assert_eq!(
            document["packages"][1]["licenseDeclared"],
            "MIT OR Apache-2.0"
        );
        assert_eq!(
            document["packages"][1]["externalRefs"][0]["referenceLocator"],
            "pkg:cargo/old_one@1.0.0%2Bx"
        );
        let relations = document["relationships"].as_array().unwrap();
        assert_eq!(
            relations[0]["relatedSpdxElement"],
            "SPDXRef-crate-agent-1.0.0-x"
        );
        assert_eq!(
            relations[1]["relatedSpdxElement"],
            "SPDXRef-crate-old-one-1.0.0-x"
        );
    }
}
