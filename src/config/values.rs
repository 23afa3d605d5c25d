//! Values with a form of their own: sizes, durations, starts.

use std::time::Duration;

use crate::model::{Start, TimePoint};

/// `32MiB`, `64KB`, `1GiB`, `1000`.
///
/// # Errors
/// What may be written instead.
pub fn bytes(text: &str) -> Result<u64, String> {
    let units: [(&str, u64); 8] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("KB", 1_000),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("B", 1),
        ("", 1),
    ];
    with_unit(text, &units)
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| format!("`{text}` is not a size: write a number and KiB, MiB, GiB, KB, MB or GB"))
}

/// `500ms`, `5s`, `10m`, `2h`, `1d`.
///
/// # Errors
/// What may be written instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    millis(text)
        .filter(|millis| *millis > 0)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("`{text}` is not a duration: write a number and ms, s, m, h or d"))
}

fn millis(text: &str) -> Option<u64> {
    let units: [(&str, u64); 5] =
        [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
    with_unit(text, &units)
}

fn with_unit(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.find(|char: char| !char.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// `host:port`, `[::1]:port`, `off` (`None`).
///
/// # Errors
/// What may be written instead.
pub fn listen(text: &str) -> Result<Option<String>, String> {
    if text == "off" {
        return Ok(None);
    }
    let parts = text.rsplit_once(':');
    let is_address = parts.is_some_and(|(host, port)| {
        // An address of IPv6 has colons of its own.
        let is_host =
            !host.is_empty() && (!host.contains(':') || (host.starts_with('[') && host.ends_with(']')));
        is_host && !host.contains(char::is_whitespace) && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    if is_address {
        Ok(Some(text.to_owned()))
    } else {
        Err(format!("`{text}` is not an address: write `host:port`, for example `127.0.0.1:7979`, or `off`"))
    }
}

/// A whole number from 1.
///
/// # Errors
/// If it is not.
pub fn positive(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("`{text}` is not a whole number from 1")),
    }
}

/// `earliest`, `latest`, a time, `-2h`, `-100`.
///
/// # Errors
/// What may be written instead.
pub fn start(text: &str) -> Result<Start, String> {
    if let Some(back) = text.strip_prefix('-') {
        if let Ok(records) = back.parse() {
            return Ok(Start::Last(records));
        }
        if let Some(ago) = millis(back).and_then(|ago| i64::try_from(ago).ok()) {
            return Ok(Start::Time(TimePoint::Ago(ago)));
        }
    }
    match text {
        "earliest" => Ok(Start::Earliest),
        "latest" => Ok(Start::Latest),
        _ => match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(Start::Time(TimePoint::At(time.as_millisecond()))),
            Err(_) => Err(format!(
                "`{text}` is not a start: write `earliest`, `latest`, a time like `2026-11-01T00:00:00Z`, \
                 a time ago like `-2h`, or a number of records like `-100`"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        assert_eq!(bytes("32MiB"), Ok(32 << 20));
        assert_eq!(bytes("7"), Ok(7));
        assert_eq!(bytes("2 KB"), Ok(2_000));
        for bad in ["", "MiB", "1.5MiB", "-3", "0", "5 parsecs", "99999999999GiB"] {
            bytes(bad).unwrap_err();
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2h"), Ok(Duration::from_secs(7200)));
        for bad in ["5", "s", "0s", "1y"] {
            duration(bad).unwrap_err();
        }
        assert_eq!(listen("off"), Ok(None));
        for good in ["127.0.0.1:7979", "localhost:1", "[::1]:65535", "0.0.0.0:7979"] {
            assert_eq!(listen(good), Ok(Some(good.to_owned())));
        }
        for bad in [
            "",
            "7979",
            ":7979",
            "localhost",
            "localhost:0",
            "localhost:65536",
            "::1:7979",
            "a b:1",
            "http://a:1",
        ] {
            listen(bad).unwrap_err();
        }
        assert_eq!(start("-100"), Ok(Start::Last(100)));
        assert_eq!(start("-2h"), Ok(Start::Time(TimePoint::Ago(7_200_000))));
        assert_eq!(start("1970-01-01T00:00:01Z"), Ok(Start::Time(TimePoint::At(1000))));
        assert_eq!(start("latest"), Ok(Start::Latest));
        for bad in ["newest", "-", "-2y", "yesterday"] {
            start(bad).unwrap_err();
        }
    }
}
