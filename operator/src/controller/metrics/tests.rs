//! What a scrape says, and the table of it in the operations page.

use std::path::Path;
use std::time::Instant;

use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde_json::json;

use super::*;
use crate::build::tests::kafka_source;
use crate::controller::stores::Watched;

#[path = "../../../../tests/src/metrics_table.rs"]
mod metrics_table;

/// A scrape of an operator to which everything has happened.
fn scrape() -> String {
    let metrics = Metrics::default();
    metrics.reconciled(true, 0.01);
    metrics.wrote("StatefulSet", "apply");
    metrics.requested("patch", "connectors/status".into(), Some(200));
    metrics.requested("list", "pods".into(), None);
    metrics.watch_restarted();
    metrics.leads(true);
    metrics.backlog().changed(key(Some("shop"), "orders"), Instant::now());
    let mut writer = Writer::<Watched>::default();
    metrics.managed().add(writer.as_reader());
    let connector = |name: &str, spec: serde_json::Value, status: serde_json::Value| {
        serde_json::from_value(json!({
            "apiVersion": "connectors.wallaroolabs.com/v1alpha1", "kind": "Connector",
            "metadata": {"name": name, "namespace": "shop", "uid": name}, "spec": spec, "status": status,
        }))
        .unwrap()
    };
    let ready = json!([{"type": "Ready", "status": "True", "reason": "Running", "message": "",
        "lastTransitionTime": "2026-11-25T00:00:00Z"}]);
    let status = json!({"type": "KafkaSource", "conditions": ready, "pendingChange": "image"});
    writer.apply_watcher_event(&Event::Apply(connector("a", kafka_source(), status)));
    writer.apply_watcher_event(&Event::Apply(connector("b", kafka_source(), json!(null))));
    writer.apply_watcher_event(&Event::Apply(connector("c", json!({"source": 1}), json!(null))));
    metrics.render().unwrap()
}

#[test]
fn a_scrape_tells_of_connectors_requests_and_backlog() {
    let text = scrape();
    for line in [
        "wallaroo_operator_reconcile_total{result=\"ok\"} 1",
        "wallaroo_operator_reconcile_seconds_count 1",
        "wallaroo_operator_reconcile_queue_depth 1",
        "wallaroo_operator_api_requests_total{verb=\"patch\",resource=\"connectors/status\",code=\"200\"} 1",
        "wallaroo_operator_api_requests_total{verb=\"list\",resource=\"pods\",code=\"none\"} 1",
        "wallaroo_operator_managed_connectors{type=\"KafkaSource\",state=\"Running\",ready=\"True\"} 1",
        "wallaroo_operator_managed_connectors{type=\"Unknown\",state=\"Running\",ready=\"Unknown\"} 1",
        "wallaroo_operator_managed_connectors{type=\"Unknown\",state=\"Unknown\",ready=\"False\"} 1",
        "wallaroo_operator_pending_changes 1",
        "wallaroo_operator_leader 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.contains("\nwallaroo_operator_oldest_unreconciled_seconds "));
}

#[test]
fn the_operations_page_speaks_only_of_metrics_that_there_are() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    let page = std::fs::read_to_string(page).unwrap();
    let words = page.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let named: std::collections::BTreeSet<_> = words
        .filter(|word| word.starts_with("wallaroo_connector_") || word.starts_with("wallaroo_operator_"))
        .collect();
    assert!(named.len() > 30, "{named:?}");
    let unknown: Vec<_> =
        named.into_iter().filter(|name| !page.contains(&format!("\n| `{name}` |"))).collect();
    assert!(unknown.is_empty(), "not in a table: {unknown:?}");
}

#[test]
fn the_table_in_the_operations_page_is_current() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    metrics_table::assert_current(&page, "metrics of the operator", &metrics_table::table(&scrape(), &[]));
}
