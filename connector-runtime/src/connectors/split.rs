//! How a record splits into key and value.

use connector_crds::systems::split::KeySplit;
use memchr::memmem::Finder;

/// A prepared split.
#[derive(Debug)]
pub(super) enum Split {
    /// At the first occurrence of a text.
    Delimiter(Box<Finder<'static>>),
    /// By a length of 4 bytes big-endian.
    LengthPrefix,
}

impl Split {
    pub(super) fn new(spec: &KeySplit) -> Split {
        match spec {
            KeySplit::Delimiter(text) => {
                Split::Delimiter(Box::new(Finder::new(text.as_bytes()).into_owned()))
            }
            KeySplit::LengthPrefix {} => Split::LengthPrefix,
        }
    }

    /// Key and value of a payload, both borrowed from it; or why there are none, for people.
    pub(super) fn apply<'a>(&self, payload: &'a [u8]) -> Result<(&'a [u8], &'a [u8]), String> {
        match self {
            Split::Delimiter(finder) => match finder.find(payload) {
                Some(at) => Ok((&payload[..at], &payload[at + finder.needle().len()..])),
                None => Err(format!(
                    "record of {} bytes has no delimiter {:?} between key and value",
                    payload.len(),
                    String::from_utf8_lossy(finder.needle())
                )),
            },
            Split::LengthPrefix => {
                let Some((length, rest)) = payload.split_first_chunk::<4>() else {
                    return Err(format!(
                        "record of {} bytes has no room for the length of its key",
                        payload.len()
                    ));
                };
                let length = u32::from_be_bytes(*length);
                usize::try_from(length).ok().and_then(|length| rest.split_at_checked(length)).ok_or_else(
                    || {
                        format!(
                            "record says its key has {length} bytes, but only {} bytes follow",
                            rest.len()
                        )
                    },
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_delimiter_splits_at_its_first_occurrence_and_its_absence_is_said() {
        let split = Split::new(&KeySplit::Delimiter("=>".into()));
        assert_eq!(split.apply(b"a=>b=>c"), Ok((&b"a"[..], &b"b=>c"[..])));
        assert_eq!(split.apply(b"=>"), Ok((&b""[..], &b""[..])));
        assert_eq!(split.apply(b"\xff\x00=>\n"), Ok((&b"\xff\x00"[..], &b"\n"[..])));
        let reason = split.apply(b"a=b").unwrap_err();
        assert_eq!(reason, r#"record of 3 bytes has no delimiter "=>" between key and value"#);
    }

    #[test]
    fn a_length_prefix_splits_any_bytes_and_a_wrong_one_is_said() {
        let split = Split::new(&KeySplit::LengthPrefix {});
        assert_eq!(split.apply(b"\0\0\0\x02a:b"), Ok((&b"a:"[..], &b"b"[..])));
        assert_eq!(split.apply(b"\0\0\0\0"), Ok((&b""[..], &b""[..])));
        assert_eq!(
            split.apply(b"\xff\xff\xff\xffa").unwrap_err(),
            "record says its key has 4294967295 bytes, but only 1 bytes follow"
        );
        assert!(split.apply(b"abc").unwrap_err().contains("no room"));
    }
}
