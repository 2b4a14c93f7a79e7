//! `docs/endpoint.md` says what the program takes.

use wallaroo_endpoint::config::EndpointConfig;
use wallaroo_endpoint::faults::FaultPlan;

const PAGE: &str = include_str!("../../../../docs/endpoint.md");

fn json_examples() -> Vec<&'static str> {
    PAGE.split("```json\n").skip(1).filter_map(|rest| Some(rest.split_once("```")?.0)).collect()
}

#[test]
fn the_examples_are_accepted() {
    let examples = json_examples();
    assert_eq!(examples.len(), 2);
    let config = EndpointConfig::from_json(examples[0]).unwrap();
    assert_eq!((config.workers, config.sources.len(), config.sinks.len()), (2, 3, 1));
    serde_json::from_str::<FaultPlan>(examples[1]).unwrap().check().unwrap();
}

#[test]
fn every_fault_and_every_setting_is_described() {
    let fields =
        |value: serde_json::Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    for name in fields(serde_json::to_value(FaultPlan::default()).unwrap()) {
        assert!(PAGE.contains(&format!("`{name}`")), "the fault {name} is missing");
    }
    for name in fields(serde_json::to_value(EndpointConfig::default()).unwrap()) {
        let described = ["admin", "checkpoint_interval_ms", "faults", "name", "sinks", "sources"];
        if !described.contains(&name.as_str()) {
            assert!(PAGE.contains(&format!("`{name}`")), "the setting {name} is missing");
        }
    }
}
