//! Q4_K by tiles, scaled late: where so few inputs share a product that making bfloats of weights
//! is most of the work.
//!
//! A weight is `d * sc * n - e * m`, with whole numbers `sc` and `m` below 64 of its sub-block and
//! `n` below 16 of its own. Products take `sc * (n - 8)`, of which there is a table: 32 weights are
//! one shift and one permutation. `d` multiplies the sums of a block, which are one vector per row
//! and 16 inputs. What the table leaves out, `8 * sc`, and what is subtracted, `m`, are one more
//! tile product each per block, with the sums of inputs over sub-blocks.
//!
//! ```text
//! for each two panels of rows, for each block, for each quarter of it (64 columns):
//!     tiles of sums += tiles of `sc * (n - 8)` · tiles of inputs; between tile instructions
//!         rows of the next quarter become bfloats,
//!         sums of the block before are scaled and added to totals,
//!         and what comes later is requested from memory
//! ```
//!
//! `sc * (n - 8)` is rounded to eight bits, as weights are otherwise, and is about as large as
//! they; `sc` and `m` are exact, and the sums that they are multiplied with have sixteen bits.

use std::arch::x86_64::*;
use std::ops::Range;

use super::product::Product;
use super::weights::{DEPTH, QUARTERS, Tile, transpose};
use super::{Sums, TILE_COLS, TILE_ROWS};
use crate::dtype::DType;
use crate::formats::rows::LookAhead;
use crate::formats::{BlockFormat, PANEL_COLS, half};

/// Inputs that share a product, at most: a block's sums of two panels have to fit in four tiles. Of
/// more inputs the sums that are stored and scaled would cost more than weights that are not.
const INPUTS_MAX: usize = 2 * TILE_ROWS;
/// Tiles of inputs that belong to a block: its columns, and their sums.
const BLOCK_TILES: usize = DEPTH + 1;
/// Bytes of a block of Q4_K, and how many of them come before the codes.
const BLOCK_BYTES: usize = 144;
const HEAD_BYTES: usize = 16;
/// Sub-blocks of a block.
const SUBS: usize = 8;
/// Bytes of a row of a quarter.
const QUARTER_BYTES: usize = 32;

/// Whether weights of a format are scaled late for `inputs` inputs.
pub(super) fn is_better<F: BlockFormat>(inputs: usize, cols: usize, room: usize) -> bool {
    let tiles = inputs.div_ceil(TILE_ROWS) * (cols / PANEL_COLS) * BLOCK_TILES;
    F::DTYPE == DType::Q4K && inputs <= INPUTS_MAX && tiles <= room
}

/// `sc * (n - 8)` as bfloats, `[sc, n]`, each row twice: a permutation of words reads five bits.
#[repr(align(64))]
struct Table([[u16; 32]; 64]);

// A constant would be made anew wherever it is used.
static TABLE: Table = {
    let (mut table, mut i) = ([[0; 32]; 64], 0);
    while i < 64 * 32 {
        let (sc, n) = (i / 32, i % 16);
        table[sc][i % 32] = half::f32_to_bf16(sc as f32 * (n as f32 - 8.0));
        i += 1;
    }
    Table(table)
};

/// What is known of a block of 16 rows before its codes are read.
#[repr(C, align(64))]
struct Head {
    /// Left factors of what is subtracted: line `i` is `128 + m` of row `i`, twice, then 128s.
    mins: Tile,
    /// Left factors of what the table leaves out: `1024 + 8 * sc`, twice, then 1024s.
    middles: Tile,
    /// Bytes from the beginning of the table, `[row, sub-block]`.
    scales: [[u16; SUBS]; TILE_ROWS],
    /// `d` and `e` of each row.
    factors: [[f32; 2]; TILE_ROWS],
    /// The first row's block, and the bytes from one row to the next.
    block: (*const u8, usize),
}

/// Working memory of one thread.
#[repr(C, align(64))]
pub(super) struct Late {
    /// Two quarters of two panels, `[panel, quarter % 2, half]`.
    ring: [[[Tile; 2]; 2]; 2],
    /// `[block % 2, panel]`.
    heads: [[Head; 2]; 2],
    /// A block's sums before they are scaled, `[panel]`: of either tile of inputs, then what is
    /// subtracted from them.
    products: [[Sums; 4]; 2],
    /// `[panel, tile of inputs]`.
    totals: [[Sums; 2]; 2],
    /// Blocks of a panel that has too few rows, `[panel]`.
    copies: [[[u8; BLOCK_BYTES]; TILE_ROWS]; 2],
}

