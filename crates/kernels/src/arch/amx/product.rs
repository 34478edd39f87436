//! One unit of a product, by tiles.
//!
//! ```text
//! for each hundred inputs, and each group of panels:      sums [panels, inputs] start at 0
//!     for each 256 columns:                               inputs are laid out as tiles, once
//!         for each two panels of the group:
//!             unpack the two panels that come next (as all instruction sets do)
//!             for each 32 inputs: 4 tiles of sums += 2 tiles of inputs · 2 of weights, 8 times;
//!                 between tile instructions, bfloats are made of the next panels
//! ```
//!
//! Inputs lie where their tokens do, so they are gathered; a group of panels shares that work. The
//! sums of a group stay in the second cache, everything else in the first.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::weights::{Converter, Pending, WeightTiles};
use super::{Sums, TILE_COLS, TILE_ROWS, Tiles};
use crate::arch::avx512::Avx512;
use crate::arch::prefetch;
use crate::formats::rows::LookAhead;
use crate::formats::{BlockFormat, Form, PANEL_COLS, PANEL_WORDS};
use crate::matmul::{self, Unit};

/// Inputs that share one unpacking.
const INPUTS: usize = 128;
/// Tiles of sums: panels of a group, times tiles of inputs.
const TOTALS: usize = 128;
/// Panels of a group, at most: the fewer inputs, the more panels.
const PANELS: usize = 16;
/// Words that are converted together, and fill one tile: one sub-block's, or two's.
const RUN: usize = 8;
/// Tiles that the columns of a panel make.
const DEPTH: usize = PANEL_COLS / TILE_COLS;

/// Working memory of one thread, made when it first multiplies by tiles.
#[repr(C, align(64))]
struct Scratch {
    /// 256 columns of inputs, `[tiles of inputs, DEPTH]`.
    inputs: [[[__m512i; TILE_ROWS]; DEPTH]; INPUTS / TILE_ROWS],
    /// Two panels at work, and the two that come next.
    weights: [[WeightTiles; 2]; 2],
    /// Running sums, `[panels, tiles of inputs]`.
    totals: [Sums; TOTALS],
}

thread_local! {
    static SCRATCH: RefCell<Option<Box<Scratch>>> = const { RefCell::new(None) };
}

/// Computes `unit`, whose inputs have bfloats.
///
/// # Safety
/// The machine has AVX-512 and tiles.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(in crate::arch) unsafe fn run<F: BlockFormat>(unit: &Unit<'_>) {
    assert!(unit.weight.cols() > 0, "sums begin with their first columns");
    SCRATCH.with_borrow_mut(|scratch| {
        let scratch = scratch.get_or_insert_with(|| {
            // SAFETY: zeros are valid numbers, and the struct holds nothing else.
            unsafe { Box::<Scratch>::new_zeroed().assume_init() }
        });
        // SAFETY: the caller promises AVX-512 and tiles.
        let product = unsafe { Product { s: Avx512::new(), tiles: Tiles::new(), unit } };
        let tokens = unit.tokens.len();
        // As many passes as are needed, all about equally long.
        let step = tokens.div_ceil(tokens.div_ceil(INPUTS));
        for first in (0..tokens).step_by(step) {
            let tokens = first..tokens.min(first + step);
            let group = TILE_ROWS * PANELS.min(TOTALS / tokens.len().div_ceil(TILE_ROWS));
            for first in unit.rows.clone().step_by(group) {
                let rows = first..unit.rows.end.min(first + group);
                product.multiply::<F>(scratch, tokens.clone(), rows.clone());
                product.store(scratch, tokens.clone(), rows);
            }
        }
    });
}

struct Product<'a> {
    s: Avx512,
    tiles: Tiles,
    unit: &'a Unit<'a>,
}

/// What is multiplied in one go: some columns of two panels.
#[derive(Clone)]
struct Piece {
    /// Blocks of the weights' rows.
    blocks: Range<usize>,
    /// Rows of weights.
    rows: Range<usize>,
    /// The first panel's place in the group.
    panel: usize,
}

/// The pieces of a group, all panels of some columns after each other.
struct Pieces {
    /// Rows of weights.
    rows: Range<usize>,
    /// Blocks of a row.
    num_blocks: usize,
    /// Blocks of a panel.
    per_panel: usize,
}

