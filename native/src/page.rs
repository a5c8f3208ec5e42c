//! Encode a page: take its documents one after the other, put their records into batches.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::batches::{Batch, OpenBatch, sized, varint};
use crate::mapping::{HEADERS, REPLAYED, Spec, TOPIC, TYPE, VALUE, partition_hash};
use crate::walk::{Value, walk};
use crate::{Declined, headers, time};

const ORIGINAL_TIME: &[u8] = b"replay-original-time";
const DELIVERY_ID: &[u8] = b"replay-delivery-id";
/// Bytes of the size of a header's name or value, at most.
const MAX_SIZE_BYTES: usize = 5;

/// A page that is being encoded, document after document.
///
/// When `run` returns a declined document, the caller decides what becomes of the document: `add`
/// for a record from the reference, `pass` for a failure, `skip` for a replayed event. Then the
/// caller calls `run` again.
pub struct Page {
    spec: Arc<Spec>,
    headers: Headers,
    now_ms: i64,
    /// Where the next document begins.
    at: usize,
    /// Place of the last document that was read; the document may have failed.
    pub last: Option<Range<usize>>,
    /// Number of documents that were read.
    pub read: usize,
    /// Number of documents that were not encoded because they are replayed events themselves.
    pub skipped: usize,
    topics: Vec<Topic>,
    topic_places: HashMap<String, usize>,
    /// Event types, and how many records each has.
    types: Vec<(String, u64)>,
    type_places: HashMap<String, usize>,
    /// From event type and topic in the document: the places in `types` and in `topics`.
    routes: HashMap<Box<[u8]>, (usize, usize), foldhash::fast::RandomState>,
    batches: Vec<OpenBatch>,
    scratch: Scratch,
}

struct Topic {
    name: String,
    records: u64,
    /// The most bytes of a record, and of a batch.
    limit: usize,
    /// For each partition, the place of the batch that takes the next record.
    open: Vec<Option<usize>>,
}

/// Buffers that every document uses again.
#[derive(Default)]
struct Scratch {
    json: Vec<u8>,
    names: Vec<u64>,
    identity: Vec<u8>,
    delivery: Vec<u8>,
    key: Vec<u8>,
    route: Vec<u8>,
    headers: Vec<u8>,
    original: Vec<u8>,
}

/// The batches of a page, and the counts.
pub struct Finished {
    /// Topic, partition, batch, bytes of the values.
    pub batches: Vec<(String, i32, Batch, u64)>,
    /// Number of records in the batches.
    pub encoded: u64,
    /// Bytes of all values.
    pub bytes: u64,
    /// Number of records of each event type.
    pub by_type: Vec<(String, u64)>,
    /// Number of records of each topic.
    pub by_topic: Vec<(String, u64)>,
}

enum Outcome {
    Encoded,
    Skipped,
}

