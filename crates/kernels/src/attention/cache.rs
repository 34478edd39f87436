//! How keys and values lie in memory: blocks of 16 tokens, tiles of one block and one head.
//!
//! ```text
//! one layer's keys     block 0                         block 1 ...
//!                      head 0 tile | head 1 tile | ... head 0 tile | ...
//! a tile of keys       [dim][16 tokens]   so that one load gives one dimension of 16 keys
//! a tile of values     [16 tokens][dim]   so that one load gives 16 dimensions of one value
//! a Q8 tile            [16 scales, f32] then i8 numbers in the same order
//! ```
//!
//! Keys are transposed because scores are then plain vector arithmetic, without a horizontal sum.
//! The order never shows outside: rows go in by [`kv_store`], and only attention reads them.

use crate::formats::half;
use crate::isa::{self, Isa};
use crate::lanes::{self, Kernel, LANES, Narrow};

/// Tokens in one block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// How cached numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDType {
    /// Single precision: for tests and comparisons.
    F32,
    /// Half precision; numbers beyond ±65504 are clamped.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit with one `f32` scale per token and head, which is NaN if one of its numbers is.
    Q8,
}

impl KvDType {
    /// Every one, most precise first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::BF16, Self::Q8];

    /// The name users type, such as `f16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::Q8 => "q8",
        }
    }

    /// The type called `name`, or `None` if there is none by that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    fn element_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q8 => 1,
        }
    }

    /// Bytes in front of a tile's numbers.
    fn header_bytes(self) -> usize {
        match self {
            Self::Q8 => BLOCK_TOKENS * size_of::<f32>(),
            _ => 0,
        }
    }
}

/// Whether a cache holds keys or values, which lie in different orders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvRole {
    /// `[dim][16 tokens]` within a tile.
    Keys,
    /// `[16 tokens][dim]` within a tile.
    Values,
}

/// The shape of one layer's keys, or of its values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvLayout {
    /// How numbers are stored.
    pub dtype: KvDType,
    /// Keys or values.
    pub role: KvRole,
    /// Heads per token.
    pub num_kv_heads: usize,
    /// Numbers per token and head.
    pub dim: usize,
}

impl KvLayout {
    /// Bytes of one block over all heads. A cache of n blocks takes n times as much.
    pub fn block_bytes(&self) -> usize {
        self.num_kv_heads * self.tile_bytes()
    }

    fn tile_bytes(&self) -> usize {
        let dtype = self.dtype;
        dtype.header_bytes() + BLOCK_TOKENS * self.dim * dtype.element_bytes()
    }

    fn tile_start(&self, block: usize, head: usize) -> usize {
        block * self.block_bytes() + head * self.tile_bytes()
    }
}

/// One layer's keys or values, for reading.
#[derive(Debug, Clone, Copy)]
pub struct KvTensor<'a> {
    /// The shape.
    pub layout: KvLayout,
    /// `[blocks][num_kv_heads]` tiles.
    pub bytes: &'a [u8],
}

impl<'a> KvTensor<'a> {
    /// The bytes of one tile. Panics if the cache has no such block.
    #[inline(always)]
    pub(crate) fn tile(&self, block: usize, head: usize) -> &'a [u8] {
        let start = self.layout.tile_start(block, head);
        &self.bytes[start..start + self.layout.tile_bytes()]
    }
}

/// Stores one token's row of keys or values, `[num_kv_heads * dim]`.
///
/// `slot` is `16 * block + position % 16`.
///
/// # Panics
/// If the row has the wrong length or the cache has no such slot.
pub fn kv_store(layout: &KvLayout, cache: &mut [u8], slot: usize, row: &[f32]) {
    assert_eq!(row.len(), layout.num_kv_heads * layout.dim, "kv_store: row length");
    let (block, token) = (slot / BLOCK_TOKENS, slot % BLOCK_TOKENS);
    let isa = isa::current();
    for (head, numbers) in row.chunks_exact(layout.dim).enumerate() {
        let start = layout.tile_start(block, head);
        let tile = &mut cache[start..start + layout.tile_bytes()];
        lanes::run(isa, Store { layout, tile, token, numbers });
    }
}

/// Narrows one head's numbers of one token and writes them into its tile.
struct Store<'a> {
    layout: &'a KvLayout,
    tile: &'a mut [u8],
    token: usize,
    numbers: &'a [f32],
}

impl Kernel for Store<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        let dtype = self.layout.dtype;
        let (header, body) = self.tile.split_at_mut(dtype.header_bytes());
        let place = Place { body, layout: self.layout, token: self.token };
        match dtype {
            KvDType::F32 => place.write(self.numbers, |x| x.map(f32::to_le_bytes)),
            KvDType::BF16 => {
                place.write(self.numbers, |x| x.map(|x| half::f32_to_bf16(x).to_le_bytes()));
            }
            KvDType::F16 => place.write(self.numbers, |x| {
                let limit = L::splat(65504.0);
                let lower = L::splat(-65504.0);
                let clamped = limit.min(lower.max(L::load(x)));
                clamped.to_f16().map(u16::to_le_bytes)
            }),
            KvDType::Q8 => {
                let largest = largest_magnitude(self.numbers);
                let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
                let scale = (largest / 127.0).to_le_bytes();
                header[4 * self.token..4 * self.token + 4].copy_from_slice(&scale);
                // Adding 1.5 * 2^23 rounds to nearest even and leaves the whole number, as two's
                // complement, in the low bits.
                place.write(self.numbers, |x| {
                    x.map(|x| [(x * inverse + 12_582_912.0).to_bits() as u8])
                });
            }
        }
    }
}

