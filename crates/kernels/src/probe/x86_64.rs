//! Loops of the byte products that x86-64 offers.

use std::arch::asm;
use std::arch::x86_64::*;
use std::hint::black_box;

use super::{CHAINS, TURNS};

/// `vpdpbusd` on 512-bit registers: 64 products each.
///
/// # Safety
/// The machine must have the instructions named in the attribute.
#[target_feature(enable = "avx512f,avx512vnni")]
pub(super) unsafe fn int8_turns_avx512() -> f64 {
    let (a, b) = (_mm512_set1_epi8(black_box(77)), _mm512_set1_epi8(black_box(-3)));
    let mut chains = [_mm512_setzero_si512(); CHAINS];
    for _ in 0..TURNS {
        for chain in &mut chains {
            *chain = _mm512_dpbusd_epi32(*chain, a, b);
        }
    }
    for chain in chains {
        black_box(_mm512_reduce_add_epi32(chain));
    }
    (TURNS * CHAINS * 64 * 2) as f64
}

/// `vdpbf16ps` on 512-bit registers: 32 products each.
///
/// # Safety
/// The machine must have the instructions named in the attribute.
#[target_feature(enable = "avx512f,avx512bf16")]
pub(super) unsafe fn bf16_turns_avx512() -> f64 {
    let (a, b) = (_mm512_set1_ps(black_box(0.999)), _mm512_set1_ps(black_box(0.001)));
    let (a, b) = (_mm512_cvtne2ps_pbh(a, a), _mm512_cvtne2ps_pbh(b, b));
    let mut chains = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..TURNS {
        for chain in &mut chains {
            *chain = _mm512_dpbf16_ps(*chain, a, b);
        }
    }
    for chain in chains {
        black_box(_mm512_reduce_add_ps(chain));
    }
    (TURNS * CHAINS * 32 * 2) as f64
}

/// `vpmaddubsw`, `vpmaddwd`, `vpaddd` on 256-bit registers: 32 products each.
///
/// # Safety
/// The machine must have the instructions named in the attribute.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn int8_turns_avx2() -> f64 {
    let ones = _mm256_set1_epi16(black_box(1));
    let b = _mm256_set1_epi8(black_box(-3));
    let mut chains = [_mm256_setzero_si256(); CHAINS];
    let mut a = _mm256_set1_epi8(black_box(77));
    for _ in 0..TURNS {
        for chain in &mut chains {
            let pairs = _mm256_maddubs_epi16(a, b);
            *chain = _mm256_add_epi32(*chain, _mm256_madd_epi16(pairs, ones));
            // With operands that a compiler knows, the products would be computed once.
            // SAFETY: no instruction at all.
            unsafe { asm!("/* {0} */", inout(ymm_reg) a, options(pure, nomem, nostack)) };
        }
    }
    for chain in chains {
        black_box(_mm256_extract_epi32::<0>(chain));
    }
    (TURNS * CHAINS * 32 * 2) as f64
}
