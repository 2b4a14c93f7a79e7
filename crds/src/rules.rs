//! Cross-field rules: their CEL text for the API server, their message, and where they are attached.
//!
//! [`crate::validate`] holds the twin of each rule; both take message and path from here, so only the conditions can
//! differ, and the table of cases runs both.

use kube::core::cel::{Rule, validate};
use schemars::Schema;
use schemars::transform::Transform;

/// A condition that a value of one type must fulfil.
#[derive(Debug)]
pub(crate) struct CelRule {
    /// Field that is to blame, below the value that the rule is attached to, e.g. `.wallaroo.connect`; empty: the value.
    pub(crate) path: &'static str,
    /// What the user reads.
    pub(crate) message: &'static str,
    /// The condition. Optional fields are guarded by `has()`.
    cel: &'static str,
}

impl CelRule {
    /// The rule as kube knows it.
    pub(crate) fn rule(&self) -> Rule {
        let rule = Rule::new(self.cel).message(self.message);
        if self.path.is_empty() { rule } else { rule.field_path(self.path) }
    }

    fn attach(&self, schema: &mut Schema) {
        validate(schema, self.rule()).expect("a rule is plain text, which JSON holds");
    }
}

/// Attaches rules to the value of a type or field: `#[schemars(transform = Rules(&[…]))]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules(pub(crate) &'static [&'static CelRule]);

impl Transform for Rules {
    fn transform(&mut self, schema: &mut Schema) {
        for rule in self.0 {
            rule.attach(schema);
        }
    }
}

/// Attaches rules to each entry of a list: `#[schemars(transform = ItemRules(&[…]))]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ItemRules(pub(crate) &'static [&'static CelRule]);

impl Transform for ItemRules {
    fn transform(&mut self, schema: &mut Schema) {
        let items = schema.get_mut("items").expect("a list has a schema of its items");
        let items = <&mut Schema>::try_from(items).expect("the schema of items is a schema");
        Rules(self.0).transform(items);
    }
}

/// Longest name of a Connector: a StatefulSet of this name still gives its revisions a valid label.
pub(crate) const MAX_NAME: usize = 52;

/// On the resource. The schema holds no `metadata`, so these have no field path.
pub(crate) const NAME_LENGTH: CelRule = CelRule {
    path: "",
    message: "metadata.name must have at most 52 characters: pods and their labels are named after it",
    cel: "!has(self.metadata.name) || size(self.metadata.name) <= 52",
};

/// On the resource.
pub(crate) const NAME_LABEL: CelRule = CelRule {
    path: "",
    message: "metadata.name must begin with a lower-case letter, end with a letter or digit, and hold only lower-case letters, digits and '-': a Service is named after it",
    cel: "!has(self.metadata.name) || self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
};

/// On the spec.
pub(crate) const ONE_DIRECTION: CelRule = CelRule {
    path: "",
    message: "exactly one of source and sink must be set",
    cel: "has(self.source) != has(self.sink)",
};

/// On the spec; compares with the stored object.
pub(crate) const SAME_DIRECTION: CelRule = CelRule {
    path: "",
    message: "a source stays a source and a sink stays a sink: for the other direction create another Connector",
    cel: "has(self.source) == has(oldSelf.source)",
};

/// On the spec.
pub(crate) const SOURCE_CONNECTS: CelRule = CelRule {
    path: ".wallaroo.connect",
    message: "a source dials Wallaroo: wallaroo.connect must name at least one source endpoint as host:port",
    cel: "!has(self.source) || (has(self.wallaroo.connect) && size(self.wallaroo.connect) > 0)",
};

/// On the spec.
pub(crate) const SOURCE_NO_LISTEN: CelRule = CelRule {
    path: ".wallaroo.listen",
    message: "listen is for sinks: a source dials Wallaroo at wallaroo.connect",
    cel: "!has(self.source) || !has(self.wallaroo.listen)",
};

