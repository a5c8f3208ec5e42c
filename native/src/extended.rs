//! Write the ids of events as canonical extended JSON (in Python: `replay_app/extended_json.py`).

use crate::walk::Value;
use crate::{Declined, json};

/// Write a value without spaces, and return the text.
///
/// # Errors
///
/// Declined for types that are rare in ids, and for damaged bytes.
pub fn text<'a>(value: Value, out: &'a mut Vec<u8>) -> Result<&'a [u8], Declined> {
    out.clear();
    write(out, value)?;
    Ok(out)
}

fn write(out: &mut Vec<u8>, value: Value) -> Result<(), Declined> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Text(text) => json::string(out, text)?,
        Value::Int(number) => wrapped(out, "$numberInt", |out| json::integer(out, number.into())),
        Value::Long(number) => wrapped(out, "$numberLong", |out| json::integer(out, number)),
        Value::ObjectId(bytes) => wrapped(out, "$oid", |out| json::hex(out, bytes)),
        Value::Uuid(bytes) => binary(out, bytes, 4),
        Value::Binary(bytes, subtype) => binary(out, bytes, subtype),
        Value::Document(bytes) => document(out, bytes)?,
        Value::Bool(_) | Value::Double(_) | Value::Date(_) | Value::Decimal(_) => {
            return Err(Declined);
        }
        Value::Array(_) | Value::Other => return Err(Declined),
    }
    Ok(())
}

fn wrapped(out: &mut Vec<u8>, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
    out.extend_from_slice(format!("{{\"{name}\":\"").as_bytes());
    write(out);
    out.extend_from_slice(b"\"}");
}

fn binary(out: &mut Vec<u8>, bytes: &[u8], subtype: u8) {
    out.extend_from_slice(b"{\"$binary\":{\"base64\":\"");
    json::base64(out, bytes);
    out.extend_from_slice(b"\",\"subType\":\"");
    json::hex(out, &[subtype]);
    out.extend_from_slice(b"\"}}");
}

/// Write a document of text, numbers, nulls, ObjectIds and documents.
fn document(out: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Declined> {
    let mut rest = bytes.get(4..).ok_or(Declined)?;
    let mut separator = b'{';
    loop {
        let (&kind, after) = rest.split_first().ok_or(Declined)?;
        if kind == 0 {
            break;
        }
        let end = after.iter().position(|&byte| byte == 0).ok_or(Declined)?;
        let (name, value) = (&after[..end], &after[end + 1..]);
        out.push(separator);
        separator = b',';
        json::string(out, name)?;
        out.push(b':');
        let (value, size) = read(kind, value)?;
        write(out, value)?;
        rest = after.get(end + 1 + size..).ok_or(Declined)?;
    }
    out.extend_from_slice(if separator == b'{' { b"{}" } else { b"}" });
    Ok(())
}

/// Return the value at the start of some bytes, and its size.
fn read(kind: u8, bytes: &[u8]) -> Result<(Value<'_>, usize), Declined> {
    let long = || bytes.first_chunk().map(|word| i64::from_le_bytes(*word)).ok_or(Declined);
    let int = || bytes.first_chunk().map(|word| i32::from_le_bytes(*word)).ok_or(Declined);
    let size = || usize::try_from(int()?).map_err(|_| Declined);
    let part = |start: usize, end: usize| bytes.get(start..end).ok_or(Declined);
    Ok(match kind {
        0x02 => {
            let end = size()?.checked_add(4).ok_or(Declined)?;
            (Value::Text(part(4, end.checked_sub(1).ok_or(Declined)?)?), end)
        }
        0x03 => (Value::Document(part(0, size()?)?), size()?),
        0x07 => (Value::ObjectId(part(0, 12)?), 12),
        0x0A => (Value::Null, 0),
        0x10 => (Value::Int(int()?), 4),
        0x12 => (Value::Long(long()?), 8),
        _ => return Err(Declined),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: Value) -> Result<String, Declined> {
        let mut out = Vec::new();
        text(value, &mut out).map(|text| String::from_utf8(text.to_vec()).unwrap())
    }

    #[test]
    fn each_type_keeps_its_name() {
        for (value, text) in [
            (Value::Int(-7), r#"{"$numberInt":"-7"}"#),
            (Value::Long(1 << 53), r#"{"$numberLong":"9007199254740992"}"#),
            (Value::Text(b"a\"b"), r#""a\"b""#),
            (Value::Null, "null"),
            (Value::Binary(b"fo", 3), r#"{"$binary":{"base64":"Zm8=","subType":"03"}}"#),
        ] {
            assert_eq!(of(value).unwrap(), text);
        }
        assert_eq!(of(Value::Double(1.0)), Err(Declined));
    }

    #[test]
    fn a_document_keeps_the_order_of_its_fields() {
        let raw = b"\x1e\0\0\0\x02s\0\x02\0\0\0a\0\x10v\0\x03\0\0\0\x03d\0\x05\0\0\0\0\0";
        let text = r#"{"s":"a","v":{"$numberInt":"3"},"d":{}}"#;
        assert_eq!(of(Value::Document(raw)).unwrap(), text);
        for end in 0..raw.len() {
            assert_eq!(of(Value::Document(&raw[..end])), Err(Declined));
        }
    }
}
