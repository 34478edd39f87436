//! Panels of any quantised format as bfloats, laid out as tiles, a row at a time.
//!
//! A nibble has only sixteen values: `scale * level - shift` of each is rounded to bfloats once for
//! its sub-block, and a permutation of words looks 32 columns up at once. Bytes are widened and
//! multiplied, and six bits are put together as bytes first. Formats whose codes lie in a way of
//! their own are unpacked as for all instruction sets, lane `i` for row `i`, and transposed.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::{TILE_COLS, TILE_ROWS, bfloats};
use crate::arch::avx512::Avx512;
use crate::formats::{
    BlockFormat, Codes, Form, NIBBLE, PANEL_BYTES_MAX, PANEL_COLS, PER_ROW, Panel,
};
use crate::lanes::transpose_16;

/// A tile as it lies in memory: 16 rows of 64 bytes.
pub(super) type Tile = [__m512i; TILE_ROWS];
/// Tiles of a panel, one after the other along the columns: line `i` of tile `t` holds columns
/// `32 t..32 t + 32` of row `i`.
pub(super) type WeightTiles = [Tile; DEPTH];

/// Tiles that the columns of a panel make.
pub(super) const DEPTH: usize = PANEL_COLS / TILE_COLS;
/// Quarters of a panel's columns: what is converted of a row at a time, and fills two lines.
pub(super) const QUARTERS: usize = DEPTH / 2;
/// Sub-blocks in a panel, at most.
const SUBS: usize = 16;

/// A panel that waits to be converted: its scales, and codes that cannot be read from the file.
#[repr(C, align(64))]
pub(super) struct Pending {
    pub(super) panel: Panel<Avx512>,
    /// What codes are multiplied with, `[sub-block, row]`; then what is subtracted, unless
    /// [`Of::CENTRED`].
    scales: [[[f32; TILE_ROWS]; SUBS]; 2],
    /// Rows of codes of formats that are [`Codes::Various`]; blocks of the file where it has fewer
    /// rows or columns than a panel.
    copy: [[u8; COPY_BYTES]; TILE_ROWS],
    /// Where the first row's blocks begin in the file, and the bytes from one row to the next; null
    /// where rows are in `copy`.
    rows: (*const u8, usize),
}

/// Bytes from one copied row to the next.
const COPY_BYTES: usize = PANEL_BYTES_MAX.next_multiple_of(64);
/// [`Pending::rows`] of rows that are in its `copy`.
const COPIED: (*const u8, usize) = (std::ptr::null(), 0);

/// Half a quarter of a panel: eight rows by 64 columns.
#[derive(Clone, Copy)]
pub(super) struct Stripe<F> {
    /// Codes of the first row's columns.
    codes: *const u8,
    /// Bytes from one row to the next.
    stride: usize,
    /// The first row's first scale.
    scales: *const f32,
    /// The first row's line in the first of two tiles.
    lines: *mut __m512i,
    /// The quarter it is half of.
    quarter: usize,
    format: PhantomData<F>,
}

/// Rows of a stripe.
pub(super) const STRIPE_ROWS: usize = TILE_ROWS / 2;

/// What `q` is for a weight of zero, where that is the same for all blocks of the format.
const fn centre<F: Form>() -> Option<i32> {
    if F::SYMMETRIC && F::OFFSET != PER_ROW { Some(F::OFFSET) } else { None }
}

/// What stands for each nibble of a format, before it is multiplied.
const fn nibble_values<F: BlockFormat>() -> [f32; 16] {
    let (mut values, mut i) = ([0.0; 16], 0);
    while let Codes::Nibbles { levels, .. } = F::CODES
        && i < 16
    {
        let zero = match centre::<F::Form>() {
            Some(centre) => centre,
            None => 0,
        };
        values[i] = (levels[i] as i32 - zero) as f32;
        i += 1;
    }
    values
}