/// On the spec.
pub(crate) const SINK_LISTENS: CelRule = CelRule {
    path: ".wallaroo.listen",
    message: "Wallaroo dials a sink: wallaroo.listen must be the port that it dials",
    cel: "!has(self.sink) || has(self.wallaroo.listen)",
};

/// On the spec.
pub(crate) const SINK_NO_CONNECT: CelRule = CelRule {
    path: ".wallaroo.connect",
    message: "connect is for sources: Wallaroo dials a sink at wallaroo.listen",
    cel: "!has(self.sink) || !has(self.wallaroo.connect) || size(self.wallaroo.connect) == 0",
};

/// On the spec.
pub(crate) const FRAMING_OF_FRAMED_SOURCE: CelRule = CelRule {
    path: ".wallaroo.framing",
    message: "framing is the length header of a source over FramedTCP; every other combination has a fixed one",
    cel: "!has(self.wallaroo.framing) || (has(self.source) && self.wallaroo.protocol == 'FramedTCP')",
};

/// On the spec.
pub(crate) const FRAMED_SINK_NEEDS_FRAMING: CelRule = CelRule {
    path: ".wallaroo.sinkFraming",
    message: "a sink over FramedTCP needs wallaroo.sinkFraming: Wallaroo sends plain bytes, so say how they split into records (lines or lengthPrefixed)",
    cel: "!(has(self.sink) && self.wallaroo.protocol == 'FramedTCP') || has(self.wallaroo.sinkFraming)",
};

/// On the spec.
pub(crate) const SINK_FRAMING_OF_FRAMED_SINK: CelRule = CelRule {
    path: ".wallaroo.sinkFraming",
    message: "sinkFraming is for sinks over FramedTCP; every other combination marks its records itself",
    cel: "!has(self.wallaroo.sinkFraming) || (has(self.sink) && self.wallaroo.protocol == 'FramedTCP')",
};

/// The largest frame that a `Connector` source of Wallaroo takes (wallaroo-protocol §2.4); also the default.
pub(crate) const CONNECTOR_FRAME_BYTES: i32 = 16_384;

/// On the spec.
pub(crate) const FIXED_FRAME_BYTES: CelRule = CelRule {
    path: ".wallaroo.maxFrameBytes",
    message: "maxFrameBytes is fixed at 16384 in a source over Connector: Wallaroo closes the connection at a longer frame",
    cel: "!(has(self.source) && self.wallaroo.protocol == 'Connector') || !has(self.wallaroo.maxFrameBytes) || self.wallaroo.maxFrameBytes == 16384",
};

/// On the spec.
pub(crate) const ACK_ON_RECEIPT_OF_CONNECTOR: CelRule = CelRule {
    path: ".delivery.ackMode",
    message: "ackMode OnReceipt is for the Connector protocol: the others know no checkpoints and always go by receipt",
    cel: "!has(self.delivery) || !has(self.delivery.ackMode) || self.delivery.ackMode != 'OnReceipt' || self.wallaroo.protocol == 'Connector'",
};

/// On the spec.
pub(crate) const ONE_TRANSACTIONAL_SINK: CelRule = CelRule {
    path: ".replicas",
    message: "a sink over Connector has at most one replica, for one pod holds its transactions: to scale, create several Connectors with a port each",
    cel: "!(has(self.sink) && self.wallaroo.protocol == 'Connector') || !has(self.replicas) || self.replicas <= 1",
};

/// On `wallaroo`.
pub(crate) const COOKIE_OF_CONNECTOR: CelRule = CelRule {
    path: ".cookie",
    message: "cookie belongs to the Connector protocol; the others have none",
    cel: "!has(self.cookie) || self.protocol == 'Connector'",
};

/// On a text, or each entry of a list.
pub(crate) const HOST_PORT: CelRule = CelRule {
    path: "",
    message: "must be host:port with a port from 1 to 65535, e.g. kafka:9092 or [fd00::1]:9092",
    cel: r"self.matches('^([A-Za-z0-9_][A-Za-z0-9._-]*|\\[[0-9A-Fa-f:.]+\\]):([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])$')",
};

