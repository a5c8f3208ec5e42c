//! The native page encoder: a raw page of BSON documents in, finished Kafka record batches out.
//!
//! The reference is `replay_app/python_encoder.py` with `replay_app/events.py`. This crate encodes the
//! documents that it is sure about and *declines* all others: damaged documents, documents that
//! break a rule, documents with values of rare types. The reference then encodes the declined
//! document, or says why the document cannot be encoded. So all errors come from the reference,
//! and hostile bytes reach only simple code here.
//!
//! The modules, in the order of the data's way; a module uses only modules that stand below it:
//!
//! - `python` takes a page from Python and gives the batches and the counts back.
//! - `page` goes through the documents of a page and puts their records into batches.
//! - `mapping` finds the id, time, type, topic and key of a document by the rules of the mapping.
//! - `extended` writes ids as extended JSON.
//! - `walk` reads a document: it checks every byte, writes the JSON, keeps the mapped fields.
//! - `headers` reads the original headers of an event.
//! - `redaction` hashes and masks fields.
//! - `json` writes a BSON value as JSON text.
//! - `time` reads and writes times.
//! - `batches` builds, compresses and seals Kafka's record batches.

#![forbid(unsafe_code)]

pub mod batches;
pub mod extended;
pub mod headers;
pub mod json;
pub mod mapping;
pub mod page;
pub mod redaction;
pub mod time;
pub mod walk;

#[cfg(feature = "python")]
mod python;

/// The encoder leaves the document to the reference, which encodes or refuses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declined;
