//! What an error of librdkafka asks for.

use rdkafka::error::RDKafkaErrorCode as Code;

use crate::source::{ErrorClass, SystemError};

/// What fails when credentials are refused.
const AUTHENTICATING: &str = "authenticating at Kafka";

/// What fails when certificates are refused.
const TLS: &str = "TLS with Kafka";

/// What shows that a trouble is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// A broker answers.
    Answer,
    /// The group gives us partitions.
    Assignment,
}

/// A trouble that lasts until something shows that it is over.
#[derive(Clone, Debug)]
pub(super) struct Trouble {
    pub(super) context: String,
    pub(super) class: ErrorClass,
    pub(super) until: Until,
}

impl Trouble {
    pub(super) fn error(&self) -> SystemError {
        SystemError::Transient { context: self.context.clone(), class: self.class, cause: None }
    }
}

/// What to do about an error.
#[derive(Clone, Debug)]
pub(super) enum Disposition {
    /// Tell the pump until it is over.
    Tell(Trouble),
    /// A broker cannot be reached; the others may be. The reason is told when none can.
    Remember,
    /// The client is useless.
    Fatal,
    /// Nothing: librdkafka tries again by itself.
    Ignore,
}

/// What an error asks for. `last` is the reason of the last connection that failed.
pub(super) fn disposition(code: Code, reason: &str, servers: &str, last: Option<&str>) -> Disposition {
    let tell = |context: String, class, until| Disposition::Tell(Trouble { context, class, until });
    match code {
        Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
            tell(format!("{AUTHENTICATING}: {}", strip(reason)), ErrorClass::Auth, Until::Answer)
        }
        Code::SSL => tell(format!("{TLS}: {}", strip(reason)), ErrorClass::Auth, Until::Answer),
        Code::AllBrokersDown => {
            let reason = last.unwrap_or(reason);
            // A refusal loses the connection too, and librdkafka may tell that first.
            if let Some(what) = refusal(reason) {
                tell(format!("{what}: {}", strip(reason)), ErrorClass::Auth, Until::Answer)
            } else {
                let context = format!("connecting to {servers}: {}", strip(reason));
                tell(context, ErrorClass::Connect, Until::Answer)
            }
        }
        Code::BrokerTransportFailure | Code::Resolve | Code::OperationTimedOut => Disposition::Remember,
        Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownTopicId => {
            tell(format!("waiting for a topic: {reason}"), ErrorClass::Rejected, Until::Assignment)
        }
        Code::TopicAuthorizationFailed
        | Code::GroupAuthorizationFailed
        | Code::ClusterAuthorizationFailed => {
            tell(format!("Kafka refuses access: {reason}"), ErrorClass::Auth, Until::Assignment)
        }
        Code::InconsistentGroupProtocol | Code::GroupMaxSizeReached | Code::InvalidSessionTimeout => {
            tell(format!("joining the group: {reason}"), ErrorClass::Rejected, Until::Assignment)
        }
        Code::Fatal | Code::FencedInstanceId => Disposition::Fatal,
        _ => Disposition::Ignore,
    }
}

/// What was being done, where a lost connection is told that in truth was refused.
pub(super) fn refusal(reason: &str) -> Option<&'static str> {
    if reason.contains("SSL routines") || reason.contains("SSL handshake") || reason.contains("SSL_HANDSHAKE")
    {
        Some(TLS)
    } else if reason.contains("SASL authentication") {
        Some(AUTHENTICATING)
    } else {
        None
    }
}

/// Without the URL and the state that librdkafka puts around its reason.
fn strip(reason: &str) -> &str {
    let reason = reason.split_once("]: ").map_or(reason, |(_, rest)| rest);
    reason.rsplit_once(" (after ").map_or(reason, |(start, _)| start)
}

/// The error of a client that librdkafka gave up.
pub(super) fn fatal(code: Code, reason: &str) -> SystemError {
    match code {
        Code::FencedInstanceId => SystemError::Permanent {
            reason: "DuplicateMember",
            context: "another process is the same member of the group: the same Connector runs twice on hosts of one \
                      name"
                .into(),
        },
        _ => SystemError::Transient {
            context: format!("librdkafka gave up: {reason}"),
            class: ErrorClass::Protocol,
            cause: None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(code: Code, reason: &str, last: Option<&str>) -> (String, ErrorClass) {
        match disposition(code, reason, "kafka:9092", last) {
            Disposition::Tell(trouble) => (trouble.context, trouble.class),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn people_read_what_failed_where() {
        assert_eq!(
            told(
                Code::AllBrokersDown,
                "1/1 brokers are down",
                Some("kafka:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused (after 0ms in state CONNECT)"),
            ),
            (
                "connecting to kafka:9092: kafka:9092/bootstrap: Connect to ipv4#10.0.0.1:9092 failed: Connection refused"
                    .to_owned(),
                ErrorClass::Connect
            )
        );
        assert_eq!(
            told(
                Code::Authentication,
                "sasl_ssl://k:1/bootstrap: SASL authentication error: no (after 5ms in state AUTH_REQ)",
                None
            ),
            (
                "authenticating at Kafka: sasl_ssl://k:1/bootstrap: SASL authentication error: no".to_owned(),
                ErrorClass::Auth
            )
        );
    }

    #[test]
    fn a_refusal_is_said_also_where_only_the_lost_connection_is_told() {
        let refused = "sasl_ssl://k:1/bootstrap: SSL handshake failed: error:0A000086:SSL routines::certificate verify \
                       failed: broker certificate could not be verified (after 3ms in state SSL_HANDSHAKE)";
        let (context, class) = told(Code::AllBrokersDown, "1/1 brokers are down", Some(refused));
        assert_eq!(class, ErrorClass::Auth);
        assert!(
            context.starts_with("TLS with Kafka: ") && context.contains("certificate verify"),
            "{context}"
        );
        let refused = "sasl_ssl://k:1/bootstrap: SASL authentication error: Authentication failed (after 9ms in state AUTH_REQ)";
        let (context, class) = told(Code::AllBrokersDown, "1/1 brokers are down", Some(refused));
        assert_eq!(
            (class, context.starts_with("authenticating at Kafka: ")),
            (ErrorClass::Auth, true),
            "{context}"
        );
        // The scheme of an address is no reason.
        let away = "sasl_ssl://k:1/bootstrap: Connect to ipv4#10.0.0.1:1 failed: Connection refused (after 0ms in state CONNECT)";
        assert_eq!(told(Code::AllBrokersDown, "1/1 brokers are down", Some(away)).1, ErrorClass::Connect);
    }

    #[test]
    fn one_broker_of_many_is_no_trouble_and_a_second_process_is_one_that_needs_somebody() {
        let one = disposition(Code::BrokerTransportFailure, "gone", "k:1", None);
        assert!(matches!(one, Disposition::Remember));
        assert!(matches!(disposition(Code::FencedInstanceId, "", "k:1", None), Disposition::Fatal));
        let error = fatal(Code::FencedInstanceId, "");
        assert!(matches!(error, SystemError::Permanent { reason: "DuplicateMember", .. }));
    }
}
