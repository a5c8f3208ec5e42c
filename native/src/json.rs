//! Write BSON values as JSON text; docs/mapping.md has the table.

use crate::{Declined, time};

const HEX: &[u8; 16] = b"0123456789abcdef";
const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
/// A word with the number 1 in each byte.
pub const ONES: u64 = 0x0101_0101_0101_0101;
/// A word with the highest bit set in each byte.
pub const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Write a string with its quotes.
///
/// # Errors
///
/// Declined if the text is not UTF-8.
pub fn string(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Declined> {
    out.reserve(text.len() + 2);
    out.push(b'"');
    let plain = plain_prefix(text);
    out.extend_from_slice(&text[..plain]);
    if plain < text.len() {
        escaped(out, &text[plain..])?;
    }
    out.push(b'"');
    Ok(())
}

/// Check that a text is UTF-8, where the text is not written.
///
/// # Errors
///
/// Declined if the text is not UTF-8.
pub fn check(text: &[u8]) -> Result<(), Declined> {
    std::str::from_utf8(text).map(|_| ()).map_err(|_| Declined)
}

/// Return how many bytes at the start are ASCII and need no escape.
///
/// The function looks at words of eight bytes, so the true number can be up to seven higher.
fn plain_prefix(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(word) = text[at..].first_chunk() {
        if needs_care(u64::from_le_bytes(*word)) {
            return at;
        }
        at += 8;
    }
    if at == text.len() {
        return at;
    }
    // Up to seven bytes are left: look at the last eight bytes of the text.
    if let Some(word) = text.last_chunk() {
        return if needs_care(u64::from_le_bytes(*word)) { at } else { text.len() };
    }
    text.iter().position(|&byte| is_special(byte) || !byte.is_ascii()).unwrap_or(text.len())
}

/// Return whether any byte of a word is a control character, a quote, a backslash or not ASCII.
#[must_use]
pub fn needs_care(word: u64) -> bool {
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word;
    let control = below(word, 0x20);
    let quote = below(word ^ (ONES * u64::from(b'"')), 1);
    let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
    (word | control | quote | backslash) & HIGHS != 0
}

fn is_special(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

#[cold]
fn escaped(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Declined> {
    check(text)?;
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| is_special(byte)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            byte @ (b'"' | b'\\') => out.extend_from_slice(&[b'\\', byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            8 => out.extend_from_slice(b"\\b"),
            12 => out.extend_from_slice(b"\\f"),
            byte => {
                out.extend_from_slice(b"\\u00");
                hex(out, &[byte]);
            }
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    Ok(())
}

/// Write an integer.
pub fn integer(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Write a double in the shortest form that reads back as the same double.
///
/// # Errors
///
/// Declined for NaN and infinities: JSON does not have them.
pub fn double(out: &mut Vec<u8>, value: f64) -> Result<(), Declined> {
    if !value.is_finite() {
        return Err(Declined);
    }
    out.extend_from_slice(zmij::Buffer::new().format_finite(value).as_bytes());
    Ok(())
}

/// Write a date: six digits of fraction, or no fraction for whole seconds.
///
/// # Errors
///
/// Declined outside the years 1 to 9999.
pub fn date(out: &mut Vec<u8>, ms: i64) -> Result<(), Declined> {
    if !time::MILLISECONDS.contains(&ms) {
        return Err(Declined);
    }
    let text = time::rfc3339(ms);
    out.push(b'"');
    if &text[20..23] == b"000" {
        out.extend_from_slice(&text[..19]);
        out.extend_from_slice(b"Z\"");
    } else {
        out.extend_from_slice(&text[..23]);
        out.extend_from_slice(b"000Z\"");
    }
    Ok(())
}

/// Write bytes as hexadecimal digits.
pub fn hex(out: &mut Vec<u8>, bytes: &[u8]) {
    let digit = |four_bits: u8| HEX[usize::from(four_bits)];
    out.extend(bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]));
}

/// Write the 16 bytes of a UUID in the usual form, with dashes.
pub fn uuid(out: &mut Vec<u8>, bytes: &[u8]) {
    for (number, pair) in bytes.chunks(2).enumerate() {
        if (2..=5).contains(&number) {
            out.push(b'-');
        }
        hex(out, pair);
    }
}

/// Write bytes as base64 with padding (RFC 4648).
pub fn base64(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(bytes.chunks(3).flat_map(|chunk| {
        let byte = |place: usize| u32::from(chunk.get(place).copied().unwrap_or(0));
        let word = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |shift: u32| BASE64[(word >> shift & 63) as usize];
        let third = if chunk.len() > 1 { digit(6) } else { b'=' };
        let fourth = if chunk.len() > 2 { digit(0) } else { b'=' };
        [digit(18), digit(12), third, fourth]
    }));
}

/// Write a Decimal128 as Python's `decimal` writes it.
///
/// The bytes are IEEE 754-2008's binary integer decimal encoding.
///
/// # Errors
///
/// Declined for NaN, infinities and more than 34 digits.
pub fn decimal(out: &mut Vec<u8>, bytes: [u8; 16]) -> Result<(), Declined> {
    let bits = u128::from_le_bytes(bytes);
    if bits >> 125 & 3 == 3 {
        return Err(Declined);
    }
    let exponent = (bits >> 113 & 0x3FFF) as i32 - 6176;
    let coefficient = bits & ((1 << 113) - 1);
    if coefficient >= 10_u128.pow(34) {
        return Err(Declined);
    }
    if bits >> 127 != 0 {
        out.push(b'-');
    }
    let mut buffer = itoa::Buffer::new();
    let digits = buffer.format(coefficient).as_bytes();
    let size = digits.len() as i32;
    let left = exponent + size; // digits before the point
    let point = if exponent <= 0 && left > -6 { left } else { 1 };
    if point <= 0 {
        out.extend_from_slice(b"0.");
        out.extend((point..0).map(|_| b'0'));
        out.extend_from_slice(digits);
    } else if point >= size {
        out.extend_from_slice(digits);
    } else {
        let (whole, fraction) = digits.split_at(point as usize);
        out.extend_from_slice(whole);
        out.push(b'.');
        out.extend_from_slice(fraction);
    }
    if left != point {
        out.push(b'E');
        if left > point {
            out.push(b'+');
        }
        integer(out, i64::from(left - point));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn strings_of_every_length_and_character_read_back() {
        for size in 0..40 {
            for special in ["x", "\"", "\\", "\n", "\u{1}", "\u{7f}", "ü", "\u{2028}", "🎁"] {
                for place in 0..=size {
                    let text = "a".repeat(place) + special + &"b".repeat(size - place);
                    let json = written(|out| string(out, text.as_bytes()).unwrap());
                    assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
                }
            }
        }
    }

    #[test]
    fn text_that_is_not_utf8_is_declined_at_every_place() {
        for place in 0..30 {
            let mut text = vec![b'a'; 30];
            text[place] = 0xff;
            assert_eq!(string(&mut Vec::new(), &text), Err(Declined));
        }
    }

    #[test]
    fn doubles_read_back_as_doubles() {
        for value in [0.0, -0.0, 1.0, 0.1, 1e22, 1e-7, 5e-324, f64::MAX, 123_456_789.125] {
            let text = written(|out| double(out, value).unwrap());
            let read: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert!(read.is_f64(), "{text}");
            assert_eq!(text.parse::<f64>().unwrap().to_bits(), value.to_bits());
        }
        assert_eq!(double(&mut Vec::new(), f64::NAN), Err(Declined));
    }

    #[test]
    fn large_and_small_doubles_are_written_as_in_the_reference() {
        for (value, text) in [
            (1e15, "1000000000000000.0"),
            (9_999_999_999_999_998.0, "9999999999999998.0"),
            (1e16, "1e+16"),
            (-1.5e300, "-1.5e+300"),
            (0.00001, "0.00001"),
            (1e-6, "1e-6"),
            (-0.0, "-0.0"),
        ] {
            assert_eq!(written(|out| double(out, value).unwrap()), text);
        }
    }

    #[test]
    fn bytes_are_base64_with_padding() {
        for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(written(|out| base64(out, bytes.as_bytes())), text);
        }
    }

    #[test]
    fn decimals_keep_their_digits() {
        let of = |coefficient: u128, exponent: u128| coefficient | (exponent + 6176) << 113;
        for (bits, text) in [
            (of(1050, 0) - (2 << 113), "10.50"),
            (of(0, 0), "0"),
            (of(5, 0) - (3 << 113), "0.005"),
            (of(15, 29), "1.5E+30"),
            (of(1, 0) - (7 << 113), "1E-7"),
            (of(1, 2) | 1 << 127, "-1E+2"),
        ] {
            assert_eq!(written(|out| decimal(out, bits.to_le_bytes()).unwrap()), text);
        }
    }
}
