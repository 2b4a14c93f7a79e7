//! What happens to each record: `identity`, `celsius` and `word-count`.
//!
//! * `identity`: the payload is the result.
//! * `celsius`: the payload is a decimal number of degrees Celsius as text, or exactly four bytes that are no such text
//!   and hold a big-endian `f32`. Text may stand behind one `prefix,`, for instance a time; blanks and line ends
//!   around it are ignored. The result is the prefix with its comma and the temperature in degrees Fahrenheit with one
//!   decimal place, without a line end: `2010/01/01 00:00,39.4` becomes `2010/01/01 00:00,102.9`. (A text of exactly
//!   four bytes, such as `39.4`, is text: as a float it would be a temperature of less than a thousandth of a degree.)
//! * `word-count`: the payload is text; words are runs of letters and digits, in lower case. Each word gives one
//!   result `word:total`, so that a sink with the delimiter `:` and the word as key shows the totals.
//!
//! A payload that its application cannot read gives no result and counts as bad input, with the reason.

use std::collections::BTreeMap;
use std::io::Write as _;

use crate::config::Application;

/// Distinct words that `word-count` keeps; further ones are bad input, so that memory is bounded (about 100 MiB).
pub const MAX_WORDS: usize = 1_000_000;

/// Longest word in bytes; a longer one is bad input.
pub const MAX_WORD: usize = 256;

/// State of an application; only `word-count` has any. A checkpoint keeps a copy of it.
pub type Totals = BTreeMap<String, u64>;

/// Why a payload gave no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum BadRecord {
    /// Neither a decimal number nor a four-byte float.
    #[error("not a temperature: expected a decimal number as text or a big-endian 32-bit float")]
    NotATemperature,
    /// Infinite or not a number.
    #[error("not a temperature: the float is infinite or not a number")]
    NotFinite,
    /// Text that is not UTF-8.
    #[error("not UTF-8 text")]
    NotText,
    /// A word above [`MAX_WORD`].
    #[error("a word is longer than 256 bytes")]
    WordTooLong,
    /// More than [`MAX_WORDS`] distinct words.
    #[error("more than 1000000 distinct words")]
    TooManyWords,
}

/// Turns one payload into results. `emit` takes each result and the word that it belongs to, if any (a cluster sends
/// the totals of one word through one worker).
pub(crate) fn process(
    application: Application,
    totals: &mut Totals,
    payload: &[u8],
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(Option<&str>, &[u8]),
) -> Result<(), BadRecord> {
    match application {
        Application::Identity => {
            emit(None, payload);
            Ok(())
        }
        Application::Celsius => {
            scratch.clear();
            fahrenheit(payload, scratch)?;
            emit(None, scratch);
            Ok(())
        }
        Application::WordCount => count_words(totals, payload, scratch, emit),
    }
}

fn fahrenheit(payload: &[u8], out: &mut Vec<u8>) -> Result<(), BadRecord> {
    let text = payload.trim_ascii();
    let start = text.iter().rposition(|byte| *byte == b',').map_or(0, |comma| comma + 1);
    let (prefix, number) = text.split_at(start);
    let celsius = if let Some(celsius) = decimal(number.trim_ascii()) {
        out.extend_from_slice(prefix);
        celsius
    } else {
        let bytes: [u8; 4] = payload.try_into().map_err(|_| BadRecord::NotATemperature)?;
        f64::from(f32::from_be_bytes(bytes))
    };
    let fahrenheit = celsius * 1.8 + 32.0;
    if !fahrenheit.is_finite() {
        return Err(BadRecord::NotFinite);
    }
    // Adding zero after rounding turns "-0.0" into "0.0".
    let rounded = (fahrenheit * 10.0).round() / 10.0 + 0.0;
    write!(out, "{rounded:.1}").map_err(|_| BadRecord::NotATemperature)
}

/// A number of digits with sign and point; no exponent, no `inf`, no `nan`.
fn decimal(text: &[u8]) -> Option<f64> {
    if !text.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'+' | b'-' | b'.')) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

