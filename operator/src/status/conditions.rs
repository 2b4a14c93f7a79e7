//! Conditions: put together so that a time moves only with its status.

use connector_crds::{Condition, ConditionStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::reason::{ConditionType, Reason};

/// Longest message, in characters: the bound of the schema.
const MAX_MESSAGE: usize = 1_024;

/// Longest reason, in characters: the bound of the schema.
const MAX_REASON: usize = 63;

/// One condition before it has a time.
#[derive(Clone, Debug, PartialEq)]
pub struct Said {
    /// Aspect.
    pub type_: ConditionType,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, for programs.
    pub reason: String,
    /// Why, for people.
    pub message: String,
}

impl Said {
    /// With a reason of the operator.
    pub fn new(
        type_: ConditionType,
        status: ConditionStatus,
        reason: Reason,
        message: impl Into<String>,
    ) -> Said {
        Said { type_, status, reason: reason.as_str().into(), message: message.into() }
    }

    /// With a reason that a runtime gave. A word that no condition can hold becomes `fallback`.
    pub fn by_runtime(
        type_: ConditionType,
        status: ConditionStatus,
        reason: &str,
        fallback: Reason,
        message: &str,
    ) -> Said {
        let fits = (1..=MAX_REASON).contains(&reason.len())
            && reason.starts_with(|first: char| first.is_ascii_alphabetic())
            && reason.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let reason = if fits { reason } else { fallback.as_str() };
        Said { type_, status, reason: reason.into(), message: message.into() }
    }
}

/// The condition of a type.
pub fn find(conditions: &[Condition], type_: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == type_.as_str())
}

/// The message that was there, when the new one says the same of the same generation with other numbers: clients of systems
/// put the milliseconds of each attempt into their errors, and a status that follows them is written for ever.
pub fn steady(previous: Option<&Condition>, generation: i64, reason: &str, message: &str) -> String {
    let words =
        |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).take(MAX_MESSAGE).collect::<String>();
    previous
        .filter(|before| before.reason == reason && before.observed_generation == Some(generation))
        .filter(|before| words(&before.message) == words(message))
        .map_or_else(|| message.to_owned(), |before| before.message.clone())
}

/// Gives each condition its time: the one it had, when its status is as it was.
pub fn assemble(said: Vec<Said>, previous: &[Condition], generation: i64, now: Timestamp) -> Vec<Condition> {
    let mut conditions: Vec<(ConditionType, Condition)> = said
        .into_iter()
        .map(|said| {
            let before = find(previous, said.type_).filter(|before| before.status == said.status);
            let condition = Condition {
                type_: said.type_.as_str().into(),
                status: said.status,
                reason: said.reason,
                message: said.message.chars().take(MAX_MESSAGE).collect(),
                observed_generation: Some(generation),
                last_transition_time: before
                    .map_or_else(|| Time(to_seconds(now)), |before| before.last_transition_time.clone()),
            };
            (said.type_, condition)
        })
        .collect();
    conditions.sort_by_key(|(type_, _)| *type_);
    conditions.into_iter().map(|(_, condition)| condition).collect()
}

/// The API server keeps whole seconds; a status with fractions would differ from itself.
pub fn to_seconds(time: Timestamp) -> Timestamp {
    Timestamp::from_second(time.as_second()).unwrap_or(time)
}
