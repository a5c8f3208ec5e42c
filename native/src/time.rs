//! Times: BSON dates and ISO 8601 text in, RFC 3339 out.

use crate::Declined;

/// The years 1 to 9999, which Python's `datetime` has, in milliseconds after 1970.
pub const MILLISECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800_000..=253_402_300_799_999;
const DAY_SECONDS: i64 = 86_400;

/// The text of a time with milliseconds and a final Z.
#[must_use]
pub fn rfc3339(ms: i64) -> [u8; 24] {
    let mut text = *b"0000-00-00T00:00:00.000Z";
    let seconds = ms.div_euclid(1000);
    let (year, month, day) = date_of(seconds.div_euclid(DAY_SECONDS));
    let second = seconds.rem_euclid(DAY_SECONDS);
    digits(&mut text[0..4], year);
    digits(&mut text[5..7], month);
    digits(&mut text[8..10], day);
    digits(&mut text[11..13], second / 3600);
    digits(&mut text[14..16], second / 60 % 60);
    digits(&mut text[17..19], second % 60);
    digits(&mut text[20..23], ms.rem_euclid(1000));
    text
}

fn digits(place: &mut [u8], mut number: i64) {
    for digit in place.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day counted from 1970-01-01, in the proleptic Gregorian calendar
/// (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of `date_of`.
fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let shifted = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Microseconds after 1970 of an ISO 8601 time; without an offset it is in UTC.
///
/// # Errors
///
/// For every form but `YYYY-MM-DD` and `HH:MM:SS` with `T` or a space between them, up to six
/// digits of fraction, and `Z` or an offset of hours and minutes.
pub fn parse_iso(text: &[u8]) -> Result<i64, Declined> {
    let (clock, rest) = text.split_at_checked(19).ok_or(Declined)?;
    for (place, separators) in [(4, "-"), (7, "-"), (10, "T "), (13, ":"), (16, ":")] {
        if !separators.as_bytes().contains(&clock[place]) {
            return Err(Declined);
        }
    }
    let year = number(&clock[0..4], 1..=9999)?;
    let month = number(&clock[5..7], 1..=12)?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let longest = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let day = number(&clock[8..10], 1..=longest)?;
    let hour = number(&clock[11..13], 0..=23)?;
    let minute = number(&clock[14..16], 0..=59)?;
    let second = number(&clock[17..19], 0..=59)?;
    let (fraction, offset) = match rest.strip_prefix(b".") {
        Some(rest) => {
            let size = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=6).contains(&size) {
                return Err(Declined);
            }
            let value = number(&rest[..size], 0..=999_999)?;
            (value * 10_i64.pow(6 - size as u32), &rest[size..])
        }
        None => (0, rest),
    };
    let offset_minutes = match offset {
        b"" | b"Z" => 0,
        [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            let minutes = number(&[*h1, *h2], 0..=23)? * 60 + number(&[*m1, *m2], 0..=59)?;
            if *sign == b'-' { -minutes } else { minutes }
        }
        _ => return Err(Declined),
    };
    let days = day_number(year, month, day);
    let seconds = days * DAY_SECONDS + hour * 3600 + (minute - offset_minutes) * 60 + second;
    if !MILLISECONDS.contains(&(seconds * 1000)) {
        return Err(Declined);
    }
    Ok(seconds * 1_000_000 + fraction)
}

fn number(text: &[u8], range: std::ops::RangeInclusive<i64>) -> Result<i64, Declined> {
    let mut value = 0;
    for byte in text {
        if !byte.is_ascii_digit() {
            return Err(Declined);
        }
        value = value * 10 + i64::from(byte - b'0');
    }
    if range.contains(&value) { Ok(value) } else { Err(Declined) }
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
        for day in (-719_162..2_932_896).step_by(13) {
            let (year, month, date) = date_of(day);
            assert_eq!(day_number(year, month, date), day);
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
