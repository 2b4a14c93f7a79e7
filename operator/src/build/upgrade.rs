//! Which rendering runs: the stored one or a new one. Pure.

use std::collections::BTreeSet;

use connector_crds::UpgradePolicy;
use serde_json::Value;

use super::rendering::Rendering;

/// Renderings that are kept at least, the newest: enough to look at what changed.
pub const KEPT_RENDERINGS: usize = 3;

/// Longest `status.pendingChange`, in bytes.
const MAX_PENDING: usize = 1_024;

/// Longest value that `status.pendingChange` quotes, in characters.
const MAX_QUOTED: usize = 60;

/// What runs, and what is left for later.
#[derive(Clone, Debug, PartialEq)]
pub struct Chosen {
    /// The rendering that the pods are made from.
    pub rendering: Rendering,
    /// What taking up the newest rendering would change; absent: nothing.
    pub pending_change: Option<String>,
}

/// Chooses between what is stored and what the spec would become now.
pub fn choose(stored: Option<&Rendering>, fresh: Rendering, policy: UpgradePolicy) -> Chosen {
    let Some(stored) = stored else { return Chosen { rendering: fresh, pending_change: None } };
    let keep = stored.name == fresh.name
        || match policy {
            UpgradePolicy::Immediate => false,
            UpgradePolicy::OnSpecChange => stored.spec == fresh.spec,
        };
    if keep {
        Chosen { pending_change: pending_change(stored, &fresh), rendering: stored.clone() }
    } else {
        Chosen { rendering: fresh, pending_change: None }
    }
}

/// What differs in what the pods get; the same text for the same two renderings.
fn pending_change(stored: &Rendering, fresh: &Rendering) -> Option<String> {
    let parts = |rendering: &Rendering| {
        let config = serde_json::from_str(&rendering.config).unwrap_or_default();
        let data = |key: &str| {
            rendering.data().get(key).and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
        };
        [("config", config), ("pod", data("template.json")), ("claims", data("claims.json"))]
    };
    let mut changes = Vec::new();
    for ((name, old), (_, new)) in parts(stored).into_iter().zip(parts(fresh)) {
        differences(name, &old, &new, &mut changes);
    }
    if changes.is_empty() {
        return None;
    }
    let mut text = String::new();
    for (index, change) in changes.iter().enumerate() {
        let rest = format!("; and {} more", changes.len() - index);
        if text.len() + change.len() + 2 + rest.len() > MAX_PENDING {
            text.push_str(&rest);
            break;
        }
        if index > 0 {
            text.push_str("; ");
        }
        text.push_str(change);
    }
    Some(text)
}

fn differences(path: &str, old: &Value, new: &Value, changes: &mut Vec<String>) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let names: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for name in names {
                let value =
                    |fields: &serde_json::Map<String, Value>| fields.get(name).cloned().unwrap_or_default();
                differences(&format!("{path}.{name}"), &value(old), &value(new), changes);
            }
        }
        (Value::Array(old), Value::Array(new)) if old.len() == new.len() => {
            for (index, (old, new)) in old.iter().zip(new).enumerate() {
                differences(&format!("{path}[{index}]"), old, new, changes);
            }
        }
        (old, new) if old != new => changes.push(format!("{path}: {} → {}", quoted(old), quoted(new))),
        _ => {}
    }
}

fn quoted(value: &Value) -> String {
    let text = match value {
        Value::Null => return "absent".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    if text.chars().count() <= MAX_QUOTED {
        text
    } else {
        text.chars().take(MAX_QUOTED).chain(['…']).collect()
    }
}

/// Which stored renderings nobody needs any more: not the newest, and neither in force nor in use by a pod.
///
/// `stored` holds names, oldest first.
pub fn superfluous(stored: &[String], needed: &BTreeSet<String>) -> Vec<String> {
    let old = stored.len().saturating_sub(KEPT_RENDERINGS);
    stored[..old].iter().filter(|name| !needed.contains(*name)).cloned().collect()
}
