//! One YAML document: which object it is, and a strict reading of it.

use std::path::Path;

use connector_crds::Connector;
use serde_json::Value;

use super::secret::{self, SecretData};
use super::{ManifestError, Place};
use crate::validate::DEFAULT_NAMESPACE;

/// `apiVersion` of a Connector.
pub(super) const CONNECTOR_API: &str = "connectors.wallaroolabs.com/v1alpha1";

/// Longest name of an object: a DNS subdomain. Names become directory names here, so the rule also keeps them inside.
const MAX_NAME: usize = 253;

/// Longest name of a namespace: a DNS label.
const MAX_LABEL: usize = 63;

/// A document that has the shape of its kind.
#[derive(Debug)]
pub(super) enum Document {
    /// A Connector, not yet validated.
    Connector(Box<Connector>),
    /// A Secret.
    Secret {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
        /// Keys and values.
        data: SecretData,
    },
}

impl Document {
    /// The object for people, unique among objects.
    pub(super) fn object(&self) -> String {
        match self {
            Document::Connector(connector) => {
                let metadata = &connector.metadata;
                object(
                    "Connector",
                    metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE),
                    metadata.name.as_deref().unwrap_or_default(),
                )
            }
            Document::Secret { namespace, name, .. } => object("Secret", namespace, name),
        }
    }
}

/// An object for people: `Connector default/orders-in`.
pub(super) fn object(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind} {namespace}/{name}")
}

/// Reads all documents of a text; what is wrong goes to `errors`.
pub(super) fn parse(
    file: &Path,
    text: &str,
    documents: &mut Vec<(Place, Document)>,
    errors: &mut Vec<ManifestError>,
) {
    let values: Vec<Value> = match serde_saphyr::from_multiple(text) {
        Ok(values) => values,
        Err(error) => {
            errors.push(ManifestError::NotYaml { path: file.to_owned(), message: error.to_string() });
            return;
        }
    };
    for (index, value) in values.into_iter().enumerate() {
        let place = Place { file: file.to_owned(), document: index + 1 };
        match document(&place, &value) {
            Ok(document) => documents.push((place, document)),
            Err(found) => errors.extend(found),
        }
    }
}

fn document(place: &Place, value: &Value) -> Result<Document, Vec<ManifestError>> {
    let text = |value: &Value, pointer| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let api_version = text(value, "/apiVersion").unwrap_or_default();
    let kind = text(value, "/kind").unwrap_or_default();
    let namespace = text(value, "/metadata/namespace").unwrap_or_else(|| DEFAULT_NAMESPACE.into());
    let name = text(value, "/metadata/name").unwrap_or_default();
    let field = |path: String, message: String| ManifestError::Field {
        object: object(&kind, &namespace, &name),
        place: place.clone(),
        path,
        message,
    };
    let known =
        matches!((api_version.as_str(), kind.as_str()), (CONNECTOR_API, "Connector") | ("v1", "Secret"));
    let names = [("metadata.namespace", &namespace, MAX_LABEL), ("metadata.name", &name, MAX_NAME)];
    let wrong: Vec<_> = names
        .into_iter()
        .filter(|(_, value, limit)| known && !is_name(value, *limit))
        .map(|(path, value, limit)| {
            let rule = "lower case letters, digits, '-' and '.', beginning and ending with a letter or digit";
            field(path.into(), format!("{value:?} is no name: 1 to {limit} {rule}"))
        })
        .collect();
    if !wrong.is_empty() {
        return Err(wrong);
    }
    match (api_version.as_str(), kind.as_str()) {
        (CONNECTOR_API, "Connector") => connector_crds::read_connector(value)
            .map_err(|errors| errors.into_iter().map(|error| field(error.path, error.message)).collect())
            .map(|connector| Document::Connector(Box::new(connector))),
        ("v1", "Secret") => secret::parse(value)
            .map_err(|(path, message)| vec![field(path, message)])
            .map(|data| Document::Secret { namespace, name: name.clone(), data }),
        _ => Err(vec![ManifestError::UnknownKind { place: place.clone(), api_version, kind }]),
    }
}

fn is_name(text: &str, limit: usize) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= limit
        && text.bytes().all(|byte| plain(byte) || matches!(byte, b'-' | b'.'))
        && text.split('.').all(|part| {
            let bytes = part.as_bytes();
            bytes.first().copied().is_some_and(plain) && bytes.last().copied().is_some_and(plain)
        })
}
