//! Which Secrets a Connector names, and in which fields.

use connector_crds::systems::tls::TlsSpec;
use connector_crds::{SecretKeyRef, SinkSpec, SourceSpec};

use crate::validate::{System, ValidatedConnector};

/// One field that names a key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretReference {
    /// Path of the field, e.g. `spec.source.kafka.sasl.password`.
    pub path: String,
    /// What it names.
    pub secret: SecretKeyRef,
}

/// Every reference of a Connector, in the order of its fields.
pub fn secret_references(connector: &ValidatedConnector) -> Vec<SecretReference> {
    let mut found = Vec::new();
    match &connector.system {
        System::Source(SourceSpec::Kafka(kafka)) => {
            tls(&mut found, "spec.source.kafka.tls", kafka.tls.as_ref());
            add(
                &mut found,
                "spec.source.kafka.sasl.password",
                kafka.sasl.as_ref().map(|sasl| &sasl.password),
            );
        }
        System::Sink(SinkSpec::Kafka(kafka)) => {
            tls(&mut found, "spec.sink.kafka.tls", kafka.tls.as_ref());
            add(&mut found, "spec.sink.kafka.sasl.password", kafka.sasl.as_ref().map(|sasl| &sasl.password));
        }
        System::Sink(SinkSpec::Redis(redis)) => {
            tls(&mut found, "spec.sink.redis.tls", redis.tls.as_ref());
            add(&mut found, "spec.sink.redis.auth.password", redis.auth.as_ref().map(|auth| &auth.password));
        }
        System::Source(SourceSpec::Custom(custom)) => {
            files(&mut found, "spec.source.custom.secrets", &custom.process.secrets);
        }
        System::Sink(SinkSpec::Custom(custom)) => {
            files(&mut found, "spec.sink.custom.secrets", &custom.process.secrets);
        }
        System::Source(SourceSpec::File(_) | SourceSpec::Generator(_) | SourceSpec::Udp(_))
        | System::Sink(SinkSpec::File(_) | SinkSpec::Stdout(_) | SinkSpec::Udp(_)) => {}
    }
    add(&mut found, "spec.wallaroo.cookie", connector.wallaroo.cookie.as_ref());
    found
}

fn tls(found: &mut Vec<SecretReference>, path: &str, tls: Option<&TlsSpec>) {
    let Some(TlsSpec { ca, certificate, key }) = tls else { return };
    add(found, &format!("{path}.ca"), ca.as_ref());
    add(found, &format!("{path}.certificate"), certificate.as_ref());
    add(found, &format!("{path}.key"), key.as_ref());
}

fn files(found: &mut Vec<SecretReference>, path: &str, secrets: &[SecretKeyRef]) {
    for (index, secret) in secrets.iter().enumerate() {
        add(found, &format!("{path}[{index}]"), Some(secret));
    }
}

fn add(found: &mut Vec<SecretReference>, path: &str, secret: Option<&SecretKeyRef>) {
    if let Some(secret) = secret {
        found.push(SecretReference { path: path.to_owned(), secret: secret.clone() });
    }
}