/// For each of 32 columns in 16 bytes of nibbles, in runs of `run`: the byte (in the lower half of
/// a word; the upper half becomes zero), and by how much it is shifted right.
const fn spread(run: usize) -> ([u8; 64], [u16; 32]) {
    let (mut bytes, mut shifts, mut col) = ([0x80; 64], [0; 32], 0);
    while col < 32 {
        bytes[2 * col] = (col / (2 * run) * run + col % run) as u8;
        shifts[col] = (col / run % 2 * 4) as u16;
        col += 1;
    }
    (bytes, shifts)
}

/// For the first 64 of 128 columns of [`Codes::Sixes`], and for the others: by how much nibbles are
/// shifted right, and words of pairs of bits turned right to bring them to bits 4 and 5.
const SIXES: [([u16; 32], [u32; 16]); 2] = {
    let (near, far) = ([28, 30], [0, 2]);
    [([0; 32], halves(near)), ([4; 32], halves(far))]
};

/// Eight times the first, then eight times the second.
const fn halves([first, second]: [u32; 2]) -> [u32; 16] {
    let (mut all, mut i) = ([first; 16], 8);
    while i < 16 {
        all[i] = second;
        i += 1;
    }
    all
}

/// Constants of a format.
struct Of<F>(PhantomData<F>);

impl<F: BlockFormat> Of<F> {
    const NIBBLES: [f32; 16] = nibble_values::<F>();
    const SPREAD: ([u8; 64], [u16; 32]) = match F::CODES {
        Codes::Nibbles { run: run @ ..=16, .. } => spread(run),
        _ => spread(16),
    };
    /// Whether [`centre`] is taken out of codes before they are multiplied.
    const CENTRED: bool = centre::<F::Form>().is_some()
        && matches!(F::CODES, Codes::Nibbles { .. } | Codes::Bytes { .. });
    /// Bytes before the first code.
    const FIRST: usize = match F::CODES {
        Codes::Nibbles { first, .. } | Codes::Bytes { first } => first,
        Codes::Sixes { .. } | Codes::Various => 0,
    };
    /// Bytes that hold the codes of 32 columns.
    const HALF: usize = if matches!(F::CODES, Codes::Nibbles { .. }) { 16 } else { 32 };
    /// Bytes from 32 columns to the next, and from a quarter of a panel to the next.
    const STEPS: [usize; 2] = match (F::CODES, F::BLOCK_LEN) {
        (Codes::Nibbles { .. } | Codes::Bytes { .. }, 32) => [F::BLOCK_BYTES, 2 * F::BLOCK_BYTES],
        (Codes::Nibbles { .. } | Codes::Bytes { .. }, 64) => [Self::HALF, F::BLOCK_BYTES],
        (Codes::Sixes { .. }, _) => [0, 0],
        _ => [Self::HALF, 2 * Self::HALF],
    };
    /// Scales from one column of a quarter on, in numbers.
    const fn scale_at(col: usize) -> usize {
        col / F::Form::SUB_LEN * TILE_ROWS
    }
}

