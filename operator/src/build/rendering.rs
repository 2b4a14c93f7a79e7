//! Renderings: what a spec became once, stored as an immutable `ConfigMap`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use connector_crds::{DeliverySpec, PodSpec, SinkSpec, SourceSpec, StorageSpec, WallarooSpec};
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, PodTemplateSpec};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::pod_template::{placement, pod_template};
use super::{claim_templates, runtime_config};
use crate::names;
use crate::settings::OperatorSettings;
use crate::validate::{System, ValidatedConnector};

/// Version of the renderer: raised when the same spec becomes something else.
pub const RENDERER: &str = "1";

/// Characters of a hash in names: 40 bits tell the few renderings of one Connector apart.
const HASH_CHARACTERS: usize = 10;

/// The part of a spec whose change restarts pods. Absent fields read as their defaults, so that a field which a newer
/// definition adds is no difference.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RestartSpec {
    /// The system of a source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SourceSpec>,
    /// The system of a sink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink: Option<SinkSpec>,
    /// The Wallaroo end.
    pub wallaroo: WallarooSpec,
    /// How records are handed over.
    #[serde(default)]
    pub delivery: DeliverySpec,
    /// What the runtime keeps in the state volume.
    #[serde(default)]
    pub storage: StorageSpec,
    /// The claim of the state volume; absent: no claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ClaimSpec>,
    /// `spec.runtime.image`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// `spec.runtime.drainTimeoutSeconds`.
    pub drain_timeout_seconds: i32,
    /// The pods; without the ServiceAccount's annotations, which restart nothing.
    #[serde(default)]
    pub pod: PodSpec,
    /// `spec.restartNonce`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_nonce: Option<String>,
    /// `spec.positionReset`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub epoch: String,
}

/// The shape of a claim.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub struct ClaimSpec {
    /// Size.
    pub size: String,
    /// Class; absent: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

impl RestartSpec {
    /// The part of a Connector.
    pub fn of(connector: &ValidatedConnector) -> RestartSpec {
        let (source, sink) = match &connector.system {
            System::Source(source) => (Some(source.clone()), None),
            System::Sink(sink) => (None, Some(sink.clone())),
        };
        let mut pod = connector.pod.clone();
        pod.service_account.annotations.clear();
        RestartSpec {
            source,
            sink,
            wallaroo: connector.wallaroo.clone(),
            delivery: connector.delivery.clone(),
            storage: connector.storage.clone(),
            claim: super::needs_claim(connector).then(|| ClaimSpec {
                size: connector.volume.size.clone(),
                class: connector.volume.class.clone(),
            }),
            image: connector.runtime.image.clone(),
            drain_timeout_seconds: connector.runtime.drain_timeout_seconds,
            pod,
            restart_nonce: connector.restart_nonce.clone(),
            epoch: connector.identity.epoch.clone(),
        }
    }

    /// What owns a state volume's content: with another system or protocol the old pods end before new ones start.
    fn owner_of_state(&self) -> (Option<&'static str>, connector_crds::Protocol) {
        let system = match (&self.source, &self.sink) {
            (Some(source), _) => Some(System::Source(source.clone()).type_name()),
            (None, Some(sink)) => Some(System::Sink(sink.clone()).type_name()),
            (None, None) => None,
        };
        (system, self.wallaroo.protocol)
    }
}

/// What a spec became.
#[derive(Clone, Debug, PartialEq)]
pub struct Rendering {
    /// Name of its `ConfigMap`.
    pub name: String,
    /// The renderer's version.
    pub renderer: String,
    /// What it came from.
    pub spec: RestartSpec,
    /// `config.json`, as the runtime reads it.
    pub config: String,
    /// The pod template, without the rendering's name.
    template: PodTemplateSpec,
    /// The claim templates.
    pub claims: Vec<PersistentVolumeClaim>,
    /// The `ConfigMap`'s data: exactly what is stored.
    data: BTreeMap<String, String>,
}