impl Pieces {
    fn len(&self) -> usize {
        self.rows.len().div_ceil(2 * TILE_ROWS) * self.num_blocks.div_ceil(self.per_panel)
    }

    fn get(&self, index: usize) -> Option<Piece> {
        let pairs = self.rows.len().div_ceil(2 * TILE_ROWS);
        let (block, pair) = (index / pairs * self.per_panel, index % pairs);
        let first = self.rows.start + pair * 2 * TILE_ROWS;
        (index < self.len()).then(|| Piece {
            blocks: block..self.num_blocks.min(block + self.per_panel),
            rows: first..self.rows.end.min(first + 2 * TILE_ROWS),
            panel: 2 * pair,
        })
    }
}

impl Product<'_> {
    /// Sets `totals` to the products of the weights' `rows` with the inputs of `tokens`.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn multiply<F: BlockFormat>(
        &self,
        scratch: &mut Scratch,
        tokens: Range<usize>,
        rows: Range<usize>,
    ) {
        let pieces = Pieces {
            rows: rows.clone(),
            num_blocks: self.unit.weight.cols() / F::BLOCK_LEN,
            per_panel: PANEL_COLS / F::BLOCK_LEN,
        };
        #[expect(clippy::large_stack_arrays, reason = "20 KiB of the 2 MiB that a worker has")]
        let mut pending = [Pending::new(self.s), Pending::new(self.s)];
        let mut before: Option<Piece> = None;
        let mut half = 0;
        for index in 0..=pieces.len() {
            let piece = pieces.get(index);
            if let Some(piece) = &piece {
                self.unpack::<F>(piece, &mut pending);
            }
            let mut convert = Convert::<F::Form> {
                pending: &pending,
                ahead: self.look_ahead::<F>(pieces.get(index + 1)),
                done: 0,
                words: piece.as_ref().map_or(0, |_| 2 * PANEL_WORDS),
                form: PhantomData,
            };
            if let Some(piece) = before {
                if piece.panel == 0 {
                    self.gather(scratch, tokens.clone(), piece.blocks.start * F::BLOCK_LEN);
                }
                self.quads(scratch, &piece, (tokens.len(), F::BLOCK_LEN), (half, &mut convert));
                half = 1 - half;
            }
            convert.finish(&mut scratch.weights[half]);
            before = piece;
        }
    }

    /// Requests the weights of a piece from memory, two rows with each run that is converted: all
    /// at once would fill the processor's line buffers and stall whatever reads next.
    #[inline(always)]
    fn look_ahead<F: BlockFormat>(&self, piece: Option<Piece>) -> LookAhead {
        let Some(Piece { blocks, rows, .. }) = piece else { return LookAhead::nothing() };
        let (bytes, stride) = (self.unit.weight.bytes(), self.unit.weight.row_bytes());
        let first = rows.start * stride + blocks.start * F::BLOCK_BYTES;
        let end = bytes.len().min(rows.end * stride);
        let rows_per_run = 2 * TILE_ROWS / (2 * PANEL_WORDS / RUN);
        let lines = (blocks.len() * F::BLOCK_BYTES).div_ceil(64);
        LookAhead::new(&bytes[..end], first, stride, (rows_per_run, lines))
    }

    /// Unpacks both panels of a piece.
    #[inline(always)]
    fn unpack<F: BlockFormat>(&self, piece: &Piece, pending: &mut [Pending; 2]) {
        for (first, pending) in piece.rows.clone().step_by(TILE_ROWS).zip(pending) {
            let rows = first..piece.rows.end.min(first + TILE_ROWS);
            let place = (rows, piece.blocks.clone());
            let nothing = LookAhead::nothing();
            matmul::unpack::<_, F>(self.s, self.unit, &mut pending.panel, place, &nothing);
            // SAFETY: a machine with tiles has AVX-512.
            unsafe { pending.prepare::<F::Form>() };
        }
    }

    /// Lays a panel's columns of the inputs out as tiles, from column `col` of the weights on.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn gather(&self, scratch: &mut Scratch, tokens: Range<usize>, col: usize) {
        let unit = self.unit;
        for (index, token) in tokens.enumerate() {
            let row = unit.input.bfloats(unit.tokens.at(token), unit.input_col + col);
            for line in row[PANEL_COLS..].chunks(TILE_COLS).take(DEPTH) {
                prefetch(line.as_ptr().cast());
            }
            let row: &[u16; PANEL_COLS] = row.first_chunk().expect("rows are padded by a panel");
            let tiles = &mut scratch.inputs[index / TILE_ROWS];
            for (tile, line) in tiles.iter_mut().zip(row.as_chunks::<TILE_COLS>().0) {
                // SAFETY: the array is 64 bytes.
                tile[index % TILE_ROWS] = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            }
        }
    }

    /// Adds the products of a piece, whose weights are in half `half`, with all inputs to their
    /// totals.
    #[inline(always)]
    fn quads<F: Form>(
        &self,
        scratch: &mut Scratch,
        piece: &Piece,
        (inputs, block_len): (usize, usize),
        (half, convert): (usize, &mut Convert<'_, F>),
    ) {
        let input_tiles = inputs.div_ceil(TILE_ROWS);
        for first in (0..input_tiles).step_by(2) {
            let at = piece.panel * input_tiles + first;
            let quad = Quad {
                tiles: &self.tiles,
                half,
                first,
                totals: [at, at + input_tiles],
                begins: piece.blocks.start == 0,
                two: input_tiles - first > 1,
                both: piece.rows.len() > TILE_ROWS,
            };
            let depth = (piece.blocks.len() * block_len).div_ceil(TILE_COLS);
            let few = depth * input_tiles.div_ceil(2) < 2 * PANEL_WORDS / RUN;
            quad.begin(scratch);
            for depth in 0..depth {
                quad.step(scratch, depth, convert, few);
            }
            quad.end(scratch);
        }
    }

    /// Hands the totals over.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn store(&self, scratch: &Scratch, tokens: Range<usize>, rows: Range<usize>) {
        let input_tiles = tokens.len().div_ceil(TILE_ROWS);
        let panels = rows.clone().step_by(TILE_ROWS).zip(scratch.totals.chunks(input_tiles));
        for (panel, totals) in panels {
            let rows = panel..rows.end.min(panel + TILE_ROWS);
            for (sums, token) in totals.as_flattened().iter().zip(tokens.clone()) {
                // SAFETY: an array is as large as the vector.
                let sums = unsafe { _mm512_loadu_ps(sums.as_ptr()) };
                self.unit.store(self.s, sums, token, rows.clone());
            }
        }
    }
}