impl Pending {
    /// Makes scales and shifts of what was unpacked, and finds or makes rows of codes.
    /// `bytes` begin with the first of `rows` rows of `row_bytes` bytes, `stride` apart.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    pub(super) fn prepare<F: BlockFormat>(
        &mut self,
        bytes: &[u8],
        stride: usize,
        (rows, row_bytes): (usize, usize),
    ) {
        for sub in 0..PANEL_COLS / F::Form::SUB_LEN {
            let scales = scale_and_shift::<F::Form>(&self.panel, sub);
            for (kind, scales) in self.scales.iter_mut().zip(scales) {
                // SAFETY: an array is as large as the vector.
                unsafe { _mm512_storeu_ps(kind[sub].as_mut_ptr(), scales) };
            }
        }
        let whole = PANEL_COLS / F::BLOCK_LEN * F::BLOCK_BYTES;
        self.rows = COPIED;
        if matches!(F::CODES, Codes::Various) {
            for (quarter, words) in self.panel.q.as_chunks::<TILE_ROWS>().0.iter().enumerate() {
                let mut lines = *words;
                transpose(&mut lines);
                for (row, line) in self.copy.iter_mut().zip(&lines) {
                    let codes = &mut row[64 * quarter..][..64];
                    // SAFETY: the codes are as large as the vector.
                    unsafe { _mm512_storeu_si512(codes.as_mut_ptr().cast(), *line) };
                }
            }
        } else if rows == TILE_ROWS && row_bytes == whole {
            assert!((TILE_ROWS - 1) * stride + whole <= bytes.len(), "a panel past its matrix");
            self.rows = (bytes.as_ptr(), stride);
        } else {
            for (row, copy) in self.copy.iter_mut().take(rows).enumerate() {
                copy[..row_bytes].copy_from_slice(&bytes[row * stride..][..row_bytes]);
            }
        }
    }

    /// A panel without rows, of which any numbers are made.
    pub(super) fn prepare_nothing(&mut self) {
        self.rows = COPIED;
    }

    /// The first stripe, on its way to `tiles`.
    #[inline(always)]
    pub(super) fn stripe<F: BlockFormat>(&self, tiles: &mut WeightTiles) -> Stripe<F> {
        let (first, stride) =
            if self.rows.0.is_null() { (self.copy.as_ptr().cast(), COPY_BYTES) } else { self.rows };
        Stripe {
            codes: first.wrapping_add(Of::<F>::FIRST),
            stride,
            scales: self.scales.as_ptr().cast(),
            lines: tiles.as_mut_ptr().cast(),
            quarter: 0,
            format: PhantomData,
        }
    }
}

impl<F: BlockFormat> Stripe<F> {
    /// From a panel's first stripe to its rows `8 half..` of a quarter of the columns.
    #[inline(always)]
    pub(super) fn at(&self, (half, quarter): (usize, usize)) -> Self {
        let row = half * STRIPE_ROWS;
        let codes = row * self.stride + quarter * Of::<F>::STEPS[1];
        Self {
            codes: self.codes.wrapping_add(codes),
            stride: self.stride,
            scales: self.scales.wrapping_add(Of::<F>::scale_at(64 * quarter) + row),
            lines: self.lines.wrapping_add(2 * quarter * TILE_ROWS + row),
            quarter,
            format: PhantomData,
        }
    }

