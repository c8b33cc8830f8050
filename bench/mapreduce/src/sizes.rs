//! Sizes as people write them.

use std::str::FromStr;

/// A number of bytes: `4096`, `512KiB`, `64MiB`, `1GiB`.
///
/// # Errors
/// Says what was expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text.find(|it: char| !it.is_ascii_digit()).unwrap_or(text.len());
    let unit = match &text[digits..] {
        "" | "B" => 1,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        _ => 0,
    };
    let number = u64::from_str(&text[..digits]).ok();
    number
        .and_then(|number| number.checked_mul(unit).filter(|_| unit > 0))
        .ok_or_else(|| format!("{text:?} is not a size such as 4096, 512KiB, 64MiB or 1GiB"))
}

/// A number of bytes for people, in the unit of its size.
pub fn shown(bytes: u64) -> String {
    match bytes {
        0..0x40_0000 => format!("{} KiB", bytes.div_ceil(1 << 10)),
        _ => format!("{} MiB", bytes.div_ceil(1 << 20)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let expected =
            [("0", 0), ("17", 17), ("2KiB", 2 << 10), ("512MiB", 512 << 20), ("4GiB", 4 << 30)];
        for (text, bytes) in expected {
            assert_eq!(parse(text), Ok(bytes));
        }
        for text in ["", "MiB", "1TiB", "1.5GiB", "-1", "99999999999GiB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
