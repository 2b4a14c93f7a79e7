//! `/metrics`: the board in the OpenMetrics text format, under the documented names.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use connector_crds::RuntimeConfig;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use crate::board::{Board, Side};

/// Prefix of every name.
const PREFIX: &str = "wallaroo_connector";

/// A registry whose every scrape reads the board. Labels of all metrics: `namespace`, `connector`, `type`.
pub fn registry(board: Board, config: &RuntimeConfig, type_name: &str) -> Registry {
    let labels = [
        ("namespace", config.identity.namespace.clone()),
        ("connector", config.identity.name.clone()),
        ("type", type_name.to_owned()),
    ];
    let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, labels);
    for (name, help, unit, histogram) in board.histograms().list() {
        match unit {
            Some(unit) => registry.register_with_unit(name, help, unit, histogram.clone()),
            None => registry.register(name, help, histogram.clone()),
        }
    }
    let in_flight = &config.delivery.in_flight;
    let limits = Limits { records: i64::from(in_flight.records), bytes: in_flight.bytes };
    registry.register_collector(Box::new(Scrape { board, limits }));
    registry
}

/// The registry as text.
pub fn render(registry: &Registry) -> Result<String, fmt::Error> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry)?;
    Ok(text)
}

/// The bounds of what is in flight.
#[derive(Debug)]
struct Limits {
    records: i64,
    bytes: i64,
}

#[derive(Debug)]
struct Scrape {
    board: Board,
    limits: Limits,
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let board = &self.board;
        let counters = board.counters();
        let plain: [(&str, &str, &AtomicU64); 9] = [
            ("records_in", "Records taken from the sending end", &counters.records_in),
            ("records_out", "Records handed to the receiving end", &counters.records_out),
            ("bytes_in", "Key and payload bytes taken from the sending end", &counters.bytes_in),
            ("bytes_out", "Key and payload bytes handed to the receiving end", &counters.bytes_out),
            ("commits", "Commits at the external system", &counters.commits),
            ("transactions_committed", "Transactions decided commit", &counters.transactions_committed),
            ("transactions_aborted", "Transactions decided abort", &counters.transactions_aborted),
            ("transactions_in_doubt", "Transactions left in doubt", &counters.transactions_in_doubt),
            ("dead_letters", "Records written to the dead letter", &counters.dead_letters),
        ];
        for (name, help, value) in plain {
            counter(&mut encoder, name, help, None, &[], value.load(Relaxed))?;
        }
        let reloads: [(&str, &str, &AtomicU64); 2] = [
            ("config_reload", "Live files taken up", &counters.config_reloads),
            ("secret_reload", "Changes of mounted Secrets taken up", &counters.secret_reloads),
        ];
        for (name, help, value) in reloads {
            counter(&mut encoder, name, help, None, &[("result", "success")], value.load(Relaxed))?;
        }
        counters_by(
            &mut encoder,
            "records_dropped",
            "Records dropped, by reason",
            board.dropped_by_reason().iter().map(|(reason, n)| (vec![("reason", reason.label())], *n)),
        )?;
        counters_by(
            &mut encoder,
            "errors",
            "Errors, by end and class; each is followed by another attempt",
            board
                .errors()
                .iter()
                .map(|((side, class), n)| (vec![("side", side.label()), ("class", *class)], *n)),
        )?;
        let snapshot = board.snapshot();
        counters_by(
            &mut encoder,
            "reconnects",
            "Connections made, by end",
            snapshot.reconnects.iter().map(|(side, n)| (vec![("side", side.label())], *n)),
        )?;
        seconds_by(
            &mut encoder,
            "backpressure",
            "Time in which reading was held back, by the end that was slow",
            &[
                (Side::Wallaroo, &counters.wallaroo_backpressure_micros),
                (Side::External, &counters.external_backpressure_micros),
            ],
        )?;
        let waited = counters.credit_wait_micros.load(Relaxed) as f64 / 1e6;
        let wait = ConstCounter::new(waited);
        let help = "Time with records to send and no credit";
        wait.encode(encoder.encode_descriptor(
            "credit_wait",
            help,
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Counter,
        )?)?;

        let (records, bytes) = board.in_flight();
        gauge(&mut encoder, "in_flight_records", "Records read and not acknowledged", records)?;
        gauge(&mut encoder, "in_flight_bytes", "Bytes read and not acknowledged", bytes)?;
        let limits =
            [("in_flight_limit_records", self.limits.records), ("in_flight_limit_bytes", self.limits.bytes)];
        for (name, limit) in limits {
            let help = "Bound of what may be read and not acknowledged; reading waits there";
            gauge(&mut encoder, name, help, u64::try_from(limit).unwrap_or_default())?;
        }
        gauge(&mut encoder, "credits", "Credits left in the session", board.credits())?;
        let last = board.last_moved() as f64 / 1e3;
        let help = "When a batch last moved, since the Unix epoch";
        let descriptor = encoder.encode_descriptor(
            "last_record_timestamp",
            help,
            Some(&Unit::Seconds),
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        ConstGauge::new(last).encode(descriptor)?;

        let mut connected = encoder.encode_descriptor(
            "connected",
            "1 while data can move at this end",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for side in Side::ALL {
            let (is, _) = board.connected_for(side);
            ConstGauge::new(i64::from(is)).encode(connected.encode_family(&[("side", side.label())])?)?;
        }
        let help = "1 while the connector waits for a change by someone; `/status` says which";
        gauge(&mut encoder, "stalled", help, u64::from(snapshot.stalled.is_some()))?;
        let mut lag = encoder.encode_descriptor(
            "source_lag_records",
            "Records that the external system holds beyond what was sent, by stream",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        for (name, stream) in &snapshot.streams {
            if let Some(records) = stream.lag {
                let family = [("stream", name.as_str())];
                ConstGauge::new(i64::try_from(records).unwrap_or(i64::MAX))
                    .encode(lag.encode_family(&family)?)?;
            }
        }
        let mut build = encoder.encode_descriptor(
            "build_info",
            "Always 1; the version is a label",
            None,
            prometheus_client::metrics::MetricType::Gauge,
        )?;
        ConstGauge::new(1_i64).encode(build.encode_family(&[("version", env!("CARGO_PKG_VERSION"))])?)
    }
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    labels: &[(&str, &str)],
    value: u64,
) -> Result<(), fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut descriptor = encoder.encode_descriptor(name, help, unit, kind)?;
    if labels.is_empty() {
        ConstCounter::new(value).encode(descriptor)
    } else {
        ConstCounter::new(value).encode(descriptor.encode_family(&labels)?)
    }
}

fn counters_by<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (Vec<(&'static str, &'l str)>, u64)>,
) -> Result<(), fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut descriptor = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(descriptor.encode_family(&labels)?)?;
    }
    Ok(())
}

fn seconds_by(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: &[(Side, &AtomicU64)],
) -> Result<(), fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Counter;
    let mut descriptor = encoder.encode_descriptor(name, help, Some(&Unit::Seconds), kind)?;
    for (side, micros) in values {
        let seconds = micros.load(Relaxed) as f64 / 1e6;
        ConstCounter::new(seconds).encode(descriptor.encode_family(&[("side", side.label())])?)?;
    }
    Ok(())
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
    let kind = prometheus_client::metrics::MetricType::Gauge;
    let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
    value.encode(encoder.encode_descriptor(name, help, None, kind)?)
}

#[cfg(test)]
mod tests;
