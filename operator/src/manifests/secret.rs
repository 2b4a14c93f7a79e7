//! The data of a `Secret` document; never shown.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::ByteString;
use serde::Deserialize;
use serde_json::Value;

/// Fields of a `Secret` document.
const FIELDS: [&str; 7] = ["apiVersion", "kind", "metadata", "type", "immutable", "data", "stringData"];

/// Keys and values of one Secret. `Debug` shows the keys only.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretData(BTreeMap<String, Vec<u8>>);

impl SecretData {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.0.get(key).map(Vec::as_slice)
    }
}

impl fmt::Debug for SecretData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// Reads `data` (base64) and `stringData`, which wins, as the API server does.
///
/// # Errors
///
/// Path of a field, and what is wrong with it; never a value.
pub(super) fn parse(document: &Value) -> Result<SecretData, (String, String)> {
    let fields = document.as_object().into_iter().flatten();
    if let Some((field, _)) = fields.into_iter().find(|(field, _)| !FIELDS.contains(&field.as_str())) {
        return Err((field.clone(), "unknown field".into()));
    }
    let mut data = BTreeMap::new();
    for (key, value) in entries(document, "data")? {
        let path = format!("data.{key}");
        // The parser's own message would quote the value.
        let ByteString(bytes) =
            ByteString::deserialize(value).map_err(|_| (path, "is not a base64 text".to_owned()))?;
        data.insert(key.clone(), bytes);
    }
    for (key, value) in entries(document, "stringData")? {
        let Some(text) = value.as_str() else {
            return Err((format!("stringData.{key}"), "is not a text".into()));
        };
        data.insert(key.clone(), text.as_bytes().to_vec());
    }
    match data.keys().find(|key| !is_key(key)) {
        Some(key) => Err((
            format!("data.{key}"),
            "is no key of a Secret: letters, digits, '-', '_' and '.', at most 253, and no leading '..'"
                .into(),
        )),
        None => Ok(SecretData(data)),
    }
}

/// Keys become file names, so the rule of Kubernetes also keeps them inside their directory.
fn is_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= 253
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
}

fn entries<'a>(
    document: &'a Value,
    field: &str,
) -> Result<impl Iterator<Item = (&'a String, &'a Value)> + use<'a>, (String, String)> {
    match document.get(field) {
        None | Some(Value::Null) => Ok(None.into_iter().flatten()),
        Some(Value::Object(map)) => Ok(Some(map).into_iter().flatten()),
        Some(_) => Err((field.to_owned(), "is not a map".into())),
    }
}