/// Multiplies all of a unit's rows with `tokens` of its inputs.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(super) fn run(
    product: &Product<'_>,
    late: &mut Late,
    inputs: &mut [Tile],
    tokens: &Range<usize>,
) {
    let unit = product.unit;
    let blocks = unit.weight.cols() / PANEL_COLS;
    for (first, tiles) in
        tokens.clone().step_by(TILE_ROWS).zip(inputs.chunks_exact_mut(blocks * BLOCK_TILES))
    {
        let mut rows: [&[u16]; TILE_ROWS] = [&[]; TILE_ROWS];
        let count = TILE_ROWS.min(tokens.end - first);
        for (index, row) in rows.iter_mut().take(count).enumerate() {
            *row = unit.input.bfloats(unit.tokens.at(first + index), unit.input_col);
        }
        for (block, tiles) in tiles.as_chunks_mut().0.iter_mut().enumerate() {
            lay_out(&rows[..count], block * PANEL_COLS, tiles);
        }
    }
    let walk = Walk { product, inputs, blocks };
    // SAFETY: whoever has a product has tiles.
    unsafe {
        if tokens.len() <= TILE_ROWS {
            walk.rows::<1>(late, tokens);
        } else {
            walk.rows::<2>(late, tokens);
        }
    }
}

/// A block's columns of at most 16 inputs as tiles, from column `col` of `rows` on, and a tile of
/// their sums over sub-blocks.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn lay_out(rows: &[&[u16]], col: usize, tiles: &mut [Tile; BLOCK_TILES]) {
    /// Even columns first, as rows of weights come.
    const ORDER: [u16; TILE_COLS] = {
        let (mut order, mut i) = ([0; TILE_COLS], 0);
        while i < TILE_COLS {
            order[i] = (2 * i % TILE_COLS + 2 * i / TILE_COLS) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: an array is as large as the vector.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    let ones = _mm512_set1_epi16(0x3f80);
    let [tiles @ .., last] = tiles;
    let mut sums = [_mm512_setzero_ps(); SUBS];
    for ((index, tile), sum) in tiles.iter_mut().enumerate().zip(&mut sums) {
        let mut lines = [_mm512_setzero_si512(); TILE_ROWS];
        for (line, row) in lines.iter_mut().zip(rows) {
            let columns = &row[col + index * TILE_COLS..][..TILE_COLS];
            // SAFETY: the columns are 64 bytes.
            let columns = unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) };
            *line = _mm512_permutexvar_epi16(order, columns);
        }
        transpose(&mut lines);
        *tile = lines;
        for line in tile {
            *sum = dot_bfloats(*sum, *line, ones);
        }
    }
    *last = sums_tile(&sums);
}

/// Adds products of pairs of bfloats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn dot_bfloats(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
    // SAFETY: both types are 512 bits of anything.
    let [a, b] = unsafe { std::mem::transmute::<[__m512i; 2], [__m512bh; 2]>([a, b]) };
    _mm512_dpbf16_ps(sum, a, b)
}

/// Sums over sub-blocks as a tile of inputs: their upper halves, what these leave (as exact as 16
/// bits of significand are), and both again, negative: for `128 + m` twice, and 128 twice, or the
/// like of `sc`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn sums_tile(sums: &[__m512; SUBS]) -> Tile {
    let top = _mm512_set1_epi32(0xffff_0000_u32 as i32);
    let sign = _mm512_set1_epi32(0x8000_8000_u32 as i32);
    let mut tile = [_mm512_setzero_si512(); TILE_ROWS];
    for (pair, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
        let upper = sums.map(|sum| _mm512_and_si512(_mm512_castps_si512(sum), top));
        let mut left = upper;
        for (left, sum) in left.iter_mut().zip(sums) {
            let rest = _mm512_sub_ps(*sum, _mm512_castsi512_ps(*left));
            *left = _mm512_and_si512(_mm512_castps_si512(rest), top);
        }
        let [upper, left] =
            [upper, left].map(|[even, odd]| _mm512_or_si512(_mm512_srli_epi32::<16>(even), odd));
        tile[pair] = upper;
        tile[4 + pair] = left;
        tile[8 + pair] = _mm512_xor_si512(upper, sign);
        tile[12 + pair] = _mm512_xor_si512(left, sign);
    }
    tile
}

