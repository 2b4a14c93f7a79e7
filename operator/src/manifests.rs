//! Manifests from files: what the API server would have taken, and a sentence for everything it would not.

mod document;
mod secret;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use connector_crds::SecretKeyRef;

use crate::secret_references::secret_references;
use crate::validate::{ValidatedConnector, validate};
use document::Document;
pub use secret::SecretData;

/// Largest manifest file that is read, in bytes: about what an API server takes in one request.
const MAX_FILE_BYTES: u64 = 3 * 1024 * 1024;

/// Files of one directory that are read at most.
const MAX_FILES: usize = 1_000;

/// A Connector and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadedConnector {
    /// The Connector.
    pub connector: ValidatedConnector,
    /// Where it was read.
    pub place: Place,
}

/// Everything that a set of files holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifests {
    /// The Connectors, in the order of the files.
    pub connectors: Vec<LoadedConnector>,
    /// The Secrets by namespace and name.
    pub secrets: BTreeMap<(String, String), SecretData>,
}

impl Manifests {
    /// The value that a reference of a Connector in `namespace` names.
    pub fn secret(&self, namespace: &str, reference: &SecretKeyRef) -> Option<&[u8]> {
        self.secrets.get(&(namespace.to_owned(), reference.name.clone()))?.get(&reference.key)
    }
}

/// Where a document stands: a file and the number of the document in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file as it was named.
    pub file: PathBuf,
    /// Number of the document in the file, from 1; documents without content do not count.
    pub document: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, document {}", self.file.display(), self.document)
    }
}

/// Why a set of files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// A file or directory cannot be read.
    #[error("{path}: cannot be read: {cause}", path = path.display())]
    Unreadable {
        /// The file or directory.
        path: PathBuf,
        /// What came back.
        #[source]
        cause: std::io::Error,
    },
    /// A file is longer than a manifest can be.
    #[error("{path}: has {bytes} bytes, a manifest file may have {MAX_FILE_BYTES}", path = path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A directory holds more files than are read.
    #[error("{path}: holds more than {MAX_FILES} manifest files", path = path.display())]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// A file is not YAML.
    #[error("{path}: is not YAML: {message}", path = path.display())]
    NotYaml {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and column.
        message: String,
    },
    /// An object of a kind that this command does not know.
    #[error("{place}: {api_version:?} {kind:?} is neither a {expected} Connector nor a v1 Secret", expected = document::CONNECTOR_API)]
    UnknownKind {
        /// Where.
        place: Place,
        /// `apiVersion` as written.
        api_version: String,
        /// `kind` as written.
        kind: String,
    },
    /// A field is unknown, missing, or breaks a rule.
    #[error("{object} ({place}): {path}: {message}")]
    Field {
        /// The object, e.g. `Connector default/orders-in`.
        object: String,
        /// Where.
        place: Place,
        /// Path of the field.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// Two objects of one kind and name.
    #[error("{object} ({place}): stands twice, first in {first}")]
    Duplicate {
        /// The object.
        object: String,
        /// The second place.
        place: Place,
        /// The first place.
        first: Place,
    },
    /// No Connector in all the files.
    #[error("there is no Connector in {}", paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", "))]
    NoConnector {
        /// What was read.
        paths: Vec<PathBuf>,
    },
}

/// Reads and validates files, and directories of `.yaml`, `.yml` and `.json` files (not those below them).
///
/// # Errors
///
/// Everything that is wrong, not only the first.
pub fn read(paths: &[PathBuf]) -> Result<Manifests, Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut documents = Vec::new();
    for path in paths {
        match files(path) {
            Ok(files) => {
                for file in files {
                    match text(&file) {
                        Ok(text) => document::parse(&file, &text, &mut documents, &mut errors),
                        Err(error) => errors.push(error),
                    }
                }
            }
            Err(error) => errors.push(error),
        }
    }
    let manifests = assemble(documents, &mut errors);
    if manifests.connectors.is_empty() && errors.is_empty() {
        errors.push(ManifestError::NoConnector { paths: paths.to_vec() });
    }
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

/// Validates the documents of one text; what [`read`] does with each file.
///
/// # Errors
///
/// Everything that is wrong, not only the first.
pub fn parse(file: &Path, text: &str) -> Result<Manifests, Vec<ManifestError>> {
    let mut errors = Vec::new();
    let mut documents = Vec::new();
    document::parse(file, text, &mut documents, &mut errors);
    let manifests = assemble(documents, &mut errors);
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

/// Errors for every reference to a Secret that the files do not hold: on one machine there is no other place for it.
pub fn missing_secrets(manifests: &Manifests) -> Vec<ManifestError> {
    let mut errors = Vec::new();
    for LoadedConnector { connector, place } in &manifests.connectors {
        let namespace = &connector.identity.namespace;
        for reference in secret_references(connector) {
            if manifests.secret(namespace, &reference.secret).is_none() {
                let SecretKeyRef { name, key } = &reference.secret;
                let message = if manifests.secrets.contains_key(&(namespace.clone(), name.clone())) {
                    format!("Secret {name:?} has no key {key:?}")
                } else {
                    format!("the files hold no Secret {name:?} in namespace {namespace:?}")
                };
                errors.push(ManifestError::Field {
                    object: document::object("Connector", namespace, &connector.identity.name),
                    place: place.clone(),
                    path: reference.path,
                    message,
                });
            }
        }
    }
    errors
}

fn assemble(documents: Vec<(Place, Document)>, errors: &mut Vec<ManifestError>) -> Manifests {
    let mut manifests = Manifests::default();
    let mut places: BTreeMap<String, Place> = BTreeMap::new();
    for (place, document) in documents {
        let object = document.object();
        if let Some(first) = places.get(&object) {
            errors.push(ManifestError::Duplicate { object, place, first: first.clone() });
            continue;
        }
        places.insert(object.clone(), place.clone());
        match document {
            Document::Secret { namespace, name, data } => {
                manifests.secrets.insert((namespace, name), data);
            }
            Document::Connector(connector) => match validate(&connector) {
                Ok(connector) => manifests.connectors.push(LoadedConnector { connector, place }),
                Err(fields) => errors.extend(fields.into_iter().map(|field| ManifestError::Field {
                    object: object.clone(),
                    place: place.clone(),
                    path: field.path,
                    message: field.message,
                })),
            },
        }
    }
    manifests
}

fn files(path: &Path) -> Result<Vec<PathBuf>, ManifestError> {
    let unreadable = |cause| ManifestError::Unreadable { path: path.to_owned(), cause };
    if !std::fs::metadata(path).map_err(unreadable)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        let file = entry.map_err(unreadable)?.path();
        let extension = file.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yaml" | "yml" | "json")) && file.is_file() {
            if files.len() == MAX_FILES {
                return Err(ManifestError::TooMany { path: path.to_owned() });
            }
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn text(path: &Path) -> Result<String, ManifestError> {
    let unreadable = |cause| ManifestError::Unreadable { path: path.to_owned(), cause };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > MAX_FILE_BYTES {
        return Err(ManifestError::TooLarge { path: path.to_owned(), bytes });
    }
    std::fs::read_to_string(path).map_err(unreadable)
}

#[cfg(test)]
mod tests;