/// The largest absolute value; NaN where there is one.
#[inline(always)]
fn largest_magnitude(numbers: &[f32]) -> f32 {
    // As integers, magnitudes order like the floats, with NaNs above all numbers.
    let magnitude = |x: &f32| x.to_bits() & 0x7fff_ffff;
    f32::from_bits(numbers.iter().map(magnitude).max().unwrap_or(0))
}

/// Where one token's numbers go within a tile.
struct Place<'a> {
    body: &'a mut [u8],
    layout: &'a KvLayout,
    token: usize,
}

impl Place<'_> {
    /// Writes `narrow(numbers)`, 16 at a time, in the order of the layout.
    #[inline(always)]
    fn write<const BYTES: usize>(
        self,
        numbers: &[f32],
        narrow: impl Fn(&[f32; LANES]) -> [[u8; BYTES]; LANES],
    ) {
        for (index, chunk) in numbers.chunks(LANES).enumerate() {
            let narrowed = if let Ok(whole) = chunk.try_into() {
                narrow(whole)
            } else {
                let mut padded = [0.0; LANES];
                padded[..chunk.len()].copy_from_slice(chunk);
                narrow(&padded)
            };
            let first = index * LANES;
            match self.layout.role {
                KvRole::Keys => {
                    let rows =
                        self.body.as_chunks_mut::<BYTES>().0.as_chunks_mut::<BLOCK_TOKENS>().0;
                    for (row, number) in rows[first..].iter_mut().zip(&narrowed[..chunk.len()]) {
                        row[self.token % BLOCK_TOKENS] = *number;
                    }
                }
                KvRole::Values => {
                    let all = self.body.as_chunks_mut::<BYTES>().0;
                    let at = self.token * self.layout.dim + first;
                    all[at..at + chunk.len()].copy_from_slice(&narrowed[..chunk.len()]);
                }
            }
        }
    }
}

/// [`load_tile`] with the instructions of `isa`.
pub(crate) fn widen(isa: Isa, layout: &KvLayout, tile: &[u8], out: &mut [f32]) {
    lanes::run(isa, Widen { layout, tile, out });
}

struct Widen<'a> {
    layout: &'a KvLayout,
    tile: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Out = ();

    #[inline(always)]
    fn run<L: Narrow>(self) {
        load_tile::<L>(self.layout, self.tile, self.out);
    }
}

/// Widens a tile to `f32` in the same order, `[16 * dim]`, into the front of `out`.
#[inline(always)]
pub(super) fn load_tile<L: Narrow>(layout: &KvLayout, tile: &[u8], out: &mut [f32]) {
    let (header, body) = tile.split_at(layout.dtype.header_bytes());
    let (vectors, _) = out[..BLOCK_TOKENS * layout.dim].as_chunks_mut::<LANES>();
    match layout.dtype {
        KvDType::F32 => {
            for (to, from) in vectors.iter_mut().zip(body.as_chunks::<{ 4 * LANES }>().0) {
                for (x, bytes) in to.iter_mut().zip(from.as_chunks::<4>().0) {
                    *x = f32::from_le_bytes(*bytes);
                }
            }
        }
        KvDType::F16 => {
            for (to, from) in vectors.iter_mut().zip(body.as_chunks().0) {
                L::load_f16(from).store(to);
            }
        }
        KvDType::BF16 => {
            for (to, from) in vectors.iter_mut().zip(body.as_chunks().0) {
                L::load_bf16(from).store(to);
            }
        }
        KvDType::Q8 => load_q8::<L>(layout, header, body, out),
    }
}

#[inline(always)]
fn load_q8<L: Narrow>(layout: &KvLayout, header: &[u8], body: &[u8], out: &mut [f32]) {
    let mut scales = [0.0; BLOCK_TOKENS];
    for (scale, bytes) in scales.iter_mut().zip(header.as_chunks::<4>().0) {
        *scale = f32::from_le_bytes(*bytes);
    }
    match layout.role {
        KvRole::Keys => {
            let scales = L::load(&scales);
            let vectors = out.as_chunks_mut::<LANES>().0;
            for (to, from) in vectors.iter_mut().zip(body.as_chunks().0) {
                (L::load_i8(from) * scales).store(to);
            }
        }
        KvRole::Values => {
            let rows = out.chunks_exact_mut(layout.dim).zip(body.chunks_exact(layout.dim));
            for ((to, from), scale) in rows.zip(scales) {
                let (to, to_tail) = to.as_chunks_mut::<LANES>();
                let (from, from_tail) = from.as_chunks();
                for (to, from) in to.iter_mut().zip(from) {
                    (L::load_i8(from) * L::splat(scale)).store(to);
                }
                for (to, from) in to_tail.iter_mut().zip(from_tail) {
                    *to = f32::from(*from as i8) * scale;
                }
            }
        }
    }
}
