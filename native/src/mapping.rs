//! The rules that make a record of a document's fields (in Python: `replay_app/events.py`).

use std::collections::HashMap;

use crate::redaction::{self, Redact};
use crate::walk::{Node, Slots, Value};
use crate::{Declined, extended, json, time};

// The slot that `walk` fills with the value of each field.
pub const EVENT_ID: usize = 0;
pub const ID: usize = 1;
pub const TIME: usize = 2;
pub const TYPE: usize = 3;
pub const KEY: usize = 4;
pub const TOPIC: usize = 5;
pub const VALUE: usize = 6;
pub const REPLAYED: usize = 7;
pub const HEADERS: usize = 8;

/// Below this limit a double is exact for every whole number.
const EXACT: i64 = 1 << 53;

/// The form in which documents store the time of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// A BSON date.
    Date,
    /// ISO 8601 text.
    Iso,
    /// A number of milliseconds after 1970.
    EpochMs,
}

/// What the encoder has to know of a replay (in Python: `EncodeSpec`).
#[derive(Debug)]
pub struct Spec {
    pub fields: Fields,
    pub timestamp_type: TimestampType,
    /// The mapping's topic for each event type.
    pub topics: HashMap<String, String>,
    pub topic_template: String,
    pub target_topic: Option<String>,
    /// The target's topic for each event type.
    pub target_topics: HashMap<String, String>,
    pub target_prefix: String,
    pub replay_id: String,
    /// The headers that are equal on all records of the replay.
    pub headers: Vec<(String, Vec<u8>)>,
    /// The most bytes that a record can have in addition to its key, value and id.
    pub overhead_bytes: usize,
    /// The number of partitions of each topic.
    pub partitions: HashMap<String, i32>,
    /// Records get the time of the event as timestamp, not the append time.
    pub original_timestamps: bool,
    pub codec: crate::batches::Codec,
    pub max_record_bytes: usize,
    /// The most bytes of a batch, for each topic whose own limit is below `max_record_bytes`.
    pub batch_bytes: HashMap<String, usize>,
    /// The key of hashed fields.
    pub redact_key: redaction::Key,
}

/// The fields that `walk` looks for.
#[derive(Debug)]
pub struct Fields {
    root: Node,
    has_key: bool,
    pub has_value: bool,
}

/// The dotted paths of the fields, under the names that the settings have.
#[derive(Debug, Default)]
pub struct FieldPaths {
    /// None: `event_id` if the document has this field, else `_id`.
    pub field_id: Option<String>,
    pub field_timestamp: String,
    pub field_type: String,
    pub field_aggregate: String,
    pub field_topic: String,
    /// None: the aggregate id, or the event id if the document has no aggregate id.
    pub field_key: Option<String>,
    /// None: the value is the document as JSON.
    pub field_value: Option<String>,
    /// The original headers. None: no header is published again.
    pub field_headers: Option<String>,
    /// Documents that have this field are replayed events themselves. None: do not skip them.
    pub field_replayed: Option<String>,
    /// Fields that the JSON does not have.
    pub exclude_fields: Vec<String>,
    /// Fields that the JSON has in another form.
    pub redact: Vec<(String, Redact)>,
}

impl Fields {
    #[must_use]
    pub fn new(paths: &FieldPaths) -> Self {
        let mut root = Node::default();
        if let Some(id) = &paths.field_id {
            root.keep(id, EVENT_ID);
        } else {
            root.keep("event_id", EVENT_ID);
            root.keep("_id", ID);
        }
        root.keep(&paths.field_timestamp, TIME);
        root.keep(&paths.field_type, TYPE);
        root.keep(paths.field_key.as_ref().unwrap_or(&paths.field_aggregate), KEY);
        root.keep(&paths.field_topic, TOPIC);
        if let Some(value) = &paths.field_value {
            root.keep(value, VALUE);
        }
        if let Some(headers) = &paths.field_headers {
            root.keep(headers, HEADERS);
        }
        if let Some(replayed) = &paths.field_replayed {
            root.keep(replayed, REPLAYED);
        }
        for path in &paths.exclude_fields {
            root.exclude(path);
        }
        for (path, rule) in &paths.redact {
            root.redact(path, *rule);
        }
        let (has_key, has_value) = (paths.field_key.is_some(), paths.field_value.is_some());
        Self { root, has_key, has_value }
    }

    #[must_use]
    pub fn root(&self) -> &Node {
        &self.root
    }
}

/// The time of an event, in milliseconds after 1970.
#[derive(Debug, Clone, Copy)]
pub struct EventTime {
    /// Rounded down, as in the header `replay-original-time`.
    pub header_ms: i64,
    /// Rounded to the nearest, as in the record's timestamp.
    pub record_ms: i64,
}

impl Spec {
    /// Return the event's id as text.
    ///
    /// # Errors
    ///
    /// Declined if the event has no id, or the id has no text form.
    pub fn identity<'a>(
        &self,
        slots: &Slots<'a>,
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Declined> {
        match id(slots)? {
            value @ Value::Document(_) => extended::text(value, scratch),
            value => as_text(value, scratch),
        }
    }

    /// Return the event's id as it stands in the delivery id; `identity` is its usual text.
    ///
    /// # Errors
    ///
    /// Declined if the id has a rare type, or could be taken for extended JSON.
    pub fn delivery<'a>(
        &self,
        slots: &Slots<'a>,
        identity: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Declined> {
        match id(slots)? {
            Value::Text([b'{' | b'"', ..]) => Err(Declined),
            Value::Text(_) | Value::ObjectId(_) | Value::Uuid(_) | Value::Document(_) => {
                Ok(identity)
            }
            value => extended::text(value, scratch),
        }
    }

