//! What becomes of the fields that a replay redacts (in Python: `replay_app/redaction.py`).

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redact {
    Drop,
    Null,
    Mask,
    Hash,
}

/// The secret key of the hashes.
#[derive(Debug)]
pub struct Key(Hmac<Sha256>);

impl Key {
    /// # Panics
    ///
    /// Never: HMAC takes keys of every size.
    #[must_use]
    pub fn new(secret: &[u8]) -> Self {
        Self(Hmac::new_from_slice(secret).expect("HMAC takes keys of every size"))
    }

    /// Return the HMAC-SHA256 of some bytes.
    #[must_use]
    pub fn hash(&self, bytes: &[u8]) -> [u8; 32] {
        self.0.clone().chain_update(bytes).finalize().into_bytes().into()
    }
}

/// Return the mask of a value of a BSON type: a JSON value of the same type that tells nothing.
#[must_use]
pub fn mask(kind: u8) -> &'static [u8] {
    match kind {
        0x01 | 0x10 | 0x12 => b"0",
        0x08 => b"false",
        0x0A => b"null",
        0x03 => b"{}",
        0x04 => b"[]",
        _ => br#""***""#,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_rfc_4231() {
        // Test cases 2 and 6.
        let hex = |bytes: [u8; 32]| {
            let mut out = Vec::new();
            crate::json::hex(&mut out, &bytes);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            hex(Key::new(b"Jefe").hash(b"what do ya want for nothing?")),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
        assert_eq!(
            hex(Key::new(&[0xaa; 131])
                .hash(b"Test Using Larger Than Block-Size Key - Hash Key First")),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"
        );
    }
}
