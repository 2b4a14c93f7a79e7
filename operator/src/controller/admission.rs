//! Whether a Connector can be carried out in this cluster: the rules of the resource, and the operator's own. Pure.

use connector_crds::{Connector, SourceSpec};

use crate::build;
use crate::settings::OperatorSettings;
use crate::status::Reason;
use crate::validate::{System, ValidatedConnector, validate};

/// Why a Connector is not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// `ConfigInvalid`, `NotAllowed` or `UnsupportedSystem`.
    pub reason: Reason,
    /// Which field, and why.
    pub message: String,
}

/// Applies every rule.
pub fn admit(connector: &Connector, settings: &OperatorSettings) -> Result<ValidatedConnector, Refusal> {
    let invalid = |message: String| Refusal { reason: Reason::ConfigInvalid, message };
    let valid = validate(connector)
        .map_err(|errors| invalid(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))?;
    if valid.wallaroo.listen == Some(0) {
        return Err(invalid("spec.wallaroo.listen: a pod needs a port that Wallaroo knows, not 0".into()));
    }
    match &valid.system {
        System::Source(SourceSpec::Udp(udp)) if udp.port == 0 => {
            return Err(invalid("spec.source.udp.port: a pod needs a port that senders know, not 0".into()));
        }
        System::Source(_) | System::Sink(_) => {}
    }
    let not_allowed = |field: &str, switch: &str| Refusal {
        reason: Reason::NotAllowed,
        message: format!("{field}: the operator runs without {switch}"),
    };
    if valid.runtime.image.is_some() && !settings.allow.runtime_image {
        return Err(not_allowed("spec.runtime.image", "--allow-runtime-image"));
    }
    if build::custom_process(&valid).is_some() && !settings.allow.custom {
        let field = match &valid.system {
            System::Source(_) => "spec.source.custom",
            System::Sink(_) => "spec.sink.custom",
        };
        return Err(not_allowed(field, "--allow-custom"));
    }
    if valid.pod.service_account_name.is_some() && !settings.allow.service_account_name {
        return Err(not_allowed("spec.pod.serviceAccountName", "--allow-service-account-name"));
    }
    Ok(valid)
}

/// Judges an object that cannot be read at all: a newer definition may name a system that this operator does not know.
pub fn unreadable(error: &str) -> Refusal {
    let reason = if error.to_lowercase().contains("unknown variant") {
        Reason::UnsupportedSystem
    } else {
        Reason::ConfigInvalid
    };
    Refusal { reason, message: format!("This operator cannot read the spec: {error}") }
}