    /// Converts row `row`, below [`STRIPE_ROWS`].
    ///
    /// # Safety
    /// The panel was prepared, and it, its bytes and the tiles are still there.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    pub(super) unsafe fn convert(&self, row: usize) {
        // SAFETY: the caller promises what `stripe` pointed to; its constants keep within a panel,
        // and a row's line in a tile is followed by the same row's line in the next tile.
        unsafe {
            let codes = self.codes.add(row * self.stride);
            let lines = match F::CODES {
                Codes::Nibbles { run: 32, .. } => self.both_halves(codes, row),
                Codes::Sixes { upper } => self.sixes(codes, upper, row),
                _ => {
                    let next = codes.add(Of::<F>::STEPS[0]);
                    [self.half(codes, row, 0), self.half(next, row, 32)]
                }
            };
            self.lines.add(row).write(lines[0]);
            self.lines.add(TILE_ROWS + row).write(lines[1]);
        }
    }

    /// 32 columns, from column `col` of the quarter on.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn half(&self, codes: *const u8, row: usize, col: usize) -> __m512i {
        // SAFETY: the caller promises the same.
        unsafe {
            match F::CODES {
                Codes::Nibbles { .. } => self.nibbles(codes, row, col),
                _ => self.bytes(codes, row, col),
            }
        }
    }

    /// The 16 values that nibbles of the sub-block of column `col` stand for.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn levels(&self, row: usize, col: usize) -> __m512 {
        // SAFETY: an array is as large as the vector; the caller promises the rest.
        unsafe { self.scaled(_mm512_loadu_ps(Of::<F>::NIBBLES.as_ptr()), row, col) }
    }

    /// Codes of the sub-block of column `col`, times their scale.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn scaled(&self, codes: __m512, row: usize, col: usize) -> __m512 {
        // SAFETY: scales of all sub-blocks and rows follow one another, then all shifts.
        let (scale, shift) = unsafe {
            let scale = self.scales.add(Of::<F>::scale_at(col) + row);
            (*scale, scale.add(SUBS * TILE_ROWS))
        };
        let scale = _mm512_set1_ps(scale);
        if Of::<F>::CENTRED {
            return _mm512_mul_ps(codes, scale);
        }
        // SAFETY: as above.
        _mm512_fmsub_ps(codes, scale, _mm512_set1_ps(unsafe { *shift }))
    }

    /// Nibbles of two sub-blocks in 32 bytes, one in the lower halves and one in the upper.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn both_halves(&self, codes: *const u8, row: usize) -> [__m512i; 2] {
        // SAFETY: the caller promises the bytes and the scales.
        let (bytes, even, odd) = unsafe {
            (_mm256_loadu_si256(codes.cast()), self.levels(row, 0), self.levels(row, 32))
        };
        let words = _mm512_cvtepu8_epi16(bytes);
        // The permutation reads five bits: the table's upper half is for the lower nibbles, whose
        // fifth bit has to be set anyway.
        let table = bfloats(odd, even);
        let (nibble, upper) = (_mm512_set1_epi16(15), _mm512_set1_epi16(16));
        // upper | (words & nibble)
        let low = _mm512_ternarylogic_epi32::<0xf8>(upper, words, nibble);
        let high = _mm512_srli_epi16::<4>(words);
        [_mm512_permutexvar_epi16(low, table), _mm512_permutexvar_epi16(high, table)]
    }

    /// 64 columns of six bits of a block, see [`Codes::Sixes`].
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn sixes(&self, block: *const u8, upper: usize, row: usize) -> [__m512i; 2] {
        let (half, odd) = (self.quarter / 2, self.quarter % 2);
        let (shift, turns) = &SIXES[odd];
        let mut codes = [0u8; 64];
        // SAFETY: a block has both planes, arrays are as large as the vectors, and the caller
        // promises the rest.
        unsafe {
            let nibbles = _mm512_loadu_si512(block.add(64 * half).cast());
            let nibbles = _mm512_srlv_epi16(nibbles, _mm512_loadu_si512(shift.as_ptr().cast()));
            let pairs = _mm256_loadu_si256(block.add(upper + 32 * half).cast());
            let pairs = _mm512_broadcast_i64x4(pairs);
            let pairs = _mm512_rorv_epi32(pairs, _mm512_loadu_si512(turns.as_ptr().cast()));
            let pairs = _mm512_and_si512(pairs, _mm512_set1_epi8(0x30));
            // pairs | (nibbles & 15)
            let six = _mm512_ternarylogic_epi32::<0xf8>(pairs, nibbles, _mm512_set1_epi8(15));
            // Widening reads memory: taking a vector apart would cost as much again.
            _mm512_storeu_si512(codes.as_mut_ptr().cast(), six);
            [self.bytes(codes.as_ptr(), row, 0), self.bytes(codes.as_ptr().add(32), row, 32)]
        }
    }

    /// 32 columns of nibbles in 16 bytes.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn nibbles(&self, codes: *const u8, row: usize, col: usize) -> __m512i {
        let (place, shift) = &Of::<F>::SPREAD;
        // SAFETY: the arrays are as large as the vectors, and the caller promises the bytes.
        let (bytes, place, shift) = unsafe {
            (
                _mm512_broadcast_i32x4(_mm_loadu_si128(codes.cast())),
                _mm512_loadu_si512(place.as_ptr().cast()),
                _mm512_loadu_si512(shift.as_ptr().cast()),
            )
        };
        let words = _mm512_srlv_epi16(_mm512_shuffle_epi8(bytes, place), shift);
        if F::Form::SUB_LEN == 16 {
            // SAFETY: the caller promises the scales.
            let (first, second) = unsafe { (self.levels(row, col), self.levels(row, col + 16)) };
            let upper = _mm512_inserti64x4::<1>(_mm512_setzero_si512(), _mm256_set1_epi16(16));
            let index = _mm512_ternarylogic_epi32::<0xf8>(upper, words, _mm512_set1_epi16(15));
            return _mm512_permutexvar_epi16(index, bfloats(first, second));
        }
        // SAFETY: as above.
        let levels = unsafe { self.levels(row, col) };
        // Both halves of the table are the same, so the fifth bit is free.
        _mm512_permutexvar_epi16(words, bfloats(levels, levels))
    }

    /// 32 columns of bytes.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn bytes(&self, codes: *const u8, row: usize, col: usize) -> __m512i {
        // SAFETY: the caller promises bytes and scales.
        let (low, high) =
            unsafe { (self.widened(codes, row, col), self.widened(codes.add(16), row, col + 16)) };
        bfloats(low, high)
    }

    /// 16 columns of bytes.
    ///
    /// # Safety
    /// As [`Stripe::convert`].
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    #[inline]
    unsafe fn widened(&self, codes: *const u8, row: usize, col: usize) -> __m512 {
        // SAFETY: the caller promises the bytes.
        let bytes = unsafe { _mm_loadu_si128(codes.cast()) };
        let codes = match F::CODES {
            Codes::Bytes { .. } => _mm512_cvtepi8_epi32(bytes),
            _ => _mm512_cvtepu8_epi32(bytes),
        };
        // SAFETY: the caller promises the scales.
        unsafe { self.scaled(_mm512_cvtepi32_ps(codes), row, col) }
    }
}

