//! Every system of the registry against the contract of sources and sinks, each at its in-process fake.
//!
//! A system without a fixture fails `every_system_has_a_suite`.

#![allow(clippy::unwrap_used)]
#![allow(clippy::unused_async)] // fixtures start servers; those without one have the same shape

use connector_crds::{SinkSpec, SourceSpec};
use connector_tests::{sink_suite, source_suite};

#[path = "conformance/custom.rs"]
mod custom_fixture;
#[path = "conformance/file.rs"]
mod file_fixture;
#[path = "conformance/generator.rs"]
mod generator_fixture;
#[path = "conformance/kafka.rs"]
mod kafka_fixture;
#[path = "conformance/redis.rs"]
mod redis_fixture;
#[path = "conformance/stdout.rs"]
mod stdout_fixture;
#[path = "conformance/udp.rs"]
mod udp_fixture;

/// Declares the suites of one direction, and which systems they cover.
macro_rules! suites {
    ($suite:ident $covered:ident: $($system:literal $name:ident $make:expr;)*) => {
        $($suite!($name, $make);)*
        const $covered: &[&str] = &[$($system),*];
    };
}

suites! { source_suite SOURCES:
    "custom" custom_source custom_fixture::Source::new;
    "file" file_lines_source file_fixture::Source::lines;
    "file" file_prefixed_source file_fixture::Source::prefixed;
    "generator" generator_source generator_fixture::Source::new;
    "kafka" kafka_source kafka_fixture::Source::new;
    "udp" udp_source udp_fixture::Source::new;
}

suites! { sink_suite SINKS:
    "custom" custom_sink custom_fixture::Sink::new;
    "file" file_lines_sink file_fixture::Sink::lines;
    "file" file_prefixed_sink file_fixture::Sink::prefixed;
    "kafka" kafka_sink kafka_fixture::Sink::new;
    "redis" redis_delimiter_sink redis_fixture::Sink::with_delimiter;
    "redis" redis_length_prefix_sink redis_fixture::Sink::with_length_prefix;
    "stdout" stdout_sink stdout_fixture::Sink::new;
    "udp" udp_sink udp_fixture::Sink::new;
}

/// Name of a source's system. A new variant does not compile until it stands here.
fn source_system(spec: &SourceSpec) -> &'static str {
    match spec {
        SourceSpec::Custom(_) => "custom",
        SourceSpec::File(_) => "file",
        SourceSpec::Generator(_) => "generator",
        SourceSpec::Kafka(_) => "kafka",
        SourceSpec::Udp(_) => "udp",
    }
}

/// Name of a sink's system. A new variant does not compile until it stands here.
fn sink_system(spec: &SinkSpec) -> &'static str {
    match spec {
        SinkSpec::Custom(_) => "custom",
        SinkSpec::File(_) => "file",
        SinkSpec::Kafka(_) => "kafka",
        SinkSpec::Redis(_) => "redis",
        SinkSpec::Stdout(_) => "stdout",
        SinkSpec::Udp(_) => "udp",
    }
}

/// Names of a registry's variants, from its schema.
fn variants<T: schemars::JsonSchema>() -> Vec<String> {
    let schema = serde_json::to_value(schemars::schema_for!(T)).unwrap();
    schema["properties"].as_object().expect("a union has properties").keys().cloned().collect()
}

#[test]
fn every_system_has_a_suite() {
    for (covered, variants) in [(SOURCES, variants::<SourceSpec>()), (SINKS, variants::<SinkSpec>())] {
        assert!(variants.len() >= 4, "{variants:?}");
        for system in variants {
            assert!(covered.contains(&system.as_str()), "system {system} has no conformance fixture");
        }
    }
}

#[tokio::test]
async fn fixtures_point_at_the_system_that_they_stand_for() {
    use connector_tests::conformance::{World, sink::SinkFixture, source::SourceFixture};
    let world = World::new();
    assert_eq!(source_system(&file_fixture::Source::lines(&world).await.spec()), "file");
    assert_eq!(source_system(&generator_fixture::Source::new(&world).await.spec()), "generator");
    assert_eq!(source_system(&kafka_fixture::Source::new(&world).await.spec()), "kafka");
    assert_eq!(source_system(&udp_fixture::Source::new(&world).await.spec()), "udp");
    assert_eq!(sink_system(&file_fixture::Sink::lines(&world).await.spec()), "file");
    assert_eq!(sink_system(&kafka_fixture::Sink::new(&world).await.spec()), "kafka");
    assert_eq!(sink_system(&redis_fixture::Sink::with_delimiter(&world).await.spec()), "redis");
    assert_eq!(sink_system(&stdout_fixture::Sink::new(&world).await.spec()), "stdout");
    assert_eq!(sink_system(&udp_fixture::Sink::new(&world).await.spec()), "udp");
}
