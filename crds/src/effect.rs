//! What a change of a field does to running pods: said at the field's type, shown in the field reference, proven by the campaign.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::crd::plain_spec_schema;
use crate::reference::unwrapped;
use crate::union;

/// What a change of a field does to running pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Effect {
    /// No pod is touched, and the running ones do not notice.
    Nothing,
    /// The running pods take it up without a restart.
    Live,
    /// Pods are added or removed, the others stay.
    Scales,
    /// The pods are replaced one after the other.
    Restarts,
    /// All pods end before the first new one starts.
    Recreates,
}

impl Effect {
    /// The word of the field reference.
    pub const fn as_str(self) -> &'static str {
        match self {
            Effect::Nothing => "nothing",
            Effect::Live => "live",
            Effect::Scales => "scales",
            Effect::Restarts => "restarts",
            Effect::Recreates => "recreates",
        }
    }

    /// The effect that a field's own schema states, else `inherited`.
    pub(crate) fn of(field: &Value, inherited: Effect) -> Effect {
        let Some(word) = field.get("x-effect").and_then(Value::as_str) else { return inherited };
        [Effect::Nothing, Effect::Live, Effect::Scales, Effect::Restarts, Effect::Recreates]
            .into_iter()
            .find(|effect| effect.as_str() == word)
            .unwrap_or_else(|| panic!("x-effect {word:?} is none of the words of `Effect`"))
    }

    /// What the fields below one with this effect inherit: another system is another owner of the state, a field of the
    /// same system is not.
    pub(crate) fn below(self, schema: &Value) -> Effect {
        match self {
            Effect::Recreates if union::members(schema).is_none() => Effect::Restarts,
            Effect::Nothing | Effect::Live | Effect::Scales | Effect::Restarts | Effect::Recreates => self,
        }
    }
}

/// The effect of every field of the spec, by path; entries of lists have `[]`, e.g. `spec.pod.tolerations[].key`.
///
/// A Connector that needs no claim has no StatefulSet to recreate for the sake of `spec.storage`: see the field reference.
pub fn effects() -> BTreeMap<String, Effect> {
    let mut found = BTreeMap::new();
    collect(&plain_spec_schema(), "spec", Effect::Restarts, &mut found);
    found
}

fn collect(schema: &Value, path: &str, inherited: Effect, found: &mut BTreeMap<String, Effect>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let effect = Effect::of(field, inherited);
        let (field, _) = unwrapped(field);
        let path = format!("{path}.{name}");
        let below = effect.below(&field);
        collect(&field, &path, below, found);
        if let Some(items) = field.get("items") {
            collect(items, &format!("{path}[]"), below, found);
        }
        found.insert(path, effect);
    }
}