impl Head {
    /// Takes the block of 16 rows that begins at `block`, the rows `stride` bytes apart.
    ///
    /// # Safety
    /// The bytes are there, and stay until the last row is converted.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn prepare(&mut self, block: *const u8, stride: usize) {
        self.block = (block, stride);
        let mut heads = [_mm512_setzero_si512(); 4];
        for (four, head) in heads.iter_mut().enumerate() {
            // SAFETY: the caller promises the bytes.
            *head = unsafe {
                let row = |i: usize| _mm_loadu_si128(block.add((4 * four + i) * stride).cast());
                let head = _mm512_castsi128_si512(row(0));
                let head = _mm512_inserti32x4::<1>(head, row(1));
                _mm512_inserti32x4::<3>(_mm512_inserti32x4::<2>(head, row(2)), row(3))
            };
            self.prepare_scales(four, *head);
        }
        let pick = _mm512_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28, 0, 0, 0, 0, 0, 0, 0, 0);
        for (half, factors) in self.factors.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let halves = _mm512_permutex2var_epi32(heads[2 * half], pick, heads[2 * half + 1]);
            let floats = _mm512_cvtph_ps(_mm512_castsi512_si256(halves));
            // SAFETY: eight pairs are as large as the vector.
            unsafe { _mm512_storeu_ps(factors.as_mut_ptr().cast(), floats) };
        }
    }

    /// Scales of rows `4 * four..` from the first 16 bytes of each, see [`k_scales`].
    ///
    /// [`k_scales`]: crate::formats::k_scales
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    fn prepare_scales(&mut self, four: usize, head: __m512i) {
        let set = |byte: u8| _mm512_set1_epi8(byte as i8);
        // Words of each row: d and e, then three of scales, of which the last is spread over the
        // other two. Those become `sc` and `m` of sub-blocks 0 to 3 and of 4 to 7.
        let low = _mm512_and_si512(head, set(0x3f));
        let upper = _mm512_and_si512(_mm512_srli_epi32::<2>(head), set(0x30));
        let shifts = _mm512_broadcast_i32x4(_mm_setr_epi32(0, 0, 4, 0));
        let nibbles = _mm512_srlv_epi32(_mm512_shuffle_epi32::<0xff>(head), shifts);
        // upper | (nibbles & 15)
        let high = _mm512_ternarylogic_epi32::<0xf8>(upper, nibbles, set(0x0f));
        let scales = _mm512_unpacklo_epi32(low, high);
        let mins = _mm512_unpackhi_epi32(low, high);
        // The lower seven bits of a bfloat count in 128ths of the power of two that the others are.
        let plus_128 = _mm512_unpacklo_epi8(mins, set(0x43));
        let plus_1024 = _mm512_unpackhi_epi8(_mm512_or_si512(scales, set(0x80)), set(0x44));
        lines(&mut self.mins[4 * four..], plus_128, _mm512_set1_epi16(0x4300));
        lines(&mut self.middles[4 * four..], plus_1024, _mm512_set1_epi16(0x4480));
        // `64 * sc`, as words.
        let scales = _mm512_unpackhi_epi8(_mm512_setzero_si512(), scales);
        let scales = _mm512_srli_epi16::<2>(scales);
        // SAFETY: four rows of scales are as large as the vector.
        unsafe { _mm512_storeu_si512(self.scales[4 * four..][..4].as_mut_ptr().cast(), scales) };
    }
}

/// Four lines: eight words of a row in `rows` twice, then those of `rest`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn lines(lines: &mut [__m512i], rows: __m512i, rest: __m512i) {
    lines[0] = _mm512_shuffle_i32x4::<0b00_00_00_00>(rows, rest);
    lines[1] = _mm512_shuffle_i32x4::<0b00_00_01_01>(rows, rest);
    lines[2] = _mm512_shuffle_i32x4::<0b00_00_10_10>(rows, rest);
    lines[3] = _mm512_shuffle_i32x4::<0b00_00_11_11>(rows, rest);
}

/// A product of at most [`INPUTS_MAX`] inputs.
struct Walk<'a> {
    product: &'a Product<'a>,
    /// `[tiles of inputs, blocks, BLOCK_TILES]`.
    inputs: &'a [Tile],
    /// Blocks of a row of weights.
    blocks: usize,
}