/// Why a `ConfigMap` is no rendering.
#[derive(Debug, thiserror::Error)]
pub enum RenderingError {
    /// A key is missing.
    #[error("ConfigMap {name}: key {key:?} is missing")]
    Missing {
        /// The `ConfigMap`.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// A key's value makes no sense.
    #[error("ConfigMap {name}: key {key:?}: {cause}")]
    Invalid {
        /// The `ConfigMap`.
        name: String,
        /// The key.
        key: &'static str,
        /// What is wrong.
        #[source]
        cause: serde_json::Error,
    },
}

impl Rendering {
    /// Renders a Connector: the same input gives the same bytes.
    pub fn of(connector: &ValidatedConnector, settings: &OperatorSettings) -> Rendering {
        let spec = RestartSpec::of(connector);
        let config = json(&runtime_config(connector, &placement(connector)));
        let template = pod_template(connector, settings);
        let claims = claim_templates(connector);
        let data = BTreeMap::from([
            ("renderer".to_owned(), RENDERER.to_owned()),
            ("spec.json".to_owned(), json(&spec)),
            ("config.json".to_owned(), config.clone()),
            ("template.json".to_owned(), json(&template)),
            ("claims.json".to_owned(), json(&claims)),
        ]);
        let name = names::rendering(&connector.identity.name, &hash(&data)[..HASH_CHARACTERS]);
        Rendering { name, renderer: RENDERER.into(), spec, config, template, claims, data }
    }

    /// Reads a stored rendering.
    pub fn read(stored: &ConfigMap) -> Result<Rendering, RenderingError> {
        let name = stored.metadata.name.clone().unwrap_or_default();
        let data = stored.data.clone().unwrap_or_default();
        let text = |key: &'static str| {
            data.get(key).ok_or_else(|| RenderingError::Missing { name: name.clone(), key })
        };
        let invalid = |key, cause| RenderingError::Invalid { name: name.clone(), key, cause };
        Ok(Rendering {
            renderer: text("renderer")?.clone(),
            spec: serde_json::from_str(text("spec.json")?).map_err(|cause| invalid("spec.json", cause))?,
            config: text("config.json")?.clone(),
            template: serde_json::from_str(text("template.json")?)
                .map_err(|cause| invalid("template.json", cause))?,
            claims: serde_json::from_str(text("claims.json")?)
                .map_err(|cause| invalid("claims.json", cause))?,
            name: name.clone(),
            data: data.clone(),
        })
    }

    /// What the `ConfigMap` holds.
    pub fn data(&self) -> &BTreeMap<String, String> {
        &self.data
    }

    /// The pod template with the rendering's name in its place.
    pub fn pod_template(&self) -> PodTemplateSpec {
        let mut template = self.template.clone();
        let metadata = template.metadata.get_or_insert_default();
        metadata
            .annotations
            .get_or_insert_default()
            .insert(names::RENDERING_ANNOTATION.into(), self.name.clone());
        let volumes = template.spec.iter_mut().flat_map(|spec| spec.volumes.iter_mut().flatten());
        for config in volumes.filter(|volume| volume.name == "config").filter_map(|v| v.config_map.as_mut()) {
            config.name.clone_from(&self.name);
        }
        template
    }

    /// Whether the pods of `old` have to be gone before the first of this one starts: another system or protocol, or
    /// another shape of the state volume.
    pub fn replaces(&self, old: &Rendering) -> bool {
        self.spec.owner_of_state() != old.spec.owner_of_state() || self.claims != old.claims
    }
}

/// Hash of a map of texts, in hexadecimal digits.
pub fn hash(data: &BTreeMap<String, String>) -> String {
    let mut digest = Sha256::new();
    for (name, value) in data {
        for part in [name, value] {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part.as_bytes());
        }
    }
    let mut text = String::new();
    for byte in digest.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("what is rendered has text keys only")
}
