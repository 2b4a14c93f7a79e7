//! How a record is written into a file so that the file source finds it again.

use connector_crds::systems::file::FileFormat;

/// Appends one record to `out`, with what separates it from the next; or says why it cannot be written.
///
/// Lines: a line feed at the record's end serves as the separator and is not doubled; one inside would make two records
/// of it.
pub(super) fn append(format: FileFormat, payload: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    match format {
        FileFormat::Lines => {
            let line = payload.strip_suffix(b"\n").unwrap_or(payload);
            if memchr::memchr(b'\n', line).is_some() {
                return Err(
                    "record has a line feed inside, which `format: Lines` cannot carry; use LengthPrefixed"
                        .into(),
                );
            }
            out.extend_from_slice(line);
            out.push(b'\n');
        }
        FileFormat::LengthPrefixed => {
            let length =
                u32::try_from(payload.len()).map_err(|_| "record is longer than 4 GiB".to_owned())?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(payload);
        }
    }
    Ok(())
}