    /// Return the time of the event.
    ///
    /// # Errors
    ///
    /// Declined if the field does not hold a time of the mapping's type, or if the time is outside
    /// the range in which this code rounds as Python does.
    pub fn time(&self, slots: &Slots) -> Result<EventTime, Declined> {
        let (header_ms, record_ms) = match (self.timestamp_type, slots[TIME].ok_or(Declined)?) {
            (TimestampType::Date, Value::Date(ms)) | (TimestampType::EpochMs, Value::Long(ms)) => {
                (ms, ms)
            }
            (TimestampType::EpochMs, Value::Int(ms)) => (ms.into(), ms.into()),
            (TimestampType::EpochMs, Value::Double(ms)) if ms.abs() < 1e15 && ms.trunc() == ms => {
                (ms as i64, ms as i64)
            }
            (TimestampType::Iso, Value::Text(text)) => {
                let us = time::parse_iso(text)?;
                (us.div_euclid(1000), self.rounded(us)?)
            }
            _ => return Err(Declined),
        };
        if time::MILLISECONDS.contains(&header_ms) {
            Ok(EventTime { header_ms, record_ms })
        } else {
            Err(Declined)
        }
    }

    /// Return the milliseconds that `round(time.timestamp() * 1000)` gives in Python.
    fn rounded(&self, us: i64) -> Result<i64, Declined> {
        if !self.original_timestamps || us % 1000 == 0 {
            return Ok(us.div_euclid(1000));
        }
        if us.abs() >= EXACT {
            return Err(Declined);
        }
        Ok((us as f64 / 1e6 * 1e3).round_ties_even() as i64)
    }

    /// Return the record's key.
    ///
    /// # Errors
    ///
    /// Declined if the configured field is missing, or the key has no text form.
    pub fn key<'a>(
        &self,
        slots: &Slots<'a>,
        identity: &'a [u8],
        scratch: &'a mut Vec<u8>,
    ) -> Result<&'a [u8], Declined> {
        match slots[KEY] {
            None | Some(Value::Null) if self.fields.has_key => Err(Declined),
            None | Some(Value::Null) => Ok(identity),
            Some(Value::Binary(bytes, _)) => Ok(bytes),
            Some(value) => as_text(value, scratch),
        }
    }

    /// Return the topic of an event of type `kind`; `own` is the topic in the document.
    ///
    /// # Errors
    ///
    /// Declined if the rules do not give a valid topic name.
    pub fn destination(&self, kind: &str, own: Option<&str>) -> Result<String, Declined> {
        let filled = |topic: &&String| !topic.is_empty();
        let target = self.target_topics.get(kind).filter(filled).or(self.target_topic.as_ref());
        let topic = if let Some(target) = target {
            target.clone()
        } else {
            let prefix = &self.target_prefix;
            match own.or(self.topics.get(kind).filter(filled).map(String::as_str)) {
                Some(topic) => format!("{prefix}{topic}"),
                None => format!("{prefix}{}", self.topic_template.replace("{event_type}", kind)),
            }
        };
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if (1..=249).contains(&topic.len()) && topic.bytes().all(is_allowed) {
            Ok(topic)
        } else {
            Err(Declined)
        }
    }
}

/// Return the event's id as it is stored.
fn id<'a>(slots: &Slots<'a>) -> Result<Value<'a>, Declined> {
    let found = [slots[EVENT_ID], slots[ID]].into_iter().flatten();
    found.into_iter().find(|value| !matches!(value, Value::Null)).ok_or(Declined)
}

/// Return an id or key as text.
fn as_text<'a>(value: Value<'a>, scratch: &'a mut Vec<u8>) -> Result<&'a [u8], Declined> {
    scratch.clear();
    match value {
        Value::Text(text) => return Ok(text),
        Value::Bool(true) => return Ok(b"true"),
        Value::Bool(false) => return Ok(b"false"),
        Value::Int(number) => json::integer(scratch, number.into()),
        Value::Long(number) => json::integer(scratch, number),
        Value::ObjectId(bytes) | Value::Binary(bytes, _) => json::hex(scratch, bytes),
        Value::Uuid(bytes) => json::uuid(scratch, bytes),
        Value::Decimal(bytes) => json::decimal(scratch, bytes)?,
        Value::Date(ms) if time::MILLISECONDS.contains(&ms) => {
            scratch.extend_from_slice(&time::rfc3339(ms));
        }
        // Python writes doubles in another form than JSON.
        Value::Date(_) | Value::Double(_) | Value::Null => return Err(Declined),
        Value::Document(_) | Value::Array(_) | Value::Other => return Err(Declined),
    }
    Ok(scratch)
}

/// Return the murmur2 hash of a key without the sign bit.
///
/// Kafka's default partitioner takes this hash modulo the number of partitions.
#[must_use]
pub fn partition_hash(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    let mut hash = 0x9747_b28c ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let word = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (word ^ word >> 24).wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        hash ^= rest.iter().rev().fold(0, |word, &byte| word << 8 | u32::from(byte));
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ hash >> 13).wrapping_mul(M);
    (hash ^ hash >> 15) & 0x7FFF_FFFF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_go_where_kafkas_own_partitioner_sends_them() {
        // From org.apache.kafka.common.utils.UtilsTest.testMurmur2.
        for (key, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(partition_hash(key.as_bytes()), hash as u32 & 0x7FFF_FFFF);
        }
    }
}
