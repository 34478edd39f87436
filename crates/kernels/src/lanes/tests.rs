//! Every implementation of the lanes against the scalar one, bit for bit.

use super::*;
use crate::isa::Isa;

/// Applies one lane function to 16 numbers on a chosen instruction set.
struct Apply<'a> {
    what: &'a str,
    x: &'a [f32; LANES],
    y: &'a [f32; LANES],
}

impl Kernel for Apply<'_> {
    type Out = [f32; LANES];

    #[inline(always)]
    fn run<L: Narrow>(self) -> [f32; LANES] {
        let (x, y) = (L::load(self.x), L::load(self.y));
        let result = match self.what {
            "exp" => exp(x),
            "tanh" => tanh(x),
            "max" => x.max(y),
            "min" => x.min(y),
            "div" => x / y,
            "fma" => x.mul_add(y, x - y),
            "sum" => L::splat((x * y).sum()),
            "largest" => L::splat(largest(x)),
            "f16" => {
                let mut bytes = [0; 32];
                for (to, half) in bytes.chunks_exact_mut(2).zip(x.to_f16()) {
                    to.copy_from_slice(&half.to_le_bytes());
                }
                L::load_f16(&bytes)
            }
            other => panic!("no function {other}"),
        };
        let mut out = [0.0; LANES];
        result.store(&mut out);
        out
    }
}

fn bits(x: [f32; LANES]) -> [u32; LANES] {
    // Which NaN comes out of an operation on two NaNs is not part of the contract.
    x.map(|x| if x.is_nan() { 0x7fc0_0000 } else { x.to_bits() })
}

/// A few thousand vectors of awkward floats from a fixed seed.
fn awkward(mut visit: impl FnMut(&[f32; LANES], &[f32; LANES])) {
    let specials =
        [0.0, -0.0, 1.0, f32::NAN, f32::INFINITY, -f32::INFINITY, 65504.0, 65520.0, 1e-7];
    let mut state = 0x1234_5678_9abc_def0u64;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 32) as u32;
        match word % 8 {
            0 => specials[(word >> 8) as usize % specials.len()],
            1 => f32::from_bits(word.rotate_left(9)),
            _ => (f64::from(word) / f64::from(1u32 << 31) - 1.0) as f32 * 90.0,
        }
    };
    for _ in 0..4000 {
        let x = std::array::from_fn(|_| next());
        let y = std::array::from_fn(|_| next());
        visit(&x, &y);
    }
}

#[test]
fn every_instruction_set_gives_the_bits_of_scalar() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        for what in ["exp", "tanh", "max", "min", "div", "fma", "sum", "largest", "f16"] {
            awkward(|x, y| {
                let expected = run(Isa::Scalar, Apply { what, x, y });
                let found = run(isa, Apply { what, x, y });
                assert_eq!(bits(expected), bits(found), "{what} on {isa:?} of {x:?} and {y:?}");
            });
        }
    }
}

#[test]
fn exp_is_close_to_the_real_thing() {
    let mut worst = 0.0f64;
    for step in -8730..=8830 {
        let x = step as f32 * 0.01 + 0.001_234;
        let found =
            f64::from(run(Isa::Scalar, Apply { what: "exp", x: &[x; 16], y: &[0.0; 16] })[0]);
        let error = (found / f64::from(x).exp() - 1.0).abs();
        worst = worst.max(error);
    }
    assert!(worst < 1.5e-7, "relative error {worst:e}");
    let at = |x| run(Isa::Scalar, Apply { what: "exp", x: &[x; 16], y: &[0.0; 16] })[0];
    assert_eq!(at(0.0), 1.0);
    assert_eq!(at(f32::NEG_INFINITY), 0.0);
    assert_eq!(at(-100.0), 0.0);
    assert!(at(f32::INFINITY) > 2e38 && at(f32::INFINITY).is_finite());
    assert!(at(f32::NAN).is_nan());
}

struct Transpose<'a>(&'a mut [[f32; LANES]; LANES]);

impl Kernel for Transpose<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let mut tile: [L; LANES] = std::array::from_fn(|i| L::load(&self.0[i]));
        L::transpose(&mut tile);
        for (row, to) in tile.into_iter().zip(self.0.iter_mut()) {
            row.store(to);
        }
    }
}

#[test]
fn transposing_swaps_rows_and_columns() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let mut tile: [[f32; 16]; 16] =
            std::array::from_fn(|i| std::array::from_fn(|j| (16 * i + j) as f32));
        run(isa, Transpose(&mut tile));
        for (i, row) in tile.iter().enumerate() {
            for (j, &x) in row.iter().enumerate() {
                assert_eq!(x, (16 * j + i) as f32, "{isa:?}");
            }
        }
    }
}