impl Walk<'_> {
    /// All of the unit's rows, two panels at a time, block by block.
    ///
    /// # Safety
    /// The machine has tiles.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    unsafe fn rows<const TILES: usize>(&self, late: &mut Late, tokens: &Range<usize>) {
        let pieces = self.product.unit.rows.len().div_ceil(2 * TILE_ROWS) * self.blocks;
        assert!(pieces > 0, "units have rows and columns");
        self.prepare(late, 0, 0);
        // SAFETY: it was prepared.
        unsafe { late.convert_first(0) };
        for piece in 0..pieces {
            let (parity, ahead) = (piece % 2, self.look_ahead(piece));
            // SAFETY: pieces are prepared before they are converted, and converted before they are
            // multiplied. Behind the last one it is converted once more.
            unsafe {
                self.quarter::<TILES, 0>(late, piece, &ahead);
                self.quarter::<TILES, 1>(late, piece, &ahead);
                self.quarter::<TILES, 2>(late, piece, &ahead);
                if piece.is_multiple_of(self.blocks) {
                    // What the scaled sums before the first piece are, nobody asks.
                    self.store(late, tokens, piece.checked_sub(1));
                    late.totals = [[[[0.0; 16]; TILE_ROWS]; 2]; 2];
                }
                self.prepare(late, (piece + 1).min(pieces - 1), 1 - parity);
                self.quarter::<TILES, 3>(late, piece, &ahead);
            }
            self.end_block::<TILES>(late, piece);
        }
        for row in 0..TILE_ROWS {
            late.scale::<TILES>(0, (pieces - 1) % 2, row);
            late.scale::<TILES>(1, (pieces - 1) % 2, row);
        }
        self.store(late, tokens, Some(pieces - 1));
    }

    /// The rows of a piece's panels, and its block.
    fn place(&self, piece: usize) -> ([Range<usize>; 2], usize) {
        let rows = &self.product.unit.rows;
        let first = rows.start + piece / self.blocks * 2 * TILE_ROWS;
        let middle = rows.end.min(first + TILE_ROWS);
        ([first..middle, middle..rows.end.min(middle + TILE_ROWS)], piece % self.blocks)
    }

    /// What to request from memory while `piece` is multiplied: what follows the piece after it.
    #[inline(always)]
    fn look_ahead(&self, piece: usize) -> LookAhead {
        let ([first, second], block) = self.place(piece + 1);
        if first.start >= second.end {
            return LookAhead::nothing();
        }
        let bytes = block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES;
        LookAhead::behind(&self.product.unit.weight, &(first.start..second.end), bytes)
    }

    /// Unpacks the scales of both panels of a piece.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn prepare(&self, late: &mut Late, piece: usize, parity: usize) {
        let weight = &self.product.unit.weight;
        let (panels, block) = self.place(piece);
        let (bytes, stride) = (weight.bytes(), weight.row_bytes());
        for (panel, rows) in panels.into_iter().enumerate() {
            let first = rows.start * stride + block * BLOCK_BYTES;
            let place = if rows.len() == TILE_ROWS {
                let end = first + (TILE_ROWS - 1) * stride + BLOCK_BYTES;
                (bytes[first..end].as_ptr(), stride)
            } else {
                // Too few rows for a panel: the others are zeros or what was there before, and
                // their sums are nobody's.
                let copy = &mut late.copies[panel][..rows.len()];
                for (index, copy) in copy.iter_mut().enumerate() {
                    copy.copy_from_slice(&bytes[first + index * stride..][..BLOCK_BYTES]);
                }
                (late.copies[panel].as_ptr().cast(), BLOCK_BYTES)
            };
            // SAFETY: 16 rows are there, in the matrix or in their copy.
            unsafe { late.heads[parity][panel].prepare(place.0, place.1) };
        }
    }

    /// A quarter of a piece: two steps of 32 columns. Meanwhile the next quarter is converted, of
    /// the piece after this one if `QUARTER` is the last, and the two quarters in the middle scale
    /// the sums of a panel each of the piece before: loads wait for tiles on their way to memory.
    ///
    /// # Safety
    /// The quarter was converted, and what is converted was prepared.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    unsafe fn quarter<const TILES: usize, const QUARTER: usize>(
        &self,
        late: &mut Late,
        piece: usize,
        ahead: &LookAhead,
    ) {
        let (tiles, parity) = (&self.product.tiles, piece % 2);
        let stride = self.blocks * BLOCK_TILES;
        let columns = &self.inputs[piece % self.blocks * BLOCK_TILES + 2 * QUARTER..];
        let source = if QUARTER + 1 == QUARTERS { 1 - parity } else { parity };
        let mut rows = late.source(source, (QUARTER + 1) % QUARTERS);
        if QUARTER == 0 {
            tiles.clear::<0>();
            tiles.clear::<1>();
            tiles.clear::<2>();
            tiles.clear::<3>();
        }
        macro_rules! between {
            ($row:expr) => {
                // SAFETY: the caller's promise.
                unsafe { late.convert::<QUARTER>(&mut rows, source, $row) };
                if QUARTER == 1 || QUARTER == 2 {
                    late.scale::<TILES>(QUARTER - 1, 1 - parity, $row);
                }
                if $row % 2 == 0 {
                    ahead.request();
                }
            };
        }
        macro_rules! step {
            ($half:literal) => {
                tiles.load_lines::<6>(&columns[$half]);
                between!(8 * $half);
                tiles.load_lines::<4>(&late.ring[0][QUARTER % 2][$half]);
                between!(8 * $half + 1);
                tiles.multiply::<0, 4, 6>();
                between!(8 * $half + 2);
                tiles.load_lines::<5>(&late.ring[1][QUARTER % 2][$half]);
                between!(8 * $half + 3);
                tiles.multiply::<2, 5, 6>();
                if TILES == 2 {
                    tiles.load_lines::<7>(&columns[stride + $half]);
                }
                between!(8 * $half + 4);
                if TILES == 2 {
                    tiles.multiply::<1, 4, 7>();
                }
                between!(8 * $half + 5);
                if TILES == 2 {
                    tiles.multiply::<3, 5, 7>();
                }
                between!(8 * $half + 6);
                if TILES == 1 && QUARTER == 0 && $half == 0 {
                    tiles.load_lines::<7>(&columns[DEPTH]);
                    tiles.load_lines::<4>(&late.heads[parity][0].mins);
                    tiles.multiply::<1, 4, 7>();
                    tiles.load_lines::<5>(&late.heads[parity][1].mins);
                    tiles.multiply::<3, 5, 7>();
                }
                between!(8 * $half + 7);
                if TILES == 1 && QUARTER == 0 && $half == 0 {
                    tiles.load_lines::<4>(&late.heads[parity][0].middles);
                    tiles.multiply::<0, 4, 7>();
                    tiles.load_lines::<5>(&late.heads[parity][1].middles);
                    tiles.multiply::<2, 5, 7>();
                }
            };
        }
        step!(0);
        step!(1);
    }

    /// Brings a block's sums out of their tiles. Where two tiles of inputs have taken all of these,
    /// what is to be subtracted is multiplied only now.
    #[inline(always)]
    fn end_block<const TILES: usize>(&self, late: &mut Late, piece: usize) {
        let tiles = &self.product.tiles;
        let sums = piece % self.blocks * BLOCK_TILES + DEPTH;
        let [first, second] = &late.heads[piece % 2];
        let [[a, b, low, next_low], [c, d, high, next_high]] = &mut late.products;
        if TILES == 2 {
            tiles.load_lines::<6>(&self.inputs[sums]);
            tiles.load_lines::<7>(&self.inputs[self.blocks * BLOCK_TILES + sums]);
            tiles.load_lines::<4>(&first.middles);
            tiles.load_lines::<5>(&second.middles);
            tiles.multiply::<0, 4, 6>();
            tiles.multiply::<1, 4, 7>();
            tiles.multiply::<2, 5, 6>();
            tiles.multiply::<3, 5, 7>();
        }
        tiles.store::<0>(a);
        tiles.store::<1>(if TILES == 1 { low } else { b });
        tiles.store::<2>(c);
        tiles.store::<3>(if TILES == 1 { high } else { d });
        if TILES == 2 {
            tiles.clear::<0>();
            tiles.clear::<2>();
            tiles.load_lines::<4>(&first.mins);
            tiles.load_lines::<5>(&second.mins);
            tiles.multiply::<0, 4, 6>();
            tiles.multiply::<2, 5, 6>();
            tiles.clear::<1>();
            tiles.clear::<3>();
            tiles.multiply::<1, 4, 7>();
            tiles.multiply::<3, 5, 7>();
            tiles.store::<1>(next_low);
            tiles.store::<3>(next_high);
            tiles.store::<0>(low);
            tiles.store::<2>(high);
        }
    }

    /// Hands the totals of a piece's rows over.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn store(&self, late: &Late, tokens: &Range<usize>, piece: Option<usize>) {
        let Some((panels, _)) = piece.map(|piece| self.place(piece)) else { return };
        for (rows, totals) in panels.into_iter().zip(&late.totals).filter(|(r, _)| !r.is_empty()) {
            for (first, sums) in tokens.clone().step_by(TILE_ROWS).zip(totals) {
                let tokens = first..tokens.end.min(first + TILE_ROWS);
                self.product.hand_over(sums, tokens, &rows);
            }
        }
    }
}

