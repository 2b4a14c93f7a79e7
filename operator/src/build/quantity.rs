//! Amounts as the API server writes them, so that what it stores equals what was applied.

/// Units of decimal amounts, from large to small.
const DECIMAL: [(&str, u128); 4] =
    [("T", 1_000_000_000_000), ("G", 1_000_000_000), ("M", 1_000_000), ("k", 1_000)];

/// Units of binary amounts, from large to small.
const BINARY: [(&str, u128); 4] = [("Ti", 1 << 40), ("Gi", 1 << 30), ("Mi", 1 << 20), ("Ki", 1 << 10)];

/// Canonical form of an amount that passed the rules of the resource (Kubernetes API, `Quantity`): no fraction, largest
/// unit. Another text stays as it is.
pub fn canonical(text: &str) -> String {
    parsed(text).unwrap_or_else(|| text.to_owned())
}

/// Whether one amount is more than another; both passed the rules of the resource.
pub fn exceeds(one: &str, other: &str) -> bool {
    let thousandths = |text| {
        let (thousandths, unit) = split(text)?;
        match unit {
            "" => Some(thousandths),
            "m" => Some(thousandths.div_ceil(1_000)),
            unit => {
                let mut units = BINARY.iter().chain(&DECIMAL);
                units.find(|(name, _)| *name == unit).map(|(_, factor)| thousandths * factor)
            }
        }
    };
    thousandths(one) > thousandths(other)
}

/// The number in thousandths, for the rules allow three decimals, and the unit.
fn split(text: &str) -> Option<(u128, &str)> {
    let number = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    Some((format!("{whole}{decimals:0<3}").parse().ok()?, &text[number.len()..]))
}

fn parsed(text: &str) -> Option<String> {
    let (thousandths, unit) = split(text)?;
    if let Some((_, factor)) = BINARY.iter().find(|(name, _)| *name == unit) {
        let bytes = (thousandths * factor).div_ceil(1_000);
        let fitting = BINARY.iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor));
        return Some(fitting.map_or(bytes.to_string(), |(name, factor)| format!("{}{name}", bytes / factor)));
    }
    let millis = match unit {
        "" => thousandths,
        "m" => thousandths.div_ceil(1_000),
        unit => thousandths * DECIMAL.iter().find(|(name, _)| *name == unit)?.1,
    };
    if !millis.is_multiple_of(1_000) {
        return Some(format!("{millis}m"));
    }
    let whole = millis / 1_000;
    let fitting = DECIMAL.iter().find(|(_, factor)| whole != 0 && whole.is_multiple_of(*factor));
    Some(fitting.map_or(whole.to_string(), |(name, factor)| format!("{}{name}", whole / factor)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn amounts_are_compared_across_units() {
        for (more, less) in [("0.5Gi", "256Mi"), ("2", "500m"), ("2500m", "2"), ("1Gi", "1G"), ("1k", "999")]
        {
            assert!(super::exceeds(more, less) && !super::exceeds(less, more), "{more} {less}");
        }
        assert!(!super::exceeds("1Gi", "1024Mi"));
    }

    use super::canonical;

    #[test]
    fn amounts_are_written_as_the_api_server_writes_them() {
        for (given, stored) in [
            ("500m", "500m"),
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("2", "2"),
            ("1000", "1k"),
            ("1.5G", "1500M"),
            ("1000M", "1G"),
            ("1024Mi", "1Gi"),
            ("0.5Gi", "512Mi"),
            ("1536Mi", "1536Mi"),
            ("1.001Ki", "1026"),
            ("0", "0"),
            ("nonsense", "nonsense"),
        ] {
            assert_eq!(canonical(given), stored, "{given}");
        }
    }
}
