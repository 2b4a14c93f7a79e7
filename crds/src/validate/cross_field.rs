//! The twins of the CEL rules, one line a rule, in the order of the types.

use super::FieldError;
use super::text::{
    is_amount, is_host_port, is_host_without_port, is_ip, is_label, is_multicast, volume_bytes,
};
use crate::rules::{self, CelRule};
use crate::systems::custom::CustomProcess;
use crate::systems::kafka::{KafkaSasl, KafkaSink, KafkaSource, SaslMechanism, StartAt, StartPosition};
use crate::systems::redis::RedisSink;
use crate::systems::tls::TlsSpec;
use crate::systems::udp::{UdpSink, UdpSource};
use crate::{
    AckMode, Affinity, Amounts, Connector, ConnectorSpec, DeliverySpec, NodeAffinity, NodeOperator, NodeTerm,
    OnError, Protocol, RuntimeConfig, SinkSpec, SourceSpec, WallarooSpec,
};

/// What the rules of a spec look at; both the resource and the rendering have it.
struct Parts<'a> {
    source: Option<&'a SourceSpec>,
    sink: Option<&'a SinkSpec>,
    wallaroo: &'a WallarooSpec,
    delivery: &'a DeliverySpec,
    /// Absent in a rendering: a runtime is one replica.
    replicas: Option<i32>,
}

/// Collects what does not hold, below one path.
struct Findings<'a> {
    path: String,
    errors: &'a mut Vec<FieldError>,
}

impl Findings<'_> {
    fn expect(&mut self, holds: bool, rule: &CelRule) {
        if !holds {
            let path = format!("{}{}", self.path, rule.path);
            let path = path.strip_prefix('.').map(str::to_owned).unwrap_or(path);
            self.errors.push(FieldError { path, message: rule.message.into() });
        }
    }

    /// Goes below `field`, which begins with a dot.
    fn below(&mut self, field: &str) -> Findings<'_> {
        Findings { path: format!("{}{field}", self.path), errors: self.errors }
    }
}

/// Applies the rules of the resource.
pub(super) fn connector(connector: &Connector, errors: &mut Vec<FieldError>) {
    if let Some(name) = &connector.metadata.name {
        let mut found = Findings { path: "metadata.name".into(), errors };
        found.expect(name.chars().count() <= rules::MAX_NAME, &rules::NAME_LENGTH);
        found.expect(is_label(name), &rules::NAME_LABEL);
    }
    let ConnectorSpec {
        source,
        sink,
        wallaroo,
        delivery,
        storage,
        replicas,
        state: _,
        restart_nonce: _,
        runtime: _,
        pod,
        position_reset: _,
    } = &connector.spec;
    let parts =
        Parts { source: source.as_ref(), sink: sink.as_ref(), wallaroo, delivery, replicas: Some(*replicas) };
    let mut found = Findings { path: "spec".into(), errors };
    found.below(".storage.size").expect(volume_bytes(&storage.size).is_some(), &rules::VOLUME_SIZE);
    amounts(&pod.resources.requests, found.below(".pod.resources.requests"));
    amounts(&pod.resources.limits, found.below(".pod.resources.limits"));
    affinity(pod.affinity.as_ref(), found.below(".pod.affinity"));
    spec(&parts, found);
}

fn affinity(affinity: Option<&Affinity>, mut found: Findings<'_>) {
    let Some(Affinity { node_affinity: Some(node), pod_affinity: _, pod_anti_affinity: _ }) = affinity else {
        return;
    };
    let NodeAffinity {
        required_during_scheduling_ignored_during_execution: required,
        preferred_during_scheduling_ignored_during_execution: preferred,
    } = node;
    let mut found = found.below(".nodeAffinity");
    for (index, term) in required.iter().flat_map(|selector| &selector.node_selector_terms).enumerate() {
        let path = format!(".requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[{index}]");
        node_term(term, found.below(&path));
    }
    for (index, wish) in preferred.iter().enumerate() {
        let path = format!(".preferredDuringSchedulingIgnoredDuringExecution[{index}].preference");
        node_term(&wish.preference, found.below(&path));
    }
}

