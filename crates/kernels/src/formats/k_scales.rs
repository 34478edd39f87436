//! What Q4_K and Q5_K share: the 16 bytes that a block begins with. After `d` and `e` come 12
//! bytes of sub-block scales, eight 6-bit `sc` and eight 6-bit `m`:
//!
//! ```text
//! byte j     (j = 0..4)    sc[j]      in bits 0..6,   high 2 bits of sc[j + 4] in bits 6..8
//! byte j + 4               m[j]       in bits 0..6,   high 2 bits of m[j + 4]  in bits 6..8
//! byte j + 8               low 4 bits of sc[j + 4] in bits 0..4, of m[j + 4] in bits 4..8
//! ```

use super::search::AffineBlock;
use super::{Panel, half, scale_bytes};
use crate::simd::Simd;

/// `(sc, m)` of each sub-block.
pub(crate) fn decode(bytes: &[u8]) -> [(u8, u8); 8] {
    std::array::from_fn(|j| {
        if j < 4 {
            return (bytes[j] & 63, bytes[j + 4] & 63);
        }
        let (sc_high, m_high, low) = (bytes[j - 4] >> 6, bytes[j] >> 6, bytes[j + 4]);
        (low & 15 | sc_high << 4, low >> 4 | m_high << 4)
    })
}

/// The inverse of [`decode`]; every scale is below 64.
pub(crate) fn encode(scales: &[(u8, u8); 8], bytes: &mut [u8]) {
    for j in 0..4 {
        let ((sc, m), (sc_next, m_next)) = (scales[j], scales[j + 4]);
        bytes[j] = sc | sc_next >> 4 << 6;
        bytes[j + 4] = m | m_next >> 4 << 6;
        bytes[j + 8] = sc_next & 15 | (m_next & 15) << 4;
    }
}

/// Chooses codes `0..=high` of 256 values; writes `d`, `e` and the scales to `head` `[16]`.
pub(crate) fn choose(
    values: &[f32],
    importance: Option<&[f32]>,
    high: f32,
    head: &mut [u8],
) -> [u8; 256] {
    let block = AffineBlock { high, scale_max: 63.0 };
    let found = block.choose::<8, 32>(values, importance);
    half::write_f16(head, 0, found.d);
    half::write_f16(head, 2, found.e);
    encode(&found.scales, &mut head[4..16]);
    found.codes
}

/// The first 16 bytes of a block of every row: `d`, `e` and the 12 bytes.
#[inline(always)]
pub(crate) fn unpack<S: Simd>(s: S, head: [S::U; 4], panel: &mut Panel<S>) {
    let (six_bits, nibbles, top) =
        (s.splat(0x3f3f_3f3f), s.splat(0x0f0f_0f0f), s.splat(0x3030_3030));
    let [floats, a, b, c] = head;
    panel.d[0] = s.widen_f16(floats);
    panel.e[0] = s.widen_f16(s.shr::<16>(floats));
    let sc = [s.and(a, six_bits), s.or(s.and(c, nibbles), s.and(s.shr::<2>(a), top))];
    let m = [s.and(b, six_bits), s.or(s.and(s.shr::<4>(c), nibbles), s.and(s.shr::<2>(b), top))];
    for half in 0..2 {
        scale_bytes::unsigned(s, sc[half], &mut panel.sc[4 * half..]);
        scale_bytes::pairs(s, m[half], &mut panel.m[2 * half..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_survive_the_round_trip() {
        let mut bytes = [0; 12];
        for seed in 0..64 {
            let scales = std::array::from_fn(|j| {
                (((seed * 7 + j * 13) % 64) as u8, ((seed * 11 + j * 29) % 64) as u8)
            });
            encode(&scales, &mut bytes);
            assert_eq!(decode(&bytes), scales);
        }
    }
}