/// The conversion of the two panels that come next, a step at a time.
struct Convert<'a, F> {
    pending: &'a [Pending; 2],
    /// Weights to request from memory meanwhile, those after them.
    ahead: LookAhead,
    /// Words converted so far, of both panels.
    done: usize,
    /// Words to convert.
    words: usize,
    form: PhantomData<F>,
}

impl<'a, F: Form> Convert<'a, F> {
    /// The next [`RUN`] words, if any are left.
    #[inline(always)]
    fn next(&mut self) -> Option<Run<'a>> {
        if self.done >= self.words {
            return None;
        }
        let panel = self.done / PANEL_WORDS;
        // Two tiles past the one that is being multiplied: loads wait for stores just before them
        // whose addresses agree with theirs in the lowest twelve bits.
        let first = (self.done + 2 * RUN) % PANEL_WORDS;
        let pending: &'a Pending = &self.pending[panel];
        self.done += RUN;
        self.ahead.request();
        Some(Run {
            words: pending.panel.q[first..].first_chunk().expect("a panel is whole runs"),
            by: [pending.converter::<F>(first), pending.converter::<F>(first + RUN / 2)],
            panel,
            first,
        })
    }

    /// Converts what is left.
    #[inline(always)]
    fn finish(&mut self, tiles: &mut [WeightTiles; 2]) {
        while let Some(run) = self.next() {
            for word in 0..RUN {
                run.convert(word, tiles);
            }
        }
    }
}

/// Words of one sub-block, or two.
struct Run<'a> {
    words: &'a [__m512i; RUN],
    /// For each half of them.
    by: [Converter; 2],
    panel: usize,
    /// The first word's place in the panel.
    first: usize,
}