/// On a text.
pub(crate) const IP_ADDRESS: CelRule =
    CelRule { path: "", message: "must be an IPv4 or IPv6 address, e.g. 0.0.0.0 or ::", cel: "isIP(self)" };

/// On each entry of a list.
pub(crate) const MULTICAST_ADDRESS: CelRule = CelRule {
    path: "",
    message: "must be a multicast address: IPv4 from 224.0.0.0 to 239.255.255.255, or IPv6 in ff00::/8",
    cel: "isIP(self) && self.matches('^(22[4-9]|23[0-9])[.]|^[fF][fF][0-9a-fA-F]{2}:')",
};

/// On a text.
pub(crate) const HOST_WITHOUT_PORT: CelRule = CelRule {
    path: "",
    message: "must be a name or address without a port: the port has its own field",
    cel: "!self.contains(':') || isIP(self)",
};

/// On a Kafka source.
pub(crate) const TOPICS_OR_PATTERN: CelRule = CelRule {
    path: ".topics",
    message: "exactly one of topics and topicPattern must be set",
    cel: "(has(self.topics) && size(self.topics) > 0) != has(self.topicPattern)",
};

/// On a Kafka source.
pub(crate) const PLAIN_NEEDS_TLS: CelRule = CelRule {
    path: ".sasl.mechanism",
    message: "PLAIN sends the password as it is: it needs tls",
    cel: "!has(self.sasl) || self.sasl.mechanism != 'PLAIN' || has(self.tls)",
};

/// On a start position.
pub(crate) const TIMESTAMP_WITH_AT: CelRule = CelRule {
    path: ".timestamp",
    message: "timestamp must be set when at is Timestamp, and only then",
    cel: "(has(self.at) && self.at == 'Timestamp') == has(self.timestamp)",
};

/// On a start position.
pub(crate) const OFFSET_WITH_AT: CelRule = CelRule {
    path: ".offset",
    message: "offset must be set when at is Offset, and only then",
    cel: "(has(self.at) && self.at == 'Offset') == has(self.offset)",
};

/// On a TLS block.
pub(crate) const CERTIFICATE_WITH_KEY: CelRule = CelRule {
    path: ".certificate",
    message: "certificate and key belong together: set both or neither",
    cel: "has(self.certificate) == has(self.key)",
};

/// On an amount of CPU or memory.
pub(crate) const AMOUNT: CelRule = CelRule {
    path: "",
    message: "must be a whole number with at most three decimals and one of the units m, k, M, G, T, Ki, Mi, Gi, Ti, e.g. 500m or 256Mi",
    cel: r"self.matches('^[0-9]{1,9}([.][0-9]{1,3})?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$')",
};

/// On what must hold of a node's label.
pub(crate) const VALUES_WITH_OPERATOR: CelRule = CelRule {
    path: ".values",
    message: "values must be set when operator is In or NotIn, and only then",
    cel: "(self.operator == 'In' || self.operator == 'NotIn') == (has(self.values) && size(self.values) > 0)",
};

/// On the size of a volume.
pub(crate) const VOLUME_SIZE: CelRule = CelRule {
    path: "",
    message: "must be a whole number with one of the units Mi, Gi, Ti, e.g. 2Gi",
    cel: "self.matches('^[1-9][0-9]{0,5}(Mi|Gi|Ti)$')",
};

/// On `storage`; compares with the stored object.
pub(crate) const VOLUME_GROWS: CelRule = CelRule {
    path: ".size",
    message: "a volume can grow and never shrink: for a smaller one create another Connector",
    cel: "!has(self.size) || !has(oldSelf.size) || !isQuantity(self.size) || !isQuantity(oldSelf.size) || quantity(self.size).compareTo(quantity(oldSelf.size)) >= 0",
};

/// On `delivery`.
pub(crate) const DEAD_LETTER_WITH_ON_ERROR: CelRule = CelRule {
    path: ".deadLetter",
    message: "deadLetter must be set when onError is DeadLetter, and only then",
    cel: "(has(self.onError) && self.onError == 'DeadLetter') == has(self.deadLetter)",
};
