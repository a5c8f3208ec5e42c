//! Kafka record batches of version 2 (KIP-98): records, compression, header.

use std::io::Write;

/// Size of the header, which stands before the records.
pub const HEADER_BYTES: usize = 61;
/// Size of the first two header fields: the length field does not count them.
const BEFORE_LENGTH_BYTES: usize = 12;
/// The attribute of a batch that belongs to a transaction.
const TRANSACTIONAL: i16 = 0x10;
/// Size of a block before snappy compresses it; the xerial library has the same.
const SNAPPY_BLOCK_BYTES: usize = 32 << 10;
const XERIAL_HEADER: &[u8; 16] = b"\x82SNAPPY\0\0\0\0\x01\0\0\0\x01";

/// How records are compressed, with the number of each codec in a batch's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i16)]
pub enum Codec {
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// A batch that takes more records; all records go to one partition.
#[derive(Debug)]
pub struct OpenBatch {
    /// Place of the topic in the page's list.
    pub topic: usize,
    pub partition: i32,
    /// Number of records.
    pub records: i32,
    /// Bytes of all values.
    pub bytes: u64,
    first_ms: i64,
    max_ms: i64,
    /// The records as Kafka stores them, not compressed.
    section: Vec<u8>,
}

/// The size that stands for a null value.
const NULL: i64 = -1;

impl OpenBatch {
    #[must_use]
    pub fn new(topic: usize, partition: i32) -> Self {
        let section = Vec::new();
        Self { topic, partition, records: 0, bytes: 0, first_ms: 0, max_ms: 0, section }
    }

    /// Append a record; `headers` are the number of headers and the headers, as Kafka stores them.
    ///
    /// Return false, and append nothing, if the batch would get `limit` bytes or more. An empty
    /// batch takes a record of any size.
    pub fn append(
        &mut self,
        ms: i64,
        key: &[u8],
        value: Option<&[u8]>,
        headers: &[u8],
        limit: usize,
    ) -> bool {
        if self.records == 0 {
            (self.first_ms, self.max_ms) = (ms, ms);
        }
        let delta = ms.wrapping_sub(self.first_ms);
        let offset = i64::from(self.records);
        let body = 1
            + varint_bytes(delta)
            + varint_bytes(offset)
            + sized_bytes(key)
            + value.map_or(varint_bytes(NULL), sized_bytes)
            + headers.len();
        let size = varint_bytes(body as i64) + body;
        if self.records > 0 && HEADER_BYTES + self.section.len() + size >= limit {
            return false;
        }
        let section = &mut self.section;
        section.reserve(size);
        varint(section, body as i64);
        section.push(0); // attributes
        varint(section, delta);
        varint(section, offset);
        sized(section, key);
        match value {
            Some(value) => sized(section, value),
            None => varint(section, NULL),
        }
        section.extend_from_slice(headers);
        self.max_ms = self.max_ms.max(ms);
        self.records += 1;
        self.bytes += value.map_or(0, <[u8]>::len) as u64;
        true
    }

    /// Compress the records. They stay as they are if compression does not make them smaller.
    #[must_use]
    pub fn close(self, codec: Codec) -> Batch {
        let packed = compressed(codec, &self.section).filter(|p| p.len() < self.section.len());
        let (codec, section) = match packed {
            Some(packed) => (codec, packed),
            None => (Codec::None, self.section),
        };
        let crc = crc32c::crc32c(&section);
        let (records, first_ms, max_ms) = (self.records, self.first_ms, self.max_ms);
        Batch { records, first_ms, max_ms, codec, section, crc }
    }
}

/// A batch that takes no more records; only the producer's state is missing in the header.
#[derive(Debug)]
pub struct Batch {
    /// Number of records.
    pub records: i32,
    first_ms: i64,
    max_ms: i64,
    codec: Codec,
    /// The records, compressed with `codec`.
    pub section: Vec<u8>,
    /// CRC-32C of the section.
    crc: u32,
}

impl Batch {
    /// Bytes of the header and the section.
    #[must_use]
    pub fn size(&self) -> usize {
        HEADER_BYTES + self.section.len()
    }

