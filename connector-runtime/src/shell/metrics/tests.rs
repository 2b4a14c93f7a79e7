//! What a scrape says, and the table of it in the operations page.

use std::path::Path;

use serde_json::json;

use super::*;
use crate::board::{SideState, Stalled};
use crate::source::ErrorClass;

#[path = "../../../../tests/src/metrics_table.rs"]
mod metrics_table;

/// A scrape of a connector to which everything has happened.
fn scrape() -> String {
    let config: RuntimeConfig = serde_json::from_value(json!({
        "identity": {"namespace": "shop", "name": "orders", "epoch": ""},
        "source": {"kafka": {"bootstrapServers": ["kafka:9092"], "topics": ["orders"]}},
        "wallaroo": {"protocol": "Connector", "connect": ["wallaroo:7100"]},
        "delivery": {"inFlight": {"records": 7, "bytes": 4096}},
        "storage": {},
        "paths": {"secrets": "", "state": "", "live": "", "base": ""},
        "admin": "127.0.0.1:0",
        "drainTimeoutSeconds": 30,
    }))
    .unwrap();
    let board = Board::new();
    board.error(Side::External, ErrorClass::Connect, "refused", 1);
    board.set_side(Side::External, SideState::Connected);
    board.set_stalled(Some(Stalled { reason: "RecordRejected".into(), message: String::new() }));
    board.stream("orders/0", |stream| stream.lag = Some(3));
    render(&registry(board, &config, "KafkaSource")).unwrap()
}

#[test]
fn a_scrape_has_identity_states_and_bounds() {
    let text = scrape();
    let labels = r#"namespace="shop",connector="orders",type="KafkaSource""#;
    for line in [
        format!("wallaroo_connector_connected{{{labels},side=\"external\"}} 1"),
        format!("wallaroo_connector_connected{{{labels},side=\"wallaroo\"}} 0"),
        format!("wallaroo_connector_errors_total{{{labels},side=\"external\",class=\"connect\"}} 1"),
        format!("wallaroo_connector_in_flight_limit_bytes{{{labels}}} 4096"),
        format!("wallaroo_connector_in_flight_limit_records{{{labels}}} 7"),
        format!("wallaroo_connector_source_lag_records{{{labels},stream=\"orders/0\"}} 3"),
        format!("wallaroo_connector_stalled{{{labels}}} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_table_in_the_operations_page_is_current() {
    let table = metrics_table::table(&scrape(), &["namespace", "connector", "type"]);
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operations.md");
    metrics_table::assert_current(&page, "metrics of a connector", &table);
}
