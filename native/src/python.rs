//! The Python module `replay_native`; `replay_native.pyi` has the types.

use std::ops::Range;
use std::sync::Arc;

use pyo3::exceptions::{PyKeyError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::mapping::{FieldPaths, Fields, Spec, TimestampType};
use crate::redaction::{self, Redact};
use crate::{batches, page};

/// Kafka writes the size of a batch with 32 bits, so the encoder declines larger records.
const MAX_BATCH_BYTES: usize = 1 << 30;

/// Encodes the pages of a replay.
#[pyclass(frozen, module = "replay_native")]
struct Encoder {
    spec: Arc<Spec>,
}

/// A page that is being encoded; one thread uses it.
#[pyclass(module = "replay_native")]
struct Page {
    bytes: Py<PyBytes>,
    /// None after the batches are closed.
    page: Option<page::Page>,
    /// The batches and counts, until `finish` returns them.
    closed: Option<Closed>,
    /// Place of the declined document, until the caller decides what becomes of the document.
    declined: Option<Range<usize>>,
}

/// A page after its last document.
struct Closed {
    read: usize,
    skipped: usize,
    last: Option<Range<usize>>,
    finished: page::Finished,
}

impl Closed {
    fn of(page: page::Page) -> Self {
        let (read, skipped, last) = (page.read, page.skipped, page.last.clone());
        Self { read, skipped, last, finished: page.finish() }
    }
}

/// Timestamp, key, value, and the values of the last two headers.
type RecordParts<'py> =
    (i64, Bound<'py, PyBytes>, Option<Bound<'py, PyBytes>>, Vec<Bound<'py, PyBytes>>);

/// A batch that takes no more records.
#[pyclass(frozen, module = "replay_native")]
struct Batch {
    batch: batches::Batch,
}

#[pymethods]
impl Encoder {
    /// Take the parts of an `EncodeSpec`, each under its name.
    #[new]
    fn new(spec: &Bound<'_, PyDict>) -> PyResult<Self> {
        let fields = Fields::new(&FieldPaths {
            field_id: get(spec, "field_id")?,
            field_timestamp: get(spec, "field_timestamp")?,
            field_type: get(spec, "field_type")?,
            field_aggregate: get(spec, "field_aggregate")?,
            field_topic: get(spec, "field_topic")?,
            field_key: get(spec, "field_key")?,
            field_value: get(spec, "field_value")?,
            field_headers: get(spec, "field_headers")?,
            field_replayed: get(spec, "field_replayed")?,
            exclude_fields: get(spec, "exclude_fields")?,
            redact: get::<Vec<(String, String)>>(spec, "redact")?
                .into_iter()
                .map(|(path, rule)| Ok((path, redact(&rule)?)))
                .collect::<PyResult<_>>()?,
        });
        let spec = Spec {
            fields,
            timestamp_type: match get::<String>(spec, "timestamp_type")?.as_str() {
                "date" => TimestampType::Date,
                "iso" => TimestampType::Iso,
                "epoch_ms" => TimestampType::EpochMs,
                other => return Err(PyValueError::new_err(format!("timestamp_type {other:?}"))),
            },
            topics: get(spec, "topics")?,
            topic_template: get(spec, "topic_template")?,
            target_topic: get(spec, "target_topic")?,
            target_topics: get(spec, "target_topics")?,
            target_prefix: get(spec, "target_prefix")?,
            replay_id: get(spec, "replay_id")?,
            headers: get(spec, "headers")?,
            overhead_bytes: get(spec, "overhead_bytes")?,
            partitions: get(spec, "partitions")?,
            original_timestamps: get(spec, "original_timestamps")?,
            codec: match get::<String>(spec, "compression")?.as_str() {
                "none" => batches::Codec::None,
                "gzip" => batches::Codec::Gzip,
                "snappy" => batches::Codec::Snappy,
                "lz4" => batches::Codec::Lz4,
                "zstd" => batches::Codec::Zstd,
                other => return Err(PyValueError::new_err(format!("compression {other:?}"))),
            },
            max_record_bytes: get::<usize>(spec, "max_record_bytes")?.min(MAX_BATCH_BYTES),
            batch_bytes: get(spec, "batch_bytes")?,
            redact_key: redaction::Key::new(&get::<Vec<u8>>(spec, "redact_key")?),
        };
        Ok(Self { spec: Arc::new(spec) })
    }

    /// Begin a page.
    ///
    /// Raises `ValueError` if the bytes are not a sequence of documents.
    fn begin(&self, page: &Bound<'_, PyBytes>, now_ms: i64) -> PyResult<Page> {
        // Keep the interpreter's lock: this check is shorter than a wait for the lock.
        let begun = page::Page::new(Arc::clone(&self.spec), page.as_bytes(), now_ms)
            .map_err(|_| PyValueError::new_err("no sequence of BSON documents"))?;
        let bytes = page.clone().unbind();
        Ok(Page { bytes, page: Some(begun), closed: None, declined: None })
    }
}

#[pymethods]
impl Page {
    /// Encode until a document is declined; return the document's index, begin and end.
    ///
    /// None: no document is left. Then the batches are closed too, while the interpreter's lock is
    /// still released: if another thread has the lock, to take it again can last milliseconds.
    fn run(&mut self, py: Python<'_>) -> PyResult<Option<(usize, usize, usize)>> {
        let mut page = self.page.take().ok_or_else(finished)?;
        let bytes = self.bytes.bind(py).as_bytes();
        let (page, closed, declined) = py.detach(|| match page.run(bytes) {
            Some(place) => (Some(page), None, Some(place)),
            None => (None, Some(Closed::of(page)), None),
        });
        (self.page, self.closed, self.declined) = (page, closed, declined);
        let index = self.page.as_ref().map_or(0, |page| page.read);
        Ok(self.declined.as_ref().map(|place| (index, place.start, place.end)))
    }

    /// Append the record that the reference made of the declined document.
    #[expect(clippy::too_many_arguments, reason = "the parts of a record")]
    fn add(
        &mut self,
        kind: &str,
        topic: &str,
        partition: usize,
        timestamp_ms: i64,
        key: &[u8],
        value: Option<&[u8]>,
        headers: Vec<(String, Option<Vec<u8>>)>,
    ) -> PyResult<()> {
        let (page, place) = self.waiting()?;
        let ms = timestamp_ms;
        let record = page::Record { kind, topic, partition, ms, key, value, headers: &headers };
        page.add(place, &record)
            .map_err(|_| PyValueError::new_err(format!("no partition {partition} of {topic:?}")))
    }

    /// Go on after the declined document, which failed.
    fn leave_out(&mut self) -> PyResult<()> {
        let (page, place) = self.waiting()?;
        page.pass(place);
        Ok(())
    }

    /// Go on after the declined document, which is a replayed event itself.
    fn skip(&mut self) -> PyResult<()> {
        let (page, place) = self.waiting()?;
        page.skip(place);
        Ok(())
    }

    /// Return the batches and the counts; see `Account` in `replay_native.pyi`.
    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let (page, closed) = (self.page.take(), self.closed.take());
        let closed = closed.or_else(|| page.map(|page| py.detach(|| Closed::of(page))));
        let Closed { read, skipped, last, finished: done } = closed.ok_or_else(finished)?;
        let batches: Vec<(String, i32, Batch, i32, u64)> = done
            .batches
            .into_iter()
            .map(|(topic, partition, batch, bytes)| {
                let records = batch.records;
                (topic, partition, Batch { batch }, records, bytes)
            })
            .collect();
        let account = PyDict::new(py);
        account.set_item("read", read)?;
        account.set_item("encoded", done.encoded)?;
        account.set_item("skipped_replays", skipped)?;
        account.set_item("bytes", done.bytes)?;
        account.set_item("batches", batches)?;
        account.set_item("by_type", counts(py, done.by_type)?)?;
        account.set_item("by_topic", counts(py, done.by_topic)?)?;
        account.set_item("last", last.map(|place| (place.start, place.end)))?;
        Ok(account)
    }
}

impl Page {
    /// Return the page and the place of the declined document.
    fn waiting(&mut self) -> PyResult<(&mut page::Page, Range<usize>)> {
        let place = self.declined.take();
        let place = place.ok_or_else(|| PyRuntimeError::new_err("no document was declined"))?;
        Ok((self.page.as_mut().ok_or_else(finished)?, place))
    }
}

#[pymethods]
impl Batch {
    /// Bytes of the batch as the producer sends it.
    #[getter]
    fn size(&self) -> usize {
        self.batch.size()
    }

    /// Return the parts of the records; see `replay_native.pyi`.
    fn records<'py>(&self, py: Python<'py>) -> Option<Vec<RecordParts<'py>>> {
        let bytes = |bytes: &[u8]| PyBytes::new(py, bytes);
        let parts = |one: batches::Record<'_>| {
            let last = one.last.into_iter().map(bytes).collect();
            (one.ms, bytes(one.key), one.value.map(bytes), last)
        };
        Some(self.batch.records()?.into_iter().map(parts).collect())
    }

    /// Return the batch as the producer sends it.
    fn seal<'py>(
        &self,
        py: Python<'py>,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let batch = &self.batch;
        let header = batch.header(producer_id, producer_epoch, base_sequence);
        PyBytes::new_with(py, batch.size(), |sealed| {
            sealed[..header.len()].copy_from_slice(&header);
            sealed[header.len()..].copy_from_slice(&batch.section);
            Ok(())
        })
    }
}

fn redact(rule: &str) -> PyResult<Redact> {
    match rule {
        "drop" => Ok(Redact::Drop),
        "null" => Ok(Redact::Null),
        "mask" => Ok(Redact::Mask),
        "hash" => Ok(Redact::Hash),
        other => Err(PyValueError::new_err(format!("redact {other:?}"))),
    }
}

fn get<T: for<'a, 'py> FromPyObject<'a, 'py>>(
    spec: &Bound<'_, PyDict>,
    name: &'static str,
) -> PyResult<T> {
    let value = spec.get_item(name)?.ok_or_else(|| PyKeyError::new_err(name))?;
    value.extract().map_err(Into::into)
}

fn counts(py: Python<'_>, counts: Vec<(String, u64)>) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, count) in counts {
        dict.set_item(name, count)?;
    }
    Ok(dict)
}

fn finished() -> PyErr {
    PyRuntimeError::new_err("the page is finished")
}

#[pymodule]
mod replay_native {
    #[pymodule_export]
    use super::{Batch, Encoder, Page};

    /// Goes up by 1 with each change of `replay_native.pyi`, of the names in `spec`, or of the records
    /// that the rules make: the reference and this module must follow the same rules.
    #[pymodule_export]
    const INTERFACE: u32 = 6;
}