impl Run<'_> {
    /// Converts one word of [`RUN`].
    #[inline(always)]
    fn convert(&self, word: usize, tiles: &mut [WeightTiles; 2]) {
        let lines = tiles[self.panel].as_flattened_mut().as_chunks_mut::<2>().0;
        // SAFETY: a machine with tiles of bfloats has the instructions.
        lines[self.first + word] = unsafe { self.by[word / (RUN / 2)].convert(self.words[word]) };
    }
}

/// One or two tiles of inputs by one or two panels.
struct Quad<'a> {
    tiles: &'a Tiles,
    /// Where the weights are.
    half: usize,
    /// The first tile of inputs.
    first: usize,
    /// The first tile's totals with each panel.
    totals: [usize; 2],
    /// Whether sums start here.
    begins: bool,
    /// Whether there are two tiles of inputs.
    two: bool,
    /// Whether there are two panels.
    both: bool,
}

impl Quad<'_> {
    #[inline(always)]
    fn begin(&self, scratch: &Scratch) {
        let (tiles, [first, second]) = (self.tiles, self.totals);
        if self.begins {
            tiles.clear::<0>();
            tiles.clear::<1>();
            tiles.clear::<2>();
            tiles.clear::<3>();
            return;
        }
        tiles.load_sums::<0>(&scratch.totals[first]);
        if self.two {
            tiles.load_sums::<1>(&scratch.totals[first + 1]);
        }
        if self.both {
            tiles.load_sums::<2>(&scratch.totals[second]);
        }
        if self.both && self.two {
            tiles.load_sums::<3>(&scratch.totals[second + 1]);
        }
    }

    /// Adds the products of 32 columns. After each tile instruction a word of the next panels is
    /// converted, or two where there are `few` steps.
    #[inline(always)]
    fn step<F: Form>(
        &self,
        scratch: &mut Scratch,
        depth: usize,
        convert: &mut Convert<'_, F>,
        few: bool,
    ) {
        let [a, b] = &mut scratch.weights;
        let (now, next) = if self.half == 0 { (a, b) } else { (b, a) };
        let inputs = &scratch.inputs[self.first..];
        let inputs = [&inputs[0][depth], &inputs[usize::from(self.two)][depth]];
        let weights = [&now[0][depth], &now[1][depth]];
        match (convert.next(), few) {
            (None, _) => self.multiply(inputs, weights, |_| ()),
            (Some(run), false) => self.multiply(inputs, weights, |word| run.convert(word, next)),
            (Some(run), true) => {
                let (first, second) = (run, convert.next().expect("runs are even in number"));
                self.multiply(inputs, weights, |word| {
                    first.convert(word, next);
                    second.convert(word, next);
                });
            }
        }
    }

    /// Multiplies up to two tiles of inputs with up to two of weights, and calls `between` with
    /// `0..RUN` after each instruction.
    #[inline(always)]
    fn multiply(
        &self,
        inputs: [&[__m512i; TILE_ROWS]; 2],
        weights: [&[__m512i; TILE_ROWS]; 2],
        mut between: impl FnMut(usize),
    ) {
        let tiles = self.tiles;
        tiles.load_lines::<4>(inputs[0]);
        between(0);
        tiles.load_lines::<6>(weights[0]);
        between(1);
        tiles.multiply::<0, 4, 6>();
        between(2);
        if self.two {
            tiles.load_lines::<5>(inputs[1]);
        }
        between(3);
        if self.two {
            tiles.multiply::<1, 5, 6>();
        }
        if self.both {
            tiles.load_lines::<7>(weights[1]);
        }
        between(4);
        if self.both {
            tiles.multiply::<2, 4, 7>();
        }
        between(5);
        if self.both && self.two {
            tiles.multiply::<3, 5, 7>();
        }
        between(6);
        between(7);
    }

    #[inline(always)]
    fn end(&self, scratch: &mut Scratch) {
        let (tiles, [first, second]) = (self.tiles, self.totals);
        tiles.store::<0>(&mut scratch.totals[first]);
        if self.two {
            tiles.store::<1>(&mut scratch.totals[first + 1]);
        }
        if self.both {
            tiles.store::<2>(&mut scratch.totals[second]);
        }
        if self.both && self.two {
            tiles.store::<3>(&mut scratch.totals[second + 1]);
        }
    }
}
