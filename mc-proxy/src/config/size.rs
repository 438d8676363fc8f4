//! Sizes as text: `"65536"`, `"64KiB"`, `"512MiB"`, `"2GiB"`.

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Size(pub(super) u64);

/// Why a text is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SizeError {
    #[error("must not be negative")]
    Negative,
    #[error("is more than memory can be")]
    TooLarge,
    #[error("is not a size")]
    Malformed,
}

/// Parses digits and a unit: B, KiB, MiB, GiB or TiB, whose multiples are 1,024. Without a unit they are bytes.
pub(super) fn parse(text: &str) -> Result<Size, SizeError> {
    if text.strip_prefix('-').is_some_and(|rest| parse(rest).is_ok()) {
        return Err(SizeError::Negative);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit.trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err(SizeError::Malformed),
    };
    if number.is_empty() {
        return Err(SizeError::Malformed);
    }
    let number = number.parse::<u64>().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(unit).map(Size).ok_or(SizeError::TooLarge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_and_without_a_unit() {
        for (text, bytes) in [
            ("0", 0),
            ("1", 1),
            ("65536", 65_536),
            ("7B", 7),
            ("64KiB", 65_536),
            ("512MiB", 512 << 20),
            ("2 GiB", 2 << 30),
            ("1TiB", 1 << 40),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size() {
        // "MB" is 1,000,000 to some and 1,048,576 to others.
        for text in ["", "MiB", "1.5GiB", "512MB", "512M", "512mib", "0x10", "1_000", "+1", "--1", "- 1", "1MiBx", "½"]
        {
            assert_eq!(parse(text), Err(SizeError::Malformed), "{text:?}");
        }
        for text in ["-1", "-5MiB"] {
            assert_eq!(parse(text), Err(SizeError::Negative), "{text:?}");
        }
        for text in ["18446744073709551616", "16777216TiB", "99999999999999999999999KiB"] {
            assert_eq!(parse(text), Err(SizeError::TooLarge), "{text:?}");
        }
    }
}