fn node_term(term: &NodeTerm, mut found: Findings<'_>) {
    for (index, expression) in term.match_expressions.iter().enumerate() {
        let compares = match expression.operator {
            NodeOperator::In | NodeOperator::NotIn => true,
            NodeOperator::Exists | NodeOperator::DoesNotExist => false,
        };
        found
            .below(&format!(".matchExpressions[{index}]"))
            .expect(compares != expression.values.is_empty(), &rules::VALUES_WITH_OPERATOR);
    }
}

fn amounts(amounts: &Amounts, mut found: Findings<'_>) {
    let Amounts { cpu, memory } = amounts;
    found.below(".cpu").expect(cpu.as_deref().is_none_or(is_amount), &rules::AMOUNT);
    found.below(".memory").expect(memory.as_deref().is_none_or(is_amount), &rules::AMOUNT);
}

/// Applies the rules that compare with the stored object.
pub(super) fn update(new: &ConnectorSpec, old: &ConnectorSpec, errors: &mut Vec<FieldError>) {
    let mut found = Findings { path: "spec".into(), errors };
    found.expect(new.source.is_some() == old.source.is_some(), &rules::SAME_DIRECTION);
    let shrinks = volume_bytes(&new.storage.size)
        .zip(volume_bytes(&old.storage.size))
        .is_some_and(|(new, old)| new < old);
    found.below(".storage").expect(!shrinks, &rules::VOLUME_GROWS);
}

/// Applies the rules of a spec to a rendering, and the rendering's own.
pub(super) fn runtime_config(config: &RuntimeConfig, errors: &mut Vec<FieldError>) {
    let RuntimeConfig {
        identity: _,
        source,
        sink,
        wallaroo,
        delivery,
        storage: _,
        paths: _,
        admin: _,
        drain_timeout_seconds: _,
    } = config;
    let parts = Parts { source: source.as_ref(), sink: sink.as_ref(), wallaroo, delivery, replicas: None };
    spec(&parts, Findings { path: String::new(), errors });
}

fn spec(parts: &Parts<'_>, mut found: Findings<'_>) {
    let &Parts { source, sink, wallaroo, delivery, replicas } = parts;
    let (is_source, is_sink) = (source.is_some(), sink.is_some());
    let (is_framed, is_connector) = match wallaroo.protocol {
        Protocol::FramedTCP => (true, false),
        Protocol::Stream05 | Protocol::Stream06 => (false, false),
        Protocol::Connector => (false, true),
    };
    found.expect(is_source != is_sink, &rules::ONE_DIRECTION);
    found.expect(!is_source || !wallaroo.connect.is_empty(), &rules::SOURCE_CONNECTS);
    found.expect(!is_source || wallaroo.listen.is_none(), &rules::SOURCE_NO_LISTEN);
    found.expect(!is_sink || wallaroo.listen.is_some(), &rules::SINK_LISTENS);
    found.expect(!is_sink || wallaroo.connect.is_empty(), &rules::SINK_NO_CONNECT);
    found.expect(wallaroo.framing.is_none() || (is_source && is_framed), &rules::FRAMING_OF_FRAMED_SOURCE);
    found.expect(
        !(is_sink && is_framed) || wallaroo.sink_framing.is_some(),
        &rules::FRAMED_SINK_NEEDS_FRAMING,
    );
    found.expect(
        wallaroo.sink_framing.is_none() || (is_sink && is_framed),
        &rules::SINK_FRAMING_OF_FRAMED_SINK,
    );
    found.expect(
        !(is_source && is_connector) || wallaroo.max_frame_bytes == rules::CONNECTOR_FRAME_BYTES,
        &rules::FIXED_FRAME_BYTES,
    );
    found
        .expect(delivery.ack_mode != AckMode::OnReceipt || is_connector, &rules::ACK_ON_RECEIPT_OF_CONNECTOR);
    found.expect(
        !(is_sink && is_connector) || replicas.is_none_or(|replicas| replicas <= 1),
        &rules::ONE_TRANSACTIONAL_SINK,
    );
    match source {
        None | Some(SourceSpec::File(_) | SourceSpec::Generator(_)) => {}
        Some(SourceSpec::Custom(source)) => custom(&source.process, found.below(".source.custom")),
        Some(SourceSpec::Kafka(source)) => kafka_source(source, found.below(".source.kafka")),
        Some(SourceSpec::Udp(source)) => udp_source(source, found.below(".source.udp")),
    }
    match sink {
        None | Some(SinkSpec::File(_) | SinkSpec::Stdout(_)) => {}
        Some(SinkSpec::Custom(sink)) => custom(&sink.process, found.below(".sink.custom")),
        Some(SinkSpec::Kafka(sink)) => kafka_sink(sink, found.below(".sink.kafka")),
        Some(SinkSpec::Redis(sink)) => redis_sink(sink, found.below(".sink.redis")),
        Some(SinkSpec::Udp(sink)) => udp_sink(sink, found.below(".sink.udp")),
    }
    wallaroo_end(wallaroo, is_connector, found.below(".wallaroo"));
    found.below(".delivery").expect(
        (delivery.on_error == OnError::DeadLetter) == delivery.dead_letter.is_some(),
        &rules::DEAD_LETTER_WITH_ON_ERROR,
    );
}