/// Codes of the next row of a quarter of each panel, and the bytes from a row to the next.
type Source = [(*const u8, usize); 2];

impl Late {
    /// The first row's codes in quarter `quarter` of the heads of `parity`.
    #[inline(always)]
    fn source(&self, parity: usize, quarter: usize) -> Source {
        let [first, second] = &self.heads[parity];
        let first_code = HEAD_BYTES + quarter * QUARTER_BYTES;
        [first.block, second.block].map(|(block, stride)| (block.wrapping_add(first_code), stride))
    }

    /// Makes bfloats of row `row` of the quarter behind `QUARTER`, whose codes `source` has come to
    /// and the heads of `parity` have scales for.
    ///
    /// # Safety
    /// The heads were prepared, and their bytes are there still.
    #[inline(always)]
    unsafe fn convert<const QUARTER: usize>(
        &mut self,
        source: &mut Source,
        parity: usize,
        row: usize,
    ) {
        let quarter = (QUARTER + 1) % QUARTERS;
        for panel in 0..2 {
            let (codes, stride) = source[panel];
            source[panel].0 = codes.wrapping_add(stride);
            let scales = &self.heads[parity][panel].scales[row][2 * quarter..][..2];
            let [first, second] = &mut self.ring[panel][quarter % 2];
            // SAFETY: the caller promises the bytes; scales are 64 times what is below 64, and a
            // row of the table is 64 bytes.
            unsafe {
                let low = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(8));
                let high = _mm512_add_epi16(low, _mm512_set1_epi16(4));
                let words = _mm512_broadcast_i64x4(_mm256_loadu_si256(codes.cast()));
                let table = |scale: u16| {
                    let row = TABLE.0.as_ptr().wrapping_byte_add(usize::from(scale));
                    _mm512_loadu_si512(row.cast())
                };
                first[row] =
                    _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, low), table(scales[0]));
                second[row] =
                    _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, high), table(scales[1]));
            }
        }
    }

    /// Makes bfloats of the first quarter of what was prepared for `parity`.
    ///
    /// # Safety
    /// As [`Late::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    unsafe fn convert_first(&mut self, parity: usize) {
        let mut source = self.source(parity, 0);
        for row in 0..TILE_ROWS {
            // SAFETY: the caller's promise.
            unsafe { self.convert::<{ QUARTERS - 1 }>(&mut source, parity, row) };
        }
    }

    /// Scales the sums of row `row` of a panel by the heads of `parity`, and adds them to its
    /// totals.
    #[inline(always)]
    fn scale<const TILES: usize>(&mut self, panel: usize, parity: usize, row: usize) {
        let [d, e] = self.heads[parity][panel].factors[row];
        let products = &self.products[panel];
        for (tile, total) in self.totals[panel].iter_mut().take(TILES).enumerate() {
            // SAFETY: rows of sums are as large as the vector, and whoever has tiles has vectors.
            unsafe {
                let (d, e) = (_mm512_set1_ps(d), _mm512_set1_ps(e));
                let load = |sums: &Sums| _mm512_loadu_ps(sums[row].as_ptr());
                let sum = _mm512_fmadd_ps(d, load(&products[tile]), load(total));
                let sum = _mm512_fnmadd_ps(e, load(&products[2 + tile]), sum);
                _mm512_storeu_ps(total[row].as_mut_ptr(), sum);
            }
        }
    }
}
