//! Times: read ISO 8601 text, write RFC 3339 text.

use std::ops::{Range, RangeInclusive};

use chrono::{DateTime, Datelike, NaiveDate, Timelike};

use crate::Declined;

/// The years 1 to 9999, the range of Python's `datetime`, in milliseconds after 1970.
pub const MILLISECONDS: RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;

/// Return a time of the range `MILLISECONDS` as text in UTC, with three digits of fraction.
#[must_use]
pub fn rfc3339(ms: i64) -> [u8; 24] {
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let time = DateTime::from_timestamp_millis(ms).unwrap_or_default().naive_utc();
    digits(&mut text[0..4], time.year() as u32);
    digits(&mut text[5..7], time.month());
    digits(&mut text[8..10], time.day());
    digits(&mut text[11..13], time.hour());
    digits(&mut text[14..16], time.minute());
    digits(&mut text[17..19], time.second());
    digits(&mut text[20..23], time.nanosecond() / 1_000_000);
    text
}

fn digits(place: &mut [u8], mut number: u32) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Return the microseconds after 1970 of an ISO 8601 time; a time without an offset is in UTC.
///
/// # Errors
///
/// Declined for every form but this: `YYYY-MM-DD`, `T` or a space, `HH:MM:SS`; then, if present, a
/// point and up to six digits; then, if present, `Z` or an offset of hours and minutes.
pub fn parse_iso(text: &[u8]) -> Result<i64, Declined> {
    let (clock, rest) = text.split_at_checked(19).ok_or(Declined)?;
    for (place, separators) in [(4, "-"), (7, "-"), (10, "T "), (13, ":"), (16, ":")] {
        if !separators.as_bytes().contains(&clock[place]) {
            return Err(Declined);
        }
    }
    let part = |place: Range<usize>| number(&clock[place]);
    let (year, month, day) = (part(0..4)?, part(5..7)?, part(8..10)?);
    let (hour, minute, second) = (part(11..13)?, part(14..16)?, part(17..19)?);
    let date = NaiveDate::from_ymd_opt(year as i32, month, day).ok_or(Declined)?;
    let time = date.and_hms_opt(hour, minute, second).ok_or(Declined)?.and_utc();
    let (fraction, offset) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let size = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=6).contains(&size) {
                return Err(Declined);
            }
            (number(&rest[..size])? * 10_u32.pow(6 - size as u32), &rest[size..])
        }
        None => (0, rest),
    };
    let offset_minutes = match offset {
        b"" | b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let (hours, minutes) = (number(&[*h1, *h2])?, number(&[*m1, *m2])?);
            if hours > 23 || minutes > 59 {
                return Err(Declined);
            }
            let minutes = i64::from(hours * 60 + minutes);
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return Err(Declined),
    };
    let seconds = time.timestamp() - offset_minutes * 60;
    if year == 0 || !MILLISECONDS.contains(&(seconds * 1000)) {
        return Err(Declined);
    }
    Ok(seconds * 1_000_000 + i64::from(fraction))
}

/// Return the number that up to nine digits stand for.
fn number(digits: &[u8]) -> Result<u32, Declined> {
    digits.iter().try_fold(0, |number, byte| match byte {
        b'0'..=b'9' => Ok(number * 10 + u32::from(byte - b'0')),
        _ => Err(Declined),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_to_the_millisecond() {
        for (ms, text) in [
            (0, b"1970-01-01T00:00:00.000Z"),
            (-1, b"1969-12-31T23:59:59.999Z"),
            (951_782_400_005, b"2000-02-29T00:00:00.005Z"),
            (*MILLISECONDS.start(), b"0001-01-01T00:00:00.000Z"),
            (*MILLISECONDS.end(), b"9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(&rfc3339(ms), text);
        }
    }

    #[test]
    fn every_day_is_read_as_it_is_written() {
        for ms in MILLISECONDS.step_by(13 * 86_400_000) {
            assert_eq!(parse_iso(&rfc3339(ms)), Ok(ms * 1000));
        }
    }

    #[test]
    fn iso_times_are_read_or_declined() {
        let second = 1_767_355_200_000_000;
        for (text, found) in [
            ("2026-01-02T12:00:00Z", Ok(second)),
            ("2026-01-02 12:00:00", Ok(second)),
            ("2026-01-02T13:30:00.5+01:30", Ok(second + 500_000)),
            ("2026-01-02T11:00:00.000001-01:00", Ok(second + 1)),
            ("2026-02-29T00:00:00Z", Err(Declined)),
            ("2026-01-02T24:00:00Z", Err(Declined)),
            ("2026-01-02T12:00:60Z", Err(Declined)),
            ("2026-01-02T12:00:00+24:00", Err(Declined)),
            ("2026-01-02T12:00:00+00:60", Err(Declined)),
            ("9999-12-31T23:59:59.999999", Ok(*MILLISECONDS.end() * 1000 + 999)),
            ("0000-12-31T23:30:00-01:00", Err(Declined)),
            ("0001-01-01T00:00:00+01:00", Err(Declined)),
            ("2026-01-02T12:00:00.", Err(Declined)),
            ("2026-01-02T12:00:00.1234567Z", Err(Declined)),
            ("2026-01-02", Err(Declined)),
            ("", Err(Declined)),
        ] {
            assert_eq!(parse_iso(text.as_bytes()), found, "{text}");
        }
    }
}
