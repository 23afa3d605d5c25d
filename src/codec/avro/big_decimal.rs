//! Avro's `big-decimal` as text: each value has its own scale, which no Arrow type has.
//!
//! On the wire it is `bytes` that hold, again in Avro's encoding, the unscaled number (`bytes`, two's complement, the
//! highest byte first) and the scale (`int`), as Java's `Conversions.BigDecimalConversion` writes them.

use num_bigint::BigInt;

/// Digits behind the point, or zeros before it. A scale of two billion would make gigabytes of text out of 8 bytes.
const SCALE_MAX: u32 = 1000;

/// Bytes of the unscaled number: 308 digits.
const UNSCALED_BYTES_MAX: usize = 128;

/// Digits without an exponent; `None` if there are more of them than `SCALE_MAX` and `UNSCALED_BYTES_MAX` allow.
pub fn text(unscaled: &[u8], scale: i32) -> Option<String> {
    if unscaled.len() > UNSCALED_BYTES_MAX || scale.unsigned_abs() > SCALE_MAX {
        return None;
    }
    let number = BigInt::from_signed_bytes_be(unscaled).to_string();
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", number.as_str()),
    };
    let places = usize::try_from(scale.unsigned_abs()).ok()?;
    Some(match scale {
        0 => number.clone(),
        1.. => {
            let padded = format!("{digits:0>width$}", width = places + 1);
            let (whole, fraction) = padded.split_at(padded.len() - places);
            format!("{sign}{whole}.{fraction}")
        }
        _ if digits == "0" => number.clone(),
        _ => format!("{sign}{digits}{}", "0".repeat(places)),
    })
}

/// Is this text such a number? So that JSON brings no other ones.
pub fn is_text(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let are_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= SCALE_MAX as usize && are_digits(whole) && are_digits(fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_and_scales() {
        for (unscaled, scale, expected) in [
            (&[][..], 0, "0"),
            (&[0], 3, "0.000"),
            (&[5], 2, "0.05"),
            (&[0x30, 0x39], 2, "123.45"),
            (&[0xcf, 0xc7], 2, "-123.45"),
            (&[0xff], 0, "-1"),
            (&[0xff], 1, "-0.1"),
            (&[7], -3, "7000"),
            (&[0], -3, "0"),
            (&[0x01, 0, 0, 0, 0, 0, 0, 0, 0], 5, "184467440737095.51616"),
        ] {
            let shown = text(unscaled, scale).unwrap();
            assert_eq!(shown, expected);
            assert!(is_text(&shown));
        }
        assert_eq!(text(&[1], i32::MAX), None);
        assert_eq!(text(&[1], i32::MIN), None);
        assert_eq!(text(&[1; 129], 0), None);
        assert_eq!(text(&[1; 128], 1000).unwrap().len(), 1002);
        for bad in ["", "-", ".5", "5.", "1e5", "+1", "1.2.3", "٣"] {
            assert!(!is_text(bad), "{bad}");
        }
    }
}