fn wallaroo_end(wallaroo: &WallarooSpec, is_connector: bool, mut found: Findings<'_>) {
    found.expect(wallaroo.cookie.is_none() || is_connector, &rules::COOKIE_OF_CONNECTOR);
    each(&wallaroo.connect, is_host_port, &rules::HOST_PORT, found.below(".connect"));
}

fn custom(process: &CustomProcess, mut found: Findings<'_>) {
    amounts(&process.resources.requests, found.below(".resources.requests"));
    amounts(&process.resources.limits, found.below(".resources.limits"));
}

fn kafka_source(source: &KafkaSource, mut found: Findings<'_>) {
    found.expect(source.topics.is_empty() == source.topic_pattern.is_some(), &rules::TOPICS_OR_PATTERN);
    start_position(&source.start_position, found.below(".startPosition"));
    kafka_access(&source.bootstrap_servers, source.tls.as_ref(), source.sasl.as_ref(), found);
}

fn kafka_sink(sink: &KafkaSink, found: Findings<'_>) {
    kafka_access(&sink.bootstrap_servers, sink.tls.as_ref(), sink.sasl.as_ref(), found);
}

fn kafka_access(
    servers: &[String],
    with_tls: Option<&TlsSpec>,
    sasl: Option<&KafkaSasl>,
    mut found: Findings<'_>,
) {
    let plain = sasl.is_some_and(|sasl| match sasl.mechanism {
        SaslMechanism::Plain => true,
        SaslMechanism::ScramSha256 | SaslMechanism::ScramSha512 => false,
    });
    found.expect(!plain || with_tls.is_some(), &rules::PLAIN_NEEDS_TLS);
    each(servers, is_host_port, &rules::HOST_PORT, found.below(".bootstrapServers"));
    tls(with_tls, found.below(".tls"));
}

fn start_position(start: &StartPosition, mut found: Findings<'_>) {
    let (by_timestamp, by_offset) = match start.at {
        StartAt::Earliest | StartAt::Latest => (false, false),
        StartAt::Timestamp => (true, false),
        StartAt::Offset => (false, true),
    };
    found.expect(by_timestamp == start.timestamp.is_some(), &rules::TIMESTAMP_WITH_AT);
    found.expect(by_offset == start.offset.is_some(), &rules::OFFSET_WITH_AT);
}

fn tls(tls: Option<&TlsSpec>, mut found: Findings<'_>) {
    if let Some(tls) = tls {
        found.expect(tls.certificate.is_some() == tls.key.is_some(), &rules::CERTIFICATE_WITH_KEY);
    }
}

fn udp_source(source: &UdpSource, mut found: Findings<'_>) {
    found.below(".bind").expect(is_ip(&source.bind), &rules::IP_ADDRESS);
    each(&source.multicast_groups, is_multicast, &rules::MULTICAST_ADDRESS, found.below(".multicastGroups"));
}

fn udp_sink(sink: &UdpSink, mut found: Findings<'_>) {
    found.below(".host").expect(is_host_without_port(&sink.host), &rules::HOST_WITHOUT_PORT);
}

fn redis_sink(sink: &RedisSink, mut found: Findings<'_>) {
    found.below(".address").expect(is_host_port(&sink.address), &rules::HOST_PORT);
    tls(sink.tls.as_ref(), found.below(".tls"));
}

fn each(texts: &[String], holds: fn(&str) -> bool, rule: &CelRule, mut found: Findings<'_>) {
    for (index, text) in texts.iter().enumerate() {
        found.below(&format!("[{index}]")).expect(holds(text), rule);
    }
}