/// Word `i` of line `j` becomes word `j` of line `i`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
pub(super) fn transpose(lines: &mut Tile) {
    let mut words = [_mm512_setzero_ps(); TILE_ROWS];
    for (words, line) in words.iter_mut().zip(&*lines) {
        *words = _mm512_castsi512_ps(*line);
    }
    // SAFETY: the machine has AVX-512.
    let words = unsafe { transpose_16(words) };
    for (line, words) in lines.iter_mut().zip(&words) {
        *line = _mm512_castps_si512(*words);
    }
}

/// `d * sc` and `e * m` of sub-block `sub`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
#[inline]
fn scale_and_shift<F: Form>(panel: &Panel<Avx512>, sub: usize) -> [__m512; 2] {
    let low =
        |word: __m512i| _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(word)));
    let offset = _mm512_set1_ps(F::OFFSET as f32);
    if F::INPUT_LEN < PANEL_COLS {
        let d = panel.d[sub];
        let shift = match F::OFFSET {
            // There `m` is negated.
            PER_ROW => _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(d, low(panel.m[sub % 8]))),
            _ if F::SYMMETRIC => _mm512_mul_ps(d, offset),
            _ => _mm512_mul_ps(panel.e[sub % 8], offset),
        };
        return [d, shift];
    }
    let sc = panel.sc[sub];
    let sc = if F::Q_MAX == NIBBLE { low(sc) } else { _mm512_cvtepi32_ps(sc) };
    let scale = _mm512_mul_ps(panel.d[0], sc);
    if F::SYMMETRIC {
        return [scale, _mm512_mul_ps(scale, offset)];
    }
    let two = panel.m[sub / 2];
    let m = if sub.is_multiple_of(2) {
        low(two)
    } else {
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(two))
    };
    [scale, _mm512_mul_ps(panel.e[0], m)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposing_moves_word_i_of_line_j_to_word_j_of_line_i() {
        if !is_x86_feature_detected!("avx512bf16") {
            return;
        }
        let words: [[u32; 16]; 16] =
            std::array::from_fn(|line| std::array::from_fn(|word| (16 * line + word) as u32));
        // SAFETY: both types are a kilobyte of anything, and the processor has the instructions.
        let turned: [[u32; 16]; 16] = unsafe {
            let mut lines = std::mem::transmute::<[[u32; 16]; 16], Tile>(words);
            transpose(&mut lines);
            std::mem::transmute(lines)
        };
        for (line, words) in turned.iter().enumerate() {
            for (word, value) in words.iter().enumerate() {
                assert_eq!(*value as usize, 16 * word + line);
            }
        }
    }
}
