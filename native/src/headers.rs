//! The original headers of an event (in Python: `event_headers` in `replay_app/events.py`).

use crate::Declined;
use crate::batches::{sized, varint};
use crate::walk::Value;

/// Headers that tell of a trace.
const TRACE_HEADERS: [&[u8]; 9] = [
    b"traceparent",
    b"tracestate",
    b"baggage",
    b"b3",
    b"uber-trace-id",
    b"sentry-trace",
    b"x-amzn-trace-id",
    b"x-cloud-trace-context",
    b"elastic-apm-traceparent",
];
const TRACE_PREFIXES: [&[u8]; 4] = [b"replay-", b"x-b3-", b"x-datadog-", b"uberctx-"];
const NAMES: [&[u8]; 3] = [b"key", b"k", b"name"];
const VALUES: [&[u8]; 2] = [b"value", b"v"];

/// Write the headers that are published again, as Kafka stores them; return their number.
///
/// `stored` is what the field of the headers holds, after `walk` has checked the document.
///
/// # Errors
///
/// Declined if the field holds no headers, or a header has another value than text and bytes.
pub fn write(out: &mut Vec<u8>, stored: Option<Value>) -> Result<usize, Declined> {
    let mut count = 0;
    match stored {
        None | Some(Value::Null) => {}
        Some(Value::Document(document)) => {
            for field in Fields::of(document) {
                let (kind, name, value) = field?;
                count += header(out, name, text_or_bytes(kind, value)?)?;
            }
        }
        Some(Value::Array(array)) => {
            for element in Fields::of(array) {
                let (kind, _, pair) = element?;
                let (name, value) = match kind {
                    0x03 => named_pair(pair)?,
                    0x04 => plain_pair(pair)?,
                    _ => return Err(Declined),
                };
                count += header(out, name, value)?;
            }
        }
        Some(_) => return Err(Declined),
    }
    Ok(count)
}

/// Write one header, if it is published again; return how many were written.
fn header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) -> Result<usize, Declined> {
    if !name.is_ascii() {
        return Err(Declined); // to Python, a letter outside ASCII may be lower case within ASCII
    }
    let begins = |prefix: &&[u8]| {
        name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
    };
    if TRACE_PREFIXES.iter().any(begins)
        || TRACE_HEADERS.iter().any(|other| name.eq_ignore_ascii_case(other))
    {
        return Ok(0);
    }
    sized(out, name);
    sized(out, value);
    Ok(1)
}

/// Return name and value of a header that is a document.
fn named_pair(document: &[u8]) -> Result<(&[u8], &[u8]), Declined> {
    let find = |wanted: &[&[u8]]| {
        for field in wanted {
            for found in Fields::of(document) {
                let (kind, name, value) = found?;
                if name == *field {
                    return Ok((kind, value));
                }
            }
        }
        Err(Declined)
    };
    let ((kind, name), (value_kind, value)) = (find(&NAMES)?, find(&VALUES)?);
    if kind == 0x02 {
        Ok((text_or_bytes(kind, name)?, text_or_bytes(value_kind, value)?))
    } else {
        Err(Declined)
    }
}

/// Return name and value of a header that is an array.
fn plain_pair(array: &[u8]) -> Result<(&[u8], &[u8]), Declined> {
    let mut fields = Fields::of(array);
    let (Some(name), Some(value), None) = (fields.next(), fields.next(), fields.next()) else {
        return Err(Declined);
    };
    let ((0x02, _, name), (kind, _, value)) = (name?, value?) else { return Err(Declined) };
    Ok((text_or_bytes(0x02, name)?, text_or_bytes(kind, value)?))
}

/// Return a text without its size and its final zero, or bytes without their size and subtype.
fn text_or_bytes(kind: u8, value: &[u8]) -> Result<&[u8], Declined> {
    match (kind, value) {
        (0x02, [_, _, _, _, text @ .., 0]) => Ok(text),
        // Subtype 4: the driver makes a UUID. Subtype 2 never gets here.
        (0x05, [_, _, _, _, subtype, bytes @ ..]) if *subtype != 4 => Ok(bytes),
        _ => Err(Declined),
    }
}

/// The fields of a raw document: BSON type, name, raw value.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn of(document: &'a [u8]) -> Self {
        let end = document.len().saturating_sub(1);
        Self { rest: document.get(4..end).unwrap_or_default() }
    }

    fn read(&mut self) -> Result<(u8, &'a [u8], &'a [u8]), Declined> {
        let (kind, rest) = self.rest.split_first().ok_or(Declined)?;
        let end = rest.iter().position(|&byte| byte == 0).ok_or(Declined)?;
        let (name, value) = (&rest[..end], &rest[end + 1..]);
        let size = || -> Result<usize, Declined> {
            let size = i32::from_le_bytes(*value.first_chunk().ok_or(Declined)?);
            usize::try_from(size).map_err(|_| Declined)
        };
        let size = match kind {
            0x02 => 4 + size()?,
            0x03 | 0x04 => size()?,
            0x05 => 5 + size()?,
            _ => return Err(Declined), // a value of another type
        };
        let value = value.get(..size).ok_or(Declined)?;
        self.rest = &rest[end + 1 + size..];
        Ok((*kind, name, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u8, &'a [u8], &'a [u8]), Declined>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let found = self.read();
        if found.is_err() {
            self.rest = &[];
        }
        Some(found)
    }
}

/// Write one header whose value may be null.
pub fn write_one(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    sized(out, name);
    match value {
        Some(value) => sized(out, value),
        None => varint(out, -1),
    }
}
