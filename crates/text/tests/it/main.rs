//! Tests of the text crate, through its public interface only.

mod chat;

/// Byte `b` as byte-level vocabularies spell it.
pub(crate) fn spell(byte: u8) -> String {
    let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let c = if plain(byte) {
        char::from(byte)
    } else {
        let before = (0..byte).filter(|&b| !plain(b)).count() as u32;
        char::from_u32(0x100 + before).unwrap()
    };
    c.to_string()
}
