//! Half precision and bfloat as bits: the two 16-bit storage types inside blocks.

/// The little-endian u16 at `offset`.
#[inline(always)]
pub(crate) fn read_u16(bytes: &[u8], offset: usize) -> u16 {
    u16::from_le_bytes([bytes[offset], bytes[offset + 1]])
}

/// The half-precision value at `offset`.
#[inline(always)]
pub(crate) fn read_f16(bytes: &[u8], offset: usize) -> f32 {
    f16_to_f32(read_u16(bytes, offset))
}

/// Rounds `value` to half precision, stores it at `offset`, and returns what was stored.
pub(crate) fn write_f16(bytes: &mut [u8], offset: usize, value: f32) -> f32 {
    let half = f32_to_f16(value);
    bytes[offset..offset + 2].copy_from_slice(&half.to_le_bytes());
    f16_to_f32(half)
}

/// What is left of `value` in half precision. Too large becomes the largest there is, since a
/// scale that is infinite makes every weight of its block worthless.
pub(crate) fn through_f16(value: f32) -> f32 {
    const MAX: f32 = 65504.0;
    f16_to_f32(f32_to_f16(value.clamp(-MAX, MAX)))
}

/// Widens a half; exact. Signalling NaNs come out quiet, as the processor's instruction does.
#[inline(always)]
pub(crate) fn f16_to_f32(half: u16) -> f32 {
    let sign = u32::from(half & 0x8000) << 16;
    let magnitude = u32::from(half & 0x7fff);
    let bits = match magnitude {
        // Subnormal: the fraction counts units of 2^-24, and such a product is exact.
        0..0x0400 => (magnitude as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x0400..0x7c00 => (magnitude << 13) + ((127 - 15) << 23),
        0x7c00 => 0x7f80_0000,
        _ => 0x7fc0_0000 | (magnitude << 13),
    };
    f32::from_bits(sign | bits)
}

/// Rounds to the nearest half, ties to even; too large becomes infinite.
#[inline(always)]
pub(crate) fn f32_to_f16(value: f32) -> u16 {
    let bits = value.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let magnitude = bits & 0x7fff_ffff;
    let half = if magnitude > 0x7f80_0000 {
        0x7e00 | ((magnitude >> 13) & 0x03ff)
    } else if magnitude >= 0x4780_0000 {
        0x7c00
    } else if magnitude < 0x3880_0000 {
        // Below 2^-14: adding 0.5 lines the value up so that the sum's last bit is 2^-24, and
        // the addition itself rounds to nearest even.
        (f32::from_bits(magnitude) + 0.5).to_bits() - 0x3f00_0000
    } else {
        let rounded = magnitude + 0x0fff + ((magnitude >> 13) & 1);
        (rounded - ((127 - 15) << 23)) >> 13
    };
    sign | half as u16
}

/// Widens a bfloat; exact.
#[inline(always)]
pub(crate) fn bf16_to_f32(bfloat: u16) -> f32 {
    f32::from_bits(u32::from(bfloat) << 16)
}

/// Rounds to the nearest bfloat, ties to even; NaNs stay NaN and come out quiet.
#[inline(always)]
pub(crate) const fn f32_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x0040;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_survives_the_round_trip() {
        for half in 0..=u16::MAX {
            let value = f16_to_f32(half);
            let back = f32_to_f16(value);
            assert!(back == half || value.is_nan() && back == half | 0x0200, "{half:04x}");
            let bfloat = f32_to_bf16(bf16_to_f32(half));
            assert!(bfloat == half || bf16_to_f32(half).is_nan(), "{half:04x}");
        }
    }

    #[test]
    fn half_way_between_two_halves_the_even_one_wins() {
        for half in 0..0x7bffu16 {
            let (low, high) = (f16_to_f32(half), f16_to_f32(half + 1));
            let middle = f32::midpoint(low, high);
            assert_eq!(f32_to_f16(middle), half + (half & 1));
            assert_eq!(f32_to_f16(middle.next_up()), half + 1);
            assert_eq!(f32_to_f16(middle.next_down()), half);
        }
    }

    #[test]
    fn ties_go_to_even() {
        assert_eq!(f32_to_f16(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(f32_to_f16(1.0 + 3.0 / 2048.0), 0x3c02);
        assert_eq!(f32_to_f16(65519.9), 0x7bff);
        assert_eq!(f32_to_f16(65520.0), 0x7c00);
        assert_eq!(f32_to_f16(2f32.powi(-25)), 0);
        assert_eq!(f32_to_f16(2f32.powi(-25) * 1.001), 1);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f80_8000)), 0x3f80);
        assert_eq!(f32_to_bf16(f32::from_bits(0x3f81_8000)), 0x3f82);
        assert_eq!(f32_to_bf16(f32::MAX), 0x7f80);
    }
}
