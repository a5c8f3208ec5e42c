//! Encode any bytes as a page, with any mapping: the encoder must not panic, the JSON must be valid
//! and the batches complete.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use replay_native::batches::{Codec, HEADER_BYTES};
use replay_native::mapping::{FieldPaths, Fields, Spec, TimestampType};
use replay_native::page::Page;
use replay_native::redaction::{Key, Redact};
use replay_native::walk::{Node, walk};

fuzz_target!(|input: &[u8]| {
    let Some((options, rest)) = input.split_first_chunk::<2>() else { return };
    let options = u16::from_le_bytes(*options);
    let bytes = if options & 1 == 0 { rest.to_vec() } else { framed(rest) };
    let Ok(mut page) = Page::new(Arc::new(spec(options >> 1)), &bytes, 1_790_000_000_000) else {
        return;
    };
    while let Some(place) = page.run(&bytes) {
        assert!(place.start < place.end && place.end <= bytes.len());
        page.pass(place);
    }
    let (read, skipped) = (page.read, page.skipped);
    let finished = page.finish();
    assert!(finished.encoded + skipped as u64 <= read as u64);
    for (_, _, batch, _) in &finished.batches {
        let header = batch.header(1, 2, 3);
        let length = i32::from_be_bytes(header[8..12].try_into().unwrap());
        assert_eq!(batch.size(), HEADER_BYTES + batch.section.len());
        assert_eq!(length as usize + 12, batch.size());
    }
    let mut json = Vec::new();
    let fields = spec(options >> 1).fields;
    for root in [&Node::default(), fields.root()] {
        json.clear();
        if walk(&bytes, root, true, &mut json, &mut Vec::new(), &Key::new(b"key")).is_ok() {
            serde_json::from_slice::<serde_json::Value>(&json).expect("JSON");
        }
    }
});

/// Return a document of these fields: with a correct length, the encoder reads the fields too.
fn framed(fields: &[u8]) -> Vec<u8> {
    let size = (fields.len() + 5) as i32;
    [&size.to_le_bytes()[..], fields, b"\0"].concat()
}

fn spec(options: u16) -> Spec {
    let is_set = |bit: u16| options >> bit & 1 != 0;
    let paths = FieldPaths {
        field_id: is_set(0).then(|| "meta.id".to_owned()),
        field_timestamp: "timestamp".to_owned(),
        field_type: "event_type".to_owned(),
        field_aggregate: "aggregate_id".to_owned(),
        field_topic: "topic".to_owned(),
        field_key: is_set(1).then(|| "meta.key".to_owned()),
        field_value: is_set(2).then(|| "payload".to_owned()),
        field_headers: is_set(13).then(|| "headers".to_owned()),
        field_replayed: is_set(3).then(|| "headers.replay-id".to_owned()),
        exclude_fields: vec!["_id".to_owned(), "meta.id".to_owned()],
        redact: if is_set(12) { redacted() } else { vec![] },
    };
    Spec {
        fields: Fields::new(&paths),
        timestamp_type: match options >> 4 & 3 {
            0 | 1 => TimestampType::Date,
            2 => TimestampType::Iso,
            _ => TimestampType::EpochMs,
        },
        topics: [("order_placed".to_owned(), "a".to_owned())].into(),
        topic_template: "a".to_owned(),
        target_topic: is_set(6).then(|| "a".to_owned()),
        target_topics: [].into(),
        target_prefix: String::new(),
        replay_id: "r-1".to_owned(),
        headers: vec![("replay-id".to_owned(), b"r-1".to_vec())],
        overhead_bytes: 512,
        partitions: [("a".to_owned(), 3), ("shop.orders".to_owned(), 1)].into(),
        original_timestamps: is_set(7),
        codec: [Codec::None, Codec::Gzip, Codec::Snappy, Codec::Lz4, Codec::Zstd]
            [usize::from(options >> 8) % 5],
        max_record_bytes: if is_set(11) { 1024 } else { 1 << 20 },
        batch_bytes: [("shop.orders".to_owned(), 700)].into(),
        redact_key: Key::new(b"key"),
    }
}

fn redacted() -> Vec<(String, Redact)> {
    let rules = [
        ("meta.list.x", Redact::Hash),
        ("headers", Redact::Mask),
        ("payload", Redact::Null),
        ("data.items", Redact::Hash),
        ("data.customer", Redact::Drop),
        ("n", Redact::Mask),
    ];
    rules.map(|(path, rule)| (path.to_owned(), rule)).into()
}
