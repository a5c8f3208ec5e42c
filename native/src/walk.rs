//! Read a raw BSON document once: check every byte, write the JSON, keep the values of the mapped
//! fields.

use crate::Declined;
use crate::json::{self, HIGHS, ONES};
use crate::redaction::{self, Redact};

/// The number of fields that a mapping can have: one bit of `Node::slots` each.
pub const SLOTS: usize = 9;
/// Documents with deeper nesting are declined: only the reference knows the true limit.
const MAX_DEPTH: usize = 64;
/// Up to this number, the names of a document are compared one by one; more names are sorted.
const FEW_NAMES: usize = 32;

/// A value in the form that the rules of the mapping need.
#[derive(Debug, Clone, Copy)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    /// A 32-bit integer.
    Int(i32),
    /// A 64-bit integer.
    Long(i64),
    Double(f64),
    Text(&'a [u8]),
    /// Milliseconds after 1970.
    Date(i64),
    ObjectId(&'a [u8]),
    Uuid(&'a [u8]),
    /// Bytes and their subtype.
    Binary(&'a [u8], u8),
    Decimal([u8; 16]),
    /// The raw bytes of a document, whose lengths `walk` has checked.
    Document(&'a [u8]),
    /// The raw bytes of an array, whose lengths `walk` has checked.
    Array(&'a [u8]),
    /// A type that the rules do not use.
    Other,
}

/// The values of the mapped fields; None: the document does not have the field.
pub type Slots<'a> = [Option<Value<'a>>; SLOTS];

/// A tree of field names: the dotted paths of a mapping.
#[derive(Debug, Default)]
pub struct Node {
    name: Box<[u8]>,
    /// `Name::hash` of the name.
    hash: u64,
    /// A bit for each slot that takes the value of the field.
    slots: u16,
    /// The JSON does not have the field.
    excluded: bool,
    redact: Option<Redact>,
    /// A field below this one is redacted.
    has_redacted: bool,
    children: Vec<Node>,
}

impl Node {
    /// Put the value of the field at a dotted path into a slot.
    pub fn keep(&mut self, path: &str, slot: usize) {
        self.at(path).slots |= 1 << slot;
    }

    /// Leave the field at a dotted path out of the JSON.
    pub fn exclude(&mut self, path: &str) {
        self.at(path).excluded = true;
    }

    /// Redact the field at a dotted path, which leads through arrays.
    pub fn redact(&mut self, path: &str, rule: Redact) {
        let mut node = &mut *self;
        for name in path.split('.') {
            node.has_redacted = true;
            node = node.at(name);
        }
        node.redact = Some(rule);
    }

    fn at(&mut self, path: &str) -> &mut Node {
        let mut node = self;
        for name in path.split('.') {
            let name = name.as_bytes();
            let known = node.children.iter().position(|child| &*child.name == name);
            let place = known.unwrap_or_else(|| {
                let zeroed = [name, b"\0"].concat();
                let hash = Name::before_zero(&zeroed).map_or(0, |name| name.hash);
                node.children.push(Node { name: name.into(), hash, ..Node::default() });
                node.children.len() - 1
            });
            node = &mut node.children[place];
        }
        node
    }

    /// Whether an array holds the name of a field that is kept at this node.
    ///
    /// Headers may be an array of pairs of name and value, and only the reference reads pairs.
    fn has_name_in(&self, array: &[u8]) -> bool {
        self.children.iter().filter(|child| child.slots != 0).any(|child| {
            child.name.is_empty()
                || array.windows(child.name.len()).any(|part| part == &*child.name)
        })
    }

    fn child(&self, name: &Name) -> Option<&Node> {
        self.children.iter().find(|child| child.hash == name.hash && *child.name == *name.text)
    }
}

/// Read a document: fill the slots and, if `write` is true, write the JSON.
///
/// `names` is a buffer that several calls can share. `key` is the key of hashed fields.
///
/// # Errors
///
/// Declined if a byte of the document is wrong, or a value that is written has no JSON form.
pub fn walk<'a>(
    document: &'a [u8],
    root: &Node,
    write: bool,
    out: &mut Vec<u8>,
    names: &mut Vec<u64>,
    key: &redaction::Key,
) -> Result<Slots<'a>, Declined> {
    names.clear();
    let mut walk = Walk { bytes: document, at: 0, out, names, slots: [None; SLOTS], key };
    walk.document(Some(root), write, 0, false)?;
    if walk.bytes.len() == walk.at { Ok(walk.slots) } else { Err(Declined) }
}

/// The name of a field.
struct Name<'a> {
    text: &'a [u8],
    /// Two names with one hash are rare: they only send a document to the reference.
    hash: u64,
    /// The name is ASCII and needs no escape.
    is_plain: bool,
}

impl<'a> Name<'a> {
    /// Return the name that ends before the first zero.
    ///
    /// One pass finds the end, looks for escapes and makes the hash, eight bytes at a time.
    fn before_zero(bytes: &'a [u8]) -> Result<Self, Declined> {
        let (mut size, mut hash, mut is_plain) = (0, 0, true);
        loop {
            let rest = &bytes[size..];
            let word = match rest.first_chunk() {
                Some(word) => u64::from_le_bytes(*word),
                None => rest.iter().rev().fold(u64::MAX, |word, &byte| word << 8 | u64::from(byte)),
            };
            let zeros = word.wrapping_sub(ONES) & !word & HIGHS; // exact for the lowest zero only
            if zeros != 0 {
                let bits = zeros.trailing_zeros() & !7;
                let word = word & ((1 << bits) - 1);
                is_plain &= !json::needs_care(word | (ONES * u64::from(b' ')) << bits);
                size += bits as usize / 8;
                hash = mixed(mixed(hash, word), size as u64);
                return Ok(Self { text: &bytes[..size], hash, is_plain });
            }
            if rest.len() < 8 {
                return Err(Declined);
            }
            hash = mixed(hash, word);
            is_plain &= !json::needs_care(word);
            size += 8;
        }
    }
}

fn mixed(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

struct Walk<'a, 'o> {
    /// The bytes up to the end of the innermost document, without the document's final zero.
    bytes: &'a [u8],
    at: usize,
    out: &'o mut Vec<u8>,
    /// `Name::hash` of all names so far in the documents that have begun and not ended.
    names: &'o mut Vec<u64>,
    slots: Slots<'a>,
    key: &'o redaction::Key,
}

impl<'a> Walk<'a, '_> {
    /// `listed`: the document is in an array, where paths lead only to redacted fields.
    fn document(
        &mut self,
        node: Option<&Node>,
        write: bool,
        depth: usize,
        listed: bool,
    ) -> Result<(), Declined> {
        let outer = self.enter(depth)?;
        let first_name = self.names.len();
        let mut separator = b'{';
        while self.at < self.bytes.len() {
            let kind = self.take(1)?[0];
            let name = self.name()?;
            if depth > 0 && name.text == b"$ref" {
                return Err(Declined); // PyMongo turns the document into a DBRef
            }
            self.add_name(first_name, name.hash)?;
            let child = node.and_then(|node| node.child(&name));
            let redact = child.and_then(|child| child.redact);
            let is_left_out = child.is_some_and(|child| child.excluded && !listed);
            let write = write && !is_left_out && redact != Some(Redact::Drop);
            if write {
                self.out.reserve(name.text.len() + 4);
                self.out.push(separator);
                separator = b',';
                if name.is_plain {
                    self.out.push(b'"');
                    self.out.extend_from_slice(name.text);
                    self.out.push(b'"');
                } else {
                    json::string(self.out, name.text)?;
                }
                self.out.push(b':');
            } else if !name.is_plain {
                json::check(name.text)?;
            }
            let value = match redact {
                Some(rule) if write => self.redacted(rule, kind, child, depth, listed)?,
                _ => self.value(kind, child, write, depth, listed)?,
            };
            let mut slots = child.map_or(0, |child| if listed { 0 } else { child.slots });
            while slots != 0 {
                self.slots[slots.trailing_zeros() as usize] = Some(value);
                slots &= slots - 1;
            }
        }
        self.check_names(first_name)?;
        if write {
            let end: &[u8] = if separator == b'{' { b"{}" } else { b"}" };
            self.out.extend_from_slice(end);
        }
        self.leave(outer);
        Ok(())
    }

    fn array(&mut self, node: Option<&Node>, write: bool, depth: usize) -> Result<(), Declined> {
        let outer = self.enter(depth)?;
        let mut separator = b'[';
        while self.at < self.bytes.len() {
            let kind = self.take(1)?[0];
            self.name()?; // PyMongo ignores the names in an array too
            if write {
                self.out.push(separator);
                separator = b',';
            }
            self.value(kind, node, write, depth, true)?;
        }
        if write {
            let end: &[u8] = if separator == b'[' { b"[]" } else { b"]" };
            self.out.extend_from_slice(end);
        }
        self.leave(outer);
        Ok(())
    }

    /// Begin the document at this place; return the bytes of the outer document for `leave`.
    fn enter(&mut self, depth: usize) -> Result<&'a [u8], Declined> {
        let outer = self.bytes;
        let start = self.at;
        let size = self.size()?;
        let end = start.checked_add(size).ok_or(Declined)?;
        if depth > MAX_DEPTH || size < 5 || outer.get(end - 1) != Some(&0) {
            return Err(Declined);
        }
        self.bytes = &outer[..end - 1];
        Ok(outer)
    }

    fn leave(&mut self, outer: &'a [u8]) {
        self.at += 1; // the final zero
        self.bytes = outer;
    }

    fn value(
        &mut self,
        kind: u8,
        node: Option<&Node>,
        write: bool,
        depth: usize,
        listed: bool,
    ) -> Result<Value<'a>, Declined> {
        let value = match kind {
            0x01 => Value::Double(f64::from_le_bytes(self.word()?)),
            0x02 | 0x0E => Value::Text(self.text()?),
            0x03 => {
                let start = self.at;
                self.document(node, write, depth + 1, listed)?;
                return Ok(Value::Document(&self.bytes[start..self.at]));
            }
            0x04 => {
                let start = self.at;
                self.array(node.filter(|node| node.has_redacted), write, depth + 1)?;
                let array = &self.bytes[start..self.at];
                if !listed && node.is_some_and(|node| node.has_name_in(array)) {
                    return Err(Declined);
                }
                return Ok(Value::Array(array));
            }
            0x05 => self.binary()?,
            0x0A => Value::Null,
            0x07 => Value::ObjectId(self.take(12)?),
            0x08 => match self.take(1)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                _ => return Err(Declined),
            },
            0x09 => Value::Date(i64::from_le_bytes(self.word()?)),
            0x10 => Value::Int(i32::from_le_bytes(self.word()?)),
            0x12 => Value::Long(i64::from_le_bytes(self.word()?)),
            0x13 => Value::Decimal(self.word()?),
            0x11 if !write => {
                self.take(8)?;
                Value::Other
            }
            0x7F | 0xFF if !write => Value::Other,
            _ => return Err(Declined),
        };
        if write {
            self.write(value)?;
        } else if let Value::Text(text) = value {
            json::check(text)?;
        }
        Ok(value)
    }

    /// Write what becomes of a redacted value.
    fn redacted(
        &mut self,
        rule: Redact,
        kind: u8,
        node: Option<&Node>,
        depth: usize,
        listed: bool,
    ) -> Result<Value<'a>, Declined> {
        let start = self.out.len();
        let value = self.value(kind, node, rule == Redact::Hash, depth, listed)?;
        match (rule, value) {
            (Redact::Drop, _) | (Redact::Hash, Value::Null) => {}
            (Redact::Null, _) => self.out.extend_from_slice(b"null"),
            (Redact::Mask, _) => self.out.extend_from_slice(redaction::mask(kind)),
            (Redact::Hash, value) => {
                let digest = match value {
                    Value::Text(text) => self.key.hash(text),
                    _ => self.key.hash(&self.out[start..]),
                };
                self.out.truncate(start);
                self.out.push(b'"');
                json::hex(self.out, &digest);
                self.out.push(b'"');
            }
        }
        Ok(value)
    }

    fn write(&mut self, value: Value<'a>) -> Result<(), Declined> {
        let out = &mut *self.out;
        match value {
            Value::Null => out.extend_from_slice(b"null"),
            Value::Bool(true) => out.extend_from_slice(b"true"),
            Value::Bool(false) => out.extend_from_slice(b"false"),
            Value::Int(number) => json::integer(out, number.into()),
            Value::Long(number) => json::integer(out, number),
            Value::Double(number) => json::double(out, number)?,
            Value::Text(text) => json::string(out, text)?,
            Value::Date(ms) => json::date(out, ms)?,
            Value::Document(_) | Value::Array(_) | Value::Other => return Err(Declined),
            Value::ObjectId(_) | Value::Uuid(_) | Value::Binary(..) | Value::Decimal(_) => {
                out.push(b'"');
                match value {
                    Value::ObjectId(bytes) => json::hex(out, bytes),
                    Value::Uuid(bytes) => json::uuid(out, bytes),
                    Value::Binary(bytes, _) => json::base64(out, bytes),
                    Value::Decimal(bytes) => json::decimal(out, bytes)?,
                    _ => return Err(Declined),
                }
                out.push(b'"');
            }
        }
        Ok(())
    }

    fn binary(&mut self) -> Result<Value<'a>, Declined> {
        let size = self.size()?;
        let subtype = self.take(1)?[0];
        let bytes = self.take(size)?;
        match subtype {
            2 => Err(Declined), // the old form, which has a second length
            4 if size == 16 => Ok(Value::Uuid(bytes)),
            4 => Err(Declined),
            _ => Ok(Value::Binary(bytes, subtype)),
        }
    }

    fn text(&mut self) -> Result<&'a [u8], Declined> {
        let size = self.size()?;
        match self.take(size)?.split_last() {
            Some((0, text)) => Ok(text),
            _ => Err(Declined),
        }
    }

    fn name(&mut self) -> Result<Name<'a>, Declined> {
        let name = Name::before_zero(self.bytes.get(self.at..).ok_or(Declined)?)?;
        self.at += name.text.len() + 1;
        Ok(name)
    }

    fn size(&mut self) -> Result<usize, Declined> {
        usize::try_from(i32::from_le_bytes(self.word()?)).map_err(|_| Declined)
    }

    fn word<const N: usize>(&mut self) -> Result<[u8; N], Declined> {
        let rest = self.bytes.get(self.at..).ok_or(Declined)?;
        let word = rest.first_chunk().ok_or(Declined)?;
        self.at += N;
        Ok(*word)
    }

    fn take(&mut self, size: usize) -> Result<&'a [u8], Declined> {
        let end = self.at.checked_add(size).ok_or(Declined)?;
        let taken = self.bytes.get(self.at..end).ok_or(Declined)?;
        self.at = end;
        Ok(taken)
    }

    // If a name occurs twice, PyMongo takes the last field. The JSON must not have both fields, so
    // the document is declined.

    fn add_name(&mut self, first: usize, hash: u64) -> Result<(), Declined> {
        let known = &self.names[first..];
        if known.len() < FEW_NAMES && known.contains(&hash) {
            return Err(Declined);
        }
        self.names.push(hash);
        Ok(())
    }

    fn check_names(&mut self, first: usize) -> Result<(), Declined> {
        let names = &mut self.names[first..];
        if names.len() > FEW_NAMES {
            names.sort_unstable();
            if names.windows(2).any(|pair| pair[0] == pair[1]) {
                return Err(Declined);
            }
        }
        self.names.truncate(first);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(elements: &[&[u8]]) -> Vec<u8> {
        let body = elements.concat();
        let size = (body.len() + 5) as i32;
        [&size.to_le_bytes()[..], &body, b"\0"].concat()
    }

    fn json_of(raw: &[u8]) -> Result<String, Declined> {
        let mut out = Vec::new();
        walk(raw, &Node::default(), true, &mut out, &mut Vec::new(), &redaction::Key::new(b""))?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn nested_values_are_written_in_order() {
        let inner = document(&[b"\x10b\0\x05\0\0\0", b"\x0Ac\0"]);
        let list = document(&[b"\x08x\0\x01", b"\x02y\0\x02\0\0\0z\0"]);
        let empty = document(&[]);
        let raw = document(&[b"\x03a\0", &inner, b"\x04l\0", &list, b"\x03e\0", &empty]);
        assert_eq!(json_of(&raw).unwrap(), r#"{"a":{"b":5,"c":null},"l":[true,"z"],"e":{}}"#);
    }

    #[test]
    fn a_name_that_occurs_twice_is_declined_among_few_and_among_many() {
        for count in [2, 40, 300] {
            let mut elements: Vec<Vec<u8>> =
                (0..count).map(|number| format!("\x0An{number}\0").into_bytes()).collect();
            let slices = |elements: &[Vec<u8>]| {
                document(&elements.iter().map(Vec::as_slice).collect::<Vec<_>>())
            };
            assert!(json_of(&slices(&elements)).is_ok());
            elements.push(b"\x0An1\0".to_vec());
            assert_eq!(json_of(&slices(&elements)), Err(Declined));
        }
    }

    #[test]
    fn every_cut_and_every_wrong_length_is_declined() {
        let inner = document(&[b"\x02s\0\x03\0\0\0ab\0", b"\x05b\0\x01\0\0\0\0x"]);
        let raw = document(&[b"\x03a\0", &inner, b"\x07o\x00123456789012"]);
        assert!(json_of(&raw).is_ok());
        for end in 0..raw.len() {
            assert_eq!(json_of(&raw[..end]), Err(Declined));
        }
        for place in [0, 7, 14, 24] {
            for wrong in [0, 1, 4, 0x7F, 0xFF] {
                let mut bytes = raw.clone();
                if bytes[place] != wrong {
                    bytes[place] = wrong;
                    assert_eq!(json_of(&bytes), Err(Declined), "{place} {wrong}");
                }
            }
        }
    }

    #[test]
    fn deep_nesting_is_declined() {
        let mut raw = document(&[]);
        for _ in 0..100_000 {
            raw = [&((raw.len() + 8) as i32).to_le_bytes()[..], b"\x03a\0", &raw, b"\0"].concat();
            if raw.len() > 20_000 {
                break;
            }
        }
        assert_eq!(json_of(&raw), Err(Declined));
    }
}