    /// Return the records, in their order; None if they are compressed.
    #[must_use]
    pub fn records(&self) -> Option<Vec<Record<'_>>> {
        (self.codec == Codec::None).then(|| {
            let mut rest = self.section.as_slice();
            (0..self.records).map(|_| Record::read(&mut rest, self.first_ms)).collect()
        })
    }

    /// Return the header with the producer's state; the section follows the header.
    #[must_use]
    pub fn header(
        &self,
        producer_id: i64,
        producer_epoch: i16,
        base_sequence: i32,
    ) -> [u8; HEADER_BYTES] {
        let attributes = self.codec as i16 | TRANSACTIONAL;
        let mut checked = [0; 40];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            checked[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&attributes.to_be_bytes());
        put(&(self.records - 1).to_be_bytes()); // offset of the last record
        put(&self.first_ms.to_be_bytes());
        put(&self.max_ms.to_be_bytes());
        put(&producer_id.to_be_bytes());
        put(&producer_epoch.to_be_bytes());
        put(&base_sequence.to_be_bytes());
        put(&self.records.to_be_bytes());
        let crc = crc32c::crc32c_combine(crc32c::crc32c(&checked), self.crc, self.section.len());
        let mut header = [0; HEADER_BYTES]; // the broker sets the base offset
        let length = (self.size() - BEFORE_LENGTH_BYTES) as i32;
        header[8..12].copy_from_slice(&length.to_be_bytes());
        header[12..16].copy_from_slice(&(-1_i32).to_be_bytes()); // partition leader epoch
        header[16] = 2; // magic
        header[17..21].copy_from_slice(&crc.to_be_bytes());
        header[21..].copy_from_slice(&checked);
        header
    }
}

/// What a consumer gets of a record, without the headers that all records of a replay share.
#[derive(Debug, PartialEq, Eq)]
pub struct Record<'a> {
    pub ms: i64,
    pub key: &'a [u8],
    /// None: a tombstone.
    pub value: Option<&'a [u8]>,
    /// The values of the last two headers, or of fewer.
    pub last: Vec<&'a [u8]>,
}

impl<'a> Record<'a> {
    /// Read a record that `OpenBatch::append` wrote, off the begin of `rest`.
    fn read(rest: &mut &'a [u8], first_ms: i64) -> Self {
        read_varint(rest); // size
        *rest = &rest[1..]; // attributes
        let ms = first_ms.wrapping_add(read_varint(rest));
        read_varint(rest); // offset
        let (key, value) = (read_sized(rest).unwrap_or_default(), read_sized(rest));
        let mut last = Vec::with_capacity(2);
        for left in (0..read_varint(rest)).rev() {
            read_sized(rest); // name
            let value = read_sized(rest).unwrap_or_default();
            if left < 2 {
                last.push(value);
            }
        }
        Self { ms, key, value, last }
    }
}

fn compressed(codec: Codec, section: &[u8]) -> Option<Vec<u8>> {
    match codec {
        Codec::None => None,
        Codec::Gzip => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(section).ok()?;
            encoder.finish().ok()
        }
        Codec::Snappy => snappy(section),
        Codec::Lz4 => {
            // Kafka's consumers read independent blocks only (KIP-57).
            let info = lz4_flex::frame::FrameInfo::new()
                .block_mode(lz4_flex::frame::BlockMode::Independent)
                .block_size(lz4_flex::frame::BlockSize::Max64KB);
            let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
            encoder.write_all(section).ok()?;
            encoder.finish().ok()
        }
        Codec::Zstd => zstd::bulk::compress(section, 3).ok(),
    }
}

