//! Sizes and durations as people write and read them.

use std::time::Duration;

/// Bytes, with binary or decimal suffixes.
const SIZES: [(&str, u64); 13] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("K", 1 << 10),
    ("M", 1 << 20),
    ("G", 1 << 30),
    ("T", 1 << 40),
    ("B", 1),
];

/// Milliseconds in each unit of time; "ms" before the "m" and "s" that it contains.
const TIMES: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A number of bytes: `4096`, `64MiB`, `1GB`.
///
/// # Errors
/// What it should be.
pub fn size(text: &str) -> Result<u64, String> {
    scaled(text, &SIZES, 1)
        .ok_or_else(|| "not a number of bytes, such as 1048576, 64MiB or 1GB".to_owned())
}

/// A duration, in milliseconds: `500ms`, `10s`, `5m`, `1h`; a bare number is seconds.
///
/// # Errors
/// What it should be.
pub fn milliseconds(text: &str) -> Result<u64, String> {
    scaled(text, &TIMES, 1_000).ok_or_else(|| "not a duration, such as 500ms, 10s or 5m".to_owned())
}

/// A duration for people, with as many digits as matter.
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..0.001 => format!("{:.0} µs", seconds * 1e6),
        ..1.0 => format!("{:.0} ms", seconds * 1e3),
        ..100.0 => format!("{seconds:.1} s"),
        _ => format!("{:.0} s", seconds),
    }
}

/// A number of bytes for people.
pub fn bytes(bytes: u64) -> String {
    let (unit, scale) = match bytes {
        ..1_000 => return format!("{bytes} B"),
        1_000..1_000_000 => ("kB", 1e3),
        1_000_000..1_000_000_000 => ("MB", 1e6),
        _ => ("GB", 1e9),
    };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let scaled = bytes as f64 / scale;
    if scaled < 10.0 { format!("{scaled:.1} {unit}") } else { format!("{scaled:.0} {unit}") }
}

/// A count for people, in groups of three digits.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::with_capacity(digits.len() * 4 / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn scaled(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim();
    let (number, scale) = units
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))
        .unwrap_or((text, bare));
    let number = number.trim_end();
    if !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse::<u64>().ok()?.checked_mul(scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_durations_are_read() {
        for (text, expected) in
            [("0", 0), ("17", 17), ("64MiB", 64 << 20), ("2 kB", 2_000), ("1G", 1 << 30), ("3B", 3)]
        {
            assert_eq!(size(text), Ok(expected), "{text}");
        }
        for (text, expected) in [("10", 10_000), ("5ms", 5), ("5 m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(milliseconds(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_duration_is_refused() {
        for text in ["", "MiB", "-1", "+1", "1.5GB", "1XB", "99999999999999999999", "99999999TiB"] {
            assert!(size(text).is_err(), "{text}");
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_have_as_many_digits_as_matter() {
        assert_eq!(duration(Duration::from_micros(42)), "42 µs");
        assert_eq!(duration(Duration::from_millis(42)), "42 ms");
        assert_eq!(duration(Duration::from_millis(4_240)), "4.2 s");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1_234), "1.2 kB");
        assert_eq!(bytes(104_857_600), "105 MB");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_234_567), "1,234,567");
    }
}