impl Page {
    /// Begin a page; `now_ms` is the append time in milliseconds after 1970.
    ///
    /// # Errors
    ///
    /// Declined if the bytes are not a sequence of documents.
    pub fn new(spec: Arc<Spec>, bytes: &[u8], now_ms: i64) -> Result<Self, Declined> {
        let mut at = 0;
        while at < bytes.len() {
            at = document_end(bytes, at)?;
        }
        Ok(Self {
            headers: Headers::of(&spec),
            spec,
            now_ms,
            at: 0,
            last: None,
            read: 0,
            skipped: 0,
            topics: Vec::new(),
            topic_places: HashMap::new(),
            types: Vec::new(),
            type_places: HashMap::new(),
            routes: HashMap::default(),
            batches: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// Encode until a document is declined, and return the place of this document.
    ///
    /// None: no document is left. `bytes` are the bytes that `new` got.
    pub fn run(&mut self, bytes: &[u8]) -> Option<Range<usize>> {
        let mut scratch = std::mem::take(&mut self.scratch);
        let mut declined = None;
        while self.at < bytes.len() {
            let Ok(end) = document_end(bytes, self.at) else {
                break; // cannot happen: `new` has checked the same bytes
            };
            let place = self.at..end;
            match self.encode(&bytes[place.clone()], &mut scratch) {
                Ok(Outcome::Encoded) => self.pass(place),
                Ok(Outcome::Skipped) => self.skip(place),
                Err(Declined) => {
                    declined = Some(place);
                    break;
                }
            }
        }
        self.scratch = scratch;
        declined
    }

    /// Count the document as a replayed event, and go on with the next document.
    pub fn skip(&mut self, place: Range<usize>) {
        self.skipped += 1;
        self.pass(place);
    }

    /// Count the document as read, and go on with the next document.
    pub fn pass(&mut self, place: Range<usize>) {
        self.read += 1;
        self.at = place.end;
        self.last = Some(place);
    }

    fn encode(&mut self, document: &[u8], scratch: &mut Scratch) -> Result<Outcome, Declined> {
        let spec = Arc::clone(&self.spec);
        let Scratch { json, names, identity, delivery, key, route, headers, original } = scratch;
        json.clear();
        let write = !spec.fields.has_value;
        let slots = walk(document, spec.fields.root(), write, json, names, &spec.redact_key)?;
        let identity = spec.identity(&slots, identity)?;
        let delivery = spec.delivery(&slots, identity, delivery)?;
        if slots[REPLAYED].is_some() {
            return Ok(Outcome::Skipped);
        }
        let kind = match slots[TYPE] {
            Some(Value::Text(kind)) if !kind.is_empty() => kind,
            _ => return Err(Declined),
        };
        let time = spec.time(&slots)?;
        let own = match slots[TOPIC] {
            Some(Value::Text(topic)) if !topic.is_empty() => Some(topic),
            _ => None,
        };
        let (type_place, topic_place) = self.route(kind, own, route)?;
        let key = spec.key(&slots, identity, key)?;
        let value = match slots[VALUE] {
            _ if write => json.as_slice(),
            Some(Value::Binary(bytes, _) | Value::Text(bytes)) => bytes,
            _ => return Err(Declined),
        };
        original.clear();
        let count = headers::write(original, slots[HEADERS])?;
        // The sizes in `original` are counted twice: the reference decides where this matters.
        let original_bytes = original.len() + count * 2 * MAX_SIZE_BYTES;
        if key.len() + value.len() + delivery.len() + spec.overhead_bytes + original_bytes
            > self.topics[topic_place].limit
        {
            return Err(Declined);
        }
        headers.clear();
        self.headers.write(headers, (count, original), &time::rfc3339(time.header_ms), delivery);
        let ms = if spec.original_timestamps { time.record_ms } else { self.now_ms };
        let count = self.topics[topic_place].open.len() as u32;
        let partition = (partition_hash(key) % count) as usize;
        self.append(topic_place, partition, ms, key, Some(value), headers);
        self.types[type_place].1 += 1;
        Ok(Outcome::Encoded)
    }

    /// Return the places of an event's type and topic.
    fn route(
        &mut self,
        kind: &[u8],
        own: Option<&[u8]>,
        scratch: &mut Vec<u8>,
    ) -> Result<(usize, usize), Declined> {
        scratch.clear();
        scratch.extend_from_slice(&(kind.len() as u64).to_le_bytes());
        scratch.extend_from_slice(kind);
        scratch.extend_from_slice(own.unwrap_or(b""));
        if let Some(route) = self.routes.get(scratch.as_slice()) {
            return Ok(*route);
        }
        let kind = std::str::from_utf8(kind).map_err(|_| Declined)?;
        let own = own.map(std::str::from_utf8).transpose().map_err(|_| Declined)?;
        let topic = self.spec.destination(kind, own)?;
        let route = (self.type_place(kind), self.topic_place(&topic)?);
        self.routes.insert(scratch.as_slice().into(), route);
        Ok(route)
    }

    fn type_place(&mut self, kind: &str) -> usize {
        if let Some(place) = self.type_places.get(kind) {
            return *place;
        }
        let place = self.types.len();
        self.types.push((kind.to_owned(), 0));
        self.type_places.insert(kind.to_owned(), place);
        place
    }

    fn topic_place(&mut self, topic: &str) -> Result<usize, Declined> {
        if let Some(place) = self.topic_places.get(topic) {
            return Ok(*place);
        }
        let count = self.spec.partitions.get(topic).ok_or(Declined)?;
        let count = usize::try_from(*count).map_err(|_| Declined)?;
        if count == 0 {
            return Err(Declined);
        }
        let own = self.spec.batch_bytes.get(topic).copied();
        let limit = own.unwrap_or(usize::MAX).min(self.spec.max_record_bytes);
        let place = self.topics.len();
        let (name, open) = (topic.to_owned(), vec![None; count]);
        self.topics.push(Topic { name, records: 0, limit, open });
        self.topic_places.insert(topic.to_owned(), place);
        Ok(place)
    }

    fn append(
        &mut self,
        topic: usize,
        partition: usize,
        ms: i64,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[u8],
    ) {
        let limit = self.topics[topic].limit;
        self.topics[topic].records += 1;
        let open = self.topics[topic].open[partition];
        if open.is_some_and(|place| self.batches[place].append(ms, key, value, headers, limit)) {
            return;
        }
        let mut batch = OpenBatch::new(topic, partition as i32);
        batch.append(ms, key, value, headers, limit);
        self.topics[topic].open[partition] = Some(self.batches.len());
        self.batches.push(batch);
    }

    /// Append the record that the reference made of the declined document at `place`.
    ///
    /// # Errors
    ///
    /// Declined if the topic is unknown or does not have the partition.
    pub fn add(&mut self, place: Range<usize>, record: &Record) -> Result<(), Declined> {
        let topic = self.topic_place(record.topic)?;
        if record.partition >= self.topics[topic].open.len() {
            return Err(Declined);
        }
        let kind = self.type_place(record.kind);
        let mut headers = Vec::new();
        varint(&mut headers, record.headers.len() as i64);
        for (name, value) in record.headers {
            headers::write_one(&mut headers, name.as_bytes(), value.as_deref());
        }
        self.append(topic, record.partition, record.ms, record.key, record.value, &headers);
        self.types[kind].1 += 1;
        self.pass(place);
        Ok(())
    }

    /// Compress the batches; return them and the counts.
    #[must_use]
    pub fn finish(self) -> Finished {
        let codec = self.spec.codec;
        let batches: Vec<_> = self
            .batches
            .into_iter()
            .map(|open| {
                let (topic, bytes) = (self.topics[open.topic].name.clone(), open.bytes);
                (topic, open.partition, open.close(codec), bytes)
            })
            .collect();
        Finished {
            encoded: batches.iter().map(|(_, _, batch, _)| batch.records as u64).sum(),
            bytes: batches.iter().map(|(_, _, _, bytes)| bytes).sum(),
            batches,
            by_type: self.types.into_iter().filter(|(_, count)| *count > 0).collect(),
            by_topic: (self.topics.into_iter().map(|topic| (topic.name, topic.records)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }
}

/// A record that the reference made.
pub struct Record<'a> {
    pub kind: &'a str,
    pub topic: &'a str,
    pub partition: usize,
    pub ms: i64,
    pub key: &'a [u8],
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: &'a [(String, Option<Vec<u8>>)],
}

/// Writes the headers of a record: the original ones, those of the replay, the two of the event.
struct Headers {
    /// The number of the headers without the original ones.
    count: usize,
    /// The headers of the replay.
    fixed: Vec<u8>,
    /// The name of the header with the original time, and the size of the value.
    original_time: Vec<u8>,
    /// The name of the header with the delivery id.
    delivery_id: Vec<u8>,
    /// The start of every delivery id: the replay id and a colon.
    replay: Vec<u8>,
}

impl Headers {
    fn of(spec: &Spec) -> Self {
        let mut fixed = Vec::new();
        for (name, value) in &spec.headers {
            headers::write_one(&mut fixed, name.as_bytes(), Some(value));
        }
        let count = spec.headers.len() + 2;
        let mut original_time = Vec::new();
        sized(&mut original_time, ORIGINAL_TIME);
        varint(&mut original_time, 24);
        let mut delivery_id = Vec::new();
        sized(&mut delivery_id, DELIVERY_ID);
        let replay = format!("{}:", spec.replay_id).into_bytes();
        Self { count, fixed, original_time, delivery_id, replay }
    }

    /// `original` are the number of the original headers, and the headers as Kafka stores them.
    fn write(
        &self,
        out: &mut Vec<u8>,
        (count, original): (usize, &[u8]),
        original_time: &[u8; 24],
        delivery: &[u8],
    ) {
        varint(out, (self.count + count) as i64);
        out.extend_from_slice(original);
        out.extend_from_slice(&self.fixed);
        out.extend_from_slice(&self.original_time);
        out.extend_from_slice(original_time);
        out.extend_from_slice(&self.delivery_id);
        varint(out, (self.replay.len() + delivery.len()) as i64);
        out.extend_from_slice(&self.replay);
        out.extend_from_slice(delivery);
    }
}

/// Return where the document that begins at `start` ends.
fn document_end(bytes: &[u8], start: usize) -> Result<usize, Declined> {
    let rest = bytes.get(start..).ok_or(Declined)?;
    let size = i32::from_le_bytes(*rest.first_chunk().ok_or(Declined)?);
    let size = usize::try_from(size).map_err(|_| Declined)?;
    if size < 5 || size > rest.len() { Err(Declined) } else { Ok(start + size) }
}