/// Compress with snappy, in the xerial frame that Kafka's clients write.
fn snappy(section: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = snap::raw::Encoder::new();
    let mut packed = vec![0; snap::raw::max_compress_len(SNAPPY_BLOCK_BYTES)];
    let mut out = Vec::with_capacity(XERIAL_HEADER.len() + section.len() / 2 + packed.len());
    out.extend_from_slice(XERIAL_HEADER);
    for block in section.chunks(SNAPPY_BLOCK_BYTES) {
        let size = encoder.compress(block, &mut packed).ok()?;
        out.extend_from_slice(&(size as i32).to_be_bytes());
        out.extend_from_slice(&packed[..size]);
    }
    Some(out)
}

/// Append a zigzag varint, the form of the integers in Kafka's records.
pub fn varint(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63) as u64;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}

/// The size of `value` as a varint.
fn varint_bytes(value: i64) -> usize {
    let zigzag = (value << 1 ^ value >> 63) as u64;
    (64 - (zigzag | 1).leading_zeros() as usize).div_ceil(7)
}

/// Append the number of bytes, and then the bytes.
pub fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    varint(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// Read what `varint` wrote, off the begin of `rest`.
fn read_varint(rest: &mut &[u8]) -> i64 {
    let (mut zigzag, mut shift) = (0_u64, 0);
    loop {
        let byte = rest[0];
        *rest = &rest[1..];
        zigzag |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return (zigzag >> 1) as i64 ^ -((zigzag & 1) as i64);
        }
        shift += 7;
    }
}

/// Read what `sized` wrote, off the begin of `rest`.
///
/// None: null.
fn read_sized<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let size = usize::try_from(read_varint(rest)).ok()?;
    let (bytes, behind) = rest.split_at(size);
    *rest = behind;
    Some(bytes)
}

/// The size of what `sized` appends.
fn sized_bytes(bytes: &[u8]) -> usize {
    varint_bytes(bytes.len() as i64) + bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_varint_has_the_calculated_size() {
        for shift in 0..63 {
            for value in [1_i64 << shift, -(1 << shift), (1 << shift) - 1] {
                let mut out = Vec::new();
                varint(&mut out, value);
                assert_eq!(out.len(), varint_bytes(value));
                assert_eq!(read_varint(&mut out.as_slice()), value);
            }
        }
    }

    #[test]
    fn the_records_of_a_batch_are_those_that_were_appended() {
        let mut headers = Vec::new();
        varint(&mut headers, 3);
        for (name, value) in [("a", "1"), ("b", ""), ("c", "3")] {
            sized(&mut headers, name.as_bytes());
            sized(&mut headers, value.as_bytes());
        }
        let close = |codec| {
            let mut open = OpenBatch::new(0, 0);
            assert!(open.append(1_000, b"k", Some(&[b'v'; 300]), &headers, 10_000));
            assert!(open.append(5, b"", Some(b""), b"\0", 10_000));
            assert!(open.append(6, b"k", None, b"\0", 10_000));
            assert_eq!((open.records, open.bytes), (3, 300));
            open.close(codec)
        };
        let first: Vec<&[u8]> = vec![b"", b"3"];
        assert_eq!(
            close(Codec::None).records().unwrap(),
            [
                Record { ms: 1_000, key: b"k", value: Some(&[b'v'; 300]), last: first },
                Record { ms: 5, key: b"", value: Some(b""), last: vec![] },
                Record { ms: 6, key: b"k", value: None, last: vec![] },
            ]
        );
        assert_eq!(close(Codec::Lz4).records(), None);
    }

    #[test]
    fn the_checksum_covers_the_bytes_behind_it() {
        let mut open = OpenBatch::new(0, 0);
        assert!(open.append(5, b"k", Some(b"v"), b"\0", 1000));
        let batch = open.close(Codec::None);
        let header = batch.header(7, 8, 9);
        let rest = [&header[21..], &batch.section].concat();
        assert_eq!(header[17..21], crc32c::crc32c(&rest).to_be_bytes());
    }

    #[test]
    fn a_full_batch_refuses_a_record_and_an_empty_batch_never_does() {
        let mut open = OpenBatch::new(0, 0);
        assert!(open.append(0, b"", Some(&[0; 100]), b"\0", 50));
        assert!(!open.append(0, b"", Some(b""), b"\0", 50));
    }
}
