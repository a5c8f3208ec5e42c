//! The native page encoder: a raw page of BSON documents in, finished Kafka record batches out.
//!
//! The reference is `replay_app/encoder.py` with `replay_app/events.py`. This crate encodes the
//! documents that it is sure about and *declines* every other one: a damaged one, one that fails
//! by a rule, a rare type. The reference then encodes that document alone or says why it cannot
//! be, so errors are equal by construction, and hostile bytes have nothing to reach here.

#![forbid(unsafe_code)]

pub mod batches;
pub mod json;
pub mod mapping;
pub mod page;
pub mod time;
pub mod walk;

#[cfg(feature = "python")]
mod python;

/// This document is for the reference to encode or to refuse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declined;