fn count_words(
    totals: &mut Totals,
    payload: &[u8],
    scratch: &mut Vec<u8>,
    mut emit: impl FnMut(Option<&str>, &[u8]),
) -> Result<(), BadRecord> {
    let text = std::str::from_utf8(payload).map_err(|_| BadRecord::NotText)?;
    let words = || text.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty());
    // Checked before the first total changes: a record counts wholly or not at all.
    let mut fresh = 0;
    for word in words() {
        if word.len() > MAX_WORD {
            return Err(BadRecord::WordTooLong);
        }
        fresh += usize::from(!totals.contains_key(&word.to_lowercase()));
    }
    if totals.len() + fresh > MAX_WORDS {
        return Err(BadRecord::TooManyWords);
    }
    for word in words() {
        let word = word.to_lowercase();
        let total = totals.entry(word.clone()).or_insert(0);
        *total += 1;
        scratch.clear();
        write!(scratch, "{word}:{total}").map_err(|_| BadRecord::NotText)?;
        emit(Some(&word), scratch);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(application: Application, payload: &[u8]) -> Result<Vec<String>, BadRecord> {
        let mut results = Vec::new();
        process(application, &mut Totals::new(), payload, &mut Vec::new(), |_, result| {
            results.push(String::from_utf8(result.to_vec()).unwrap());
        })?;
        Ok(results)
    }

    fn fahrenheit_of(payload: &[u8]) -> Result<String, BadRecord> {
        run(Application::Celsius, payload).map(|results| results.concat())
    }

    #[test]
    fn celsius_reads_text() {
        assert_eq!(fahrenheit_of(b"100"), Ok("212.0".into()));
        assert_eq!(fahrenheit_of(b"-40.0\r\n"), Ok("-40.0".into()));
        assert_eq!(fahrenheit_of(b" +36.6 "), Ok("97.9".into()));
        assert_eq!(fahrenheit_of(b"-17.78"), Ok("0.0".into()));
    }

    #[test]
    fn celsius_keeps_a_prefix() {
        assert_eq!(fahrenheit_of(b"2010/01/01 00:00,39.4"), Ok("2010/01/01 00:00,102.9".into()));
        assert_eq!(
            fahrenheit_of(b"Seattle,2010/01/01 00:00, 0\n"),
            Ok("Seattle,2010/01/01 00:00,32.0".into())
        );
    }

    #[test]
    fn celsius_reads_a_float_and_prefers_text_of_four_bytes() {
        assert_eq!(fahrenheit_of(&100f32.to_be_bytes()), Ok("212.0".into()));
        assert_eq!(fahrenheit_of(&(-40f32).to_be_bytes()), Ok("-40.0".into()));
        assert_eq!(fahrenheit_of(b"39.4"), Ok("102.9".into()));
    }

    #[test]
    fn celsius_refuses_what_is_no_temperature() {
        for payload in
            [&b"date,temp"[..], b"", b"1e5", b"NaN", b"2010/01/01 00:00,", b"1.2.3", b"12345678,inf"]
        {
            assert_eq!(fahrenheit_of(payload), Err(BadRecord::NotATemperature), "{payload:?}");
        }
        assert_eq!(fahrenheit_of(&f32::NAN.to_be_bytes()), Err(BadRecord::NotFinite));
        assert_eq!(fahrenheit_of(&f32::INFINITY.to_be_bytes()), Err(BadRecord::NotFinite));
    }

    #[test]
    fn word_count_gives_running_totals() {
        assert_eq!(
            run(Application::WordCount, "the cat, The END\n".as_bytes()),
            Ok(vec!["the:1".into(), "cat:1".into(), "the:2".into(), "end:1".into()])
        );
        assert_eq!(run(Application::WordCount, &[0xff]), Err(BadRecord::NotText));
        assert_eq!(run(Application::WordCount, "x".repeat(257).as_bytes()), Err(BadRecord::WordTooLong));
    }

    #[test]
    fn identity_passes_bytes() {
        assert_eq!(run(Application::Identity, b"any bytes"), Ok(vec!["any bytes".into()]));
    }
}
