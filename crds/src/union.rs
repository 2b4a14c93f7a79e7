//! Unions: an object of which exactly one field is set, as the schema of an externally tagged enum.
//!
//! schemars writes such an enum as `oneOf`. The API server's errors about it are unreadable and hide those of the CEL
//! rules, so the branches become optional properties, and a rule with a sentence says that one of them must be set.

use kube::core::cel::{Rule, validate};
use schemars::Schema;
use serde_json::{Map, Value};

/// Rewrites the schema of an externally tagged enum: `#[schemars(transform = exactly_one)]`.
pub(crate) fn exactly_one(schema: &mut Schema) {
    let object = schema.ensure_object();
    let Some(Value::Array(branches)) = object.remove("oneOf") else {
        panic!("the schema of an externally tagged enum is a oneOf");
    };
    let mut properties = Map::new();
    for mut branch in branches {
        let description = branch.get("description").cloned();
        let Some(Value::Object(fields)) = branch.get_mut("properties").map(Value::take) else {
            panic!("each variant carries an object: `Name(Type)` or `Name {{}}`");
        };
        for (name, mut field) in fields {
            if let (Some(description), Some(field)) = (&description, field.as_object_mut()) {
                field.insert("description".into(), description.clone());
            }
            properties.insert(name, field);
        }
    }
    let mut names: Vec<String> = properties.keys().cloned().collect();
    names.sort_unstable();
    object.insert("type".into(), "object".into());
    object.insert("properties".into(), Value::Object(properties));
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let rule = Rule::new(condition(&names)).message(message(&names).as_str());
    validate(schema, rule).expect("a rule is plain text, which JSON holds");
}

/// What a user reads when none or several of a union's fields are set.
pub(crate) fn message(names: &[&str]) -> String {
    match names {
        [one] => format!("{one} must be set"),
        [rest @ .., last] => format!("exactly one of {} and {last} must be set", rest.join(", ")),
        [] => unreachable!("an enum without variants has no values and no schema"),
    }
}

/// The names of a union's fields, if the schema is one.
pub(crate) fn members(schema: &Value) -> Option<Vec<&str>> {
    let mut names: Vec<&str> = schema.get("properties")?.as_object()?.keys().map(String::as_str).collect();
    names.sort_unstable();
    let condition = condition(&names);
    let rules = schema.get("x-kubernetes-validations")?.as_array()?;
    rules.iter().any(|rule| rule["rule"] == condition.as_str()).then_some(names)
}

fn condition(names: &[&str]) -> String {
    let set: Vec<String> = names.iter().map(|name| format!("(has(self.{name}) ? 1 : 0)")).collect();
    format!("{} == 1", set.join(" + "))
}
