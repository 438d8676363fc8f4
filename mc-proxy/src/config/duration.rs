//! Durations as text: `"300ms"`, `"5s"`, `"1m30s"`, `"1.5h"`.

use std::time::Duration;

/// No setting means more than a year, and adding this to a clock never overflows.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// Why a text is not a duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DurationError {
    #[error("must not be negative")]
    Negative,
    #[error("is longer than a year")]
    TooLong,
    #[error("is not a duration")]
    Malformed,
}

/// Parses numbers with units h, m, s, ms, us or ns, in any order, as Go's `time.ParseDuration` does.
pub(super) fn parse(text: &str) -> Result<Duration, DurationError> {
    if let Some(rest) = text.strip_prefix('-') {
        let is_number = !rest.starts_with('-') && parse(rest) != Err(DurationError::Malformed);
        return Err(if is_number { DurationError::Negative } else { DurationError::Malformed });
    }
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationError::Malformed)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        total = total.checked_add(term(number, unit)?).filter(|t| *t <= LONGEST).ok_or(DurationError::TooLong)?;
        rest = tail;
    }
    Ok(total)
}

fn term(number: &str, unit: &str) -> Result<Duration, DurationError> {
    let unit_nanos: u64 = match unit {
        "h" => 3_600_000_000_000,
        "m" => 60_000_000_000,
        "s" => 1_000_000_000,
        "ms" => 1_000_000,
        "us" | "µs" | "μs" => 1_000,
        "ns" => 1,
        _ => return Err(DurationError::Malformed),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_digits = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
    if (whole.is_empty() && fraction.is_empty()) || !is_digits(whole) || !is_digits(fraction) {
        return Err(DurationError::Malformed);
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| DurationError::TooLong)? };
    let nanos = whole.checked_mul(unit_nanos).ok_or(DurationError::TooLong)?;
    // What is below a nanosecond is cut off.
    let mut scale = unit_nanos;
    let mut part = 0;
    for digit in fraction.bytes() {
        scale /= 10;
        part += scale * u64::from(digit - b'0');
    }
    nanos.checked_add(part).map(Duration::from_nanos).ok_or(DurationError::TooLong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("300ms", 300),
            ("5s", 5_000),
            ("1h", 3_600_000),
            ("1m30s", 90_000),
            ("1.5s", 1_500),
            (".5s", 500),
            ("1.s", 1_000),
            ("1h0.25s", 3_600_250),
            ("2500us", 2),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(parse(text).map(|d| d.as_millis()), Ok(millis), "{text}");
        }
        for text in ["", " ", "5", "s", ".s", "5 s", "5sec", "1..5s", "1.2.3s", "+5s", "5S", "--5s", "-", "5s ", "٥s"]
        {
            assert_eq!(parse(text), Err(DurationError::Malformed), "{text}");
        }
        for text in ["-1s", "-300ms", "-0.1s", "-99999999h"] {
            assert_eq!(parse(text), Err(DurationError::Negative), "{text}");
        }
        for text in ["99999h", "99999999999999999999999s", "8784h1ns", "5124095h5124095h"] {
            assert_eq!(parse(text), Err(DurationError::TooLong), "{text}");
        }
    }
}
