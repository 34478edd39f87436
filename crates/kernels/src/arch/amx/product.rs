//! One unit of a product, by tiles.
//!
//! ```text
//! for each hundred inputs, and as many columns of them as fit into the second cache:
//!     lay the inputs out as tiles, once
//!     for each two panels of rows, and each 256 of the columns:
//!         scales of what comes next are unpacked
//!         for each 32 inputs: 4 tiles of sums += 2 tiles of weights · 2 of inputs, 8 times;
//!             between tile instructions, a row at a time, bfloats are made of what comes next,
//!             and what comes after that is requested from memory
//! ```
//!
//! Rows are walked along their columns, two panels at a time: memory is read twice as fast that
//! way as when all rows of a unit take turns.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use super::late::{self, Late};
use super::weights::{DEPTH, Pending, QUARTERS, STRIPE_ROWS, Stripe, Tile, WeightTiles, transpose};
use super::{Sums, TILE_COLS, TILE_ROWS, Tiles};
use crate::arch::avx512::Avx512;
use crate::formats::rows::LookAhead;
use crate::formats::{BlockFormat, Codes, PANEL_COLS};
use crate::matmul::{self, Unit};

/// Inputs that share one conversion.
const INPUTS: usize = 128;
/// Tiles of inputs, `[inputs, columns]`: a megabyte, half of the second cache.
const INPUT_TILES: usize = 1024;
/// Tiles of sums, where the columns of a unit are taken in several parts.
const TOTALS: usize = 128;

/// Working memory of one thread, made when it first multiplies by tiles.
#[repr(C, align(64))]
struct Scratch {
    /// Inputs as tiles, `[tiles of inputs, tiles of columns]`: lane `i` of line `l` holds columns
    /// `2 l` and `2 l + 1` of input `i`.
    inputs: [Tile; INPUT_TILES],
    /// Two panels at work, and the two that come next.
    weights: [[WeightTiles; 2]; 2],
    /// Running sums, `[panels, tiles of inputs]`.
    totals: [Sums; TOTALS],
    /// The two panels that come next, before they are bfloats.
    pending: [Pending; 2],
    late: Late,
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
            // SAFETY: zeros are valid numbers and pointers, and the struct holds nothing else.
            unsafe { Box::<Scratch>::new_zeroed().assume_init() }
        });
        // SAFETY: the caller promises AVX-512 and tiles.
        let product = unsafe { Product { s: Avx512::new(), tiles: Tiles::new(), unit } };
        let span = unit.span.clone();
        // As many passes as are needed, all about equally long.
        let step = span.len().div_ceil(span.len().div_ceil(INPUTS));
        for first in span.clone().step_by(step) {
            product.pass::<F>(scratch, first..span.end.min(first + step));
        }
    });
}

pub(super) struct Product<'a> {
    s: Avx512,
    pub(super) tiles: Tiles,
    pub(super) unit: &'a Unit<'a>,
}

/// What is multiplied in one go: some columns of two panels.
#[derive(Clone)]
struct Piece {
    /// Blocks of the weights' rows.
    blocks: Range<usize>,
    /// Rows of weights.
    rows: Range<usize>,
    /// The first panel's place among the totals.
    panel: usize,
    /// Whether it is the first piece of its rows in the part, and the last.
    ends: [bool; 2],
}

/// The pieces of some rows and columns: all of two panels, then the next two.
struct Part {
    rows: Range<usize>,
    blocks: Range<usize>,
    /// Blocks of a panel.
    per_panel: usize,
    /// Whether these are all columns: then no more than two panels have sums at a time.
    whole: bool,
}

impl Part {
    fn get(&self, index: usize) -> Option<Piece> {
        let steps = self.blocks.len().div_ceil(self.per_panel);
        let (pair, step) = (index / steps, index % steps);
        let block = self.blocks.start + step * self.per_panel;
        let first = self.rows.start + pair * 2 * TILE_ROWS;
        (first < self.rows.end).then(|| Piece {
            blocks: block..self.blocks.end.min(block + self.per_panel),
            rows: first..self.rows.end.min(first + 2 * TILE_ROWS),
            panel: if self.whole { 0 } else { 2 * pair },
            ends: [step == 0, step + 1 == steps],
        })
    }
}

impl Piece {
    /// The rows of each of its panels.
    fn panels(&self) -> [Range<usize>; 2] {
        let middle = self.rows.end.min(self.rows.start + TILE_ROWS);
        [self.rows.start..middle, middle..self.rows.end]
    }

    /// Tiles along its columns.
    fn depth<F: BlockFormat>(&self) -> usize {
        self.blocks.len() * F::BLOCK_LEN / TILE_COLS
    }
}

impl Product<'_> {
    /// All of the unit's rows for some of its inputs.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn pass<F: BlockFormat>(&self, scratch: &mut Scratch, tokens: Range<usize>) {
        if late::is_better::<F>(tokens.len(), self.unit.weight.cols(), INPUT_TILES) {
            return late::run(self, &mut scratch.late, &mut scratch.inputs, &tokens);
        }
        let token_tiles = tokens.len().div_ceil(TILE_ROWS);
        let (num_blocks, per_panel) =
            (self.unit.weight.cols() / F::BLOCK_LEN, PANEL_COLS / F::BLOCK_LEN);
        let panels = num_blocks.div_ceil(per_panel);
        // As many parts as are needed, all about equally long.
        let parts = panels.div_ceil(INPUT_TILES / token_tiles / DEPTH);
        let step = panels.div_ceil(parts) * per_panel;
        let rows_max = if parts == 1 { usize::MAX } else { TILE_ROWS * (TOTALS / token_tiles) };
        for row in self.unit.rows.clone().step_by(rows_max) {
            let rows = row..self.unit.rows.end.min(row.saturating_add(rows_max));
            for block in (0..num_blocks).step_by(step) {
                let blocks = block..num_blocks.min(block + step);
                let depth = blocks.len() * F::BLOCK_LEN / TILE_COLS;
                self.gather(scratch, tokens.clone(), (block * F::BLOCK_LEN, depth));
                let part = Part { rows: rows.clone(), blocks, per_panel, whole: parts == 1 };
                self.multiply::<F>(scratch, tokens.clone(), &part, depth);
            }
        }
    }

    /// Adds the products of a part of the weights with the inputs of `tokens`, of which `depth`
    /// tiles each are laid out, to the totals; hands them over when they are complete.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn multiply<F: BlockFormat>(
        &self,
        scratch: &mut Scratch,
        tokens: Range<usize>,
        part: &Part,
        depth: usize,
    ) {
        let token_tiles = tokens.len().div_ceil(TILE_ROWS);
        let mut before: Option<Piece> = None;
        let mut half = 0;
        for index in 0.. {
            let piece = part.get(index);
            if let Some(piece) = &piece {
                self.unpack::<F>(piece, &mut scratch.pending);
            }
            let ahead = self.look_ahead::<F>(part, part.get(index + 1));
            // What is multiplied may be too short for all of what is converted meanwhile.
            let beside =
                piece.is_some() && before.as_ref().is_some_and(|p| p.depth::<F>() == DEPTH);
            if let Some(before) = &before {
                let inputs = Inputs {
                    first: (before.blocks.start - part.blocks.start) * F::BLOCK_LEN / TILE_COLS,
                    stride: depth,
                    tiles: token_tiles,
                };
                self.quads::<F>(scratch, before, &inputs, (half, beside), &ahead);
                let complete = before.blocks.end * F::BLOCK_LEN == self.unit.weight.cols();
                if before.ends[1] && complete {
                    self.store(scratch, tokens.clone(), before);
                }
                half = 1 - half;
            }
            if piece.is_some() && !beside {
                convert_all::<F>(&scratch.pending, &mut scratch.weights[half]);
            }
            if piece.is_none() {
                return;
            }
            before = piece;
        }
    }

    /// What to request from memory before `piece` is read, if a part has all columns: without, what
    /// lies behind its rows is for later, and another part's.
    #[inline(always)]
    fn look_ahead<F: BlockFormat>(&self, part: &Part, piece: Option<Piece>) -> LookAhead {
        match piece {
            Some(Piece { blocks, rows, .. }) if part.whole => {
                let bytes = blocks.start * F::BLOCK_BYTES..blocks.end * F::BLOCK_BYTES;
                LookAhead::behind(&self.unit.weight, &rows, bytes)
            }
            _ => LookAhead::nothing(),
        }
    }

    /// Unpacks the scales of both panels of a piece, and codes that cannot be read row by row.
    #[inline(always)]
    fn unpack<F: BlockFormat>(&self, piece: &Piece, pending: &mut [Pending; 2]) {
        for (rows, pending) in piece.panels().into_iter().zip(pending) {
            if rows.is_empty() {
                pending.prepare_nothing();
                continue;
            }
            let place = (rows.clone(), piece.blocks.clone());
            if matches!(F::CODES, Codes::Various) {
                let nothing = LookAhead::nothing();
                matmul::unpack::<_, F>(self.s, self.unit, &mut pending.panel, place, &nothing);
            } else {
                matmul::unpack_scales::<_, F>(self.s, self.unit, &mut pending.panel, place);
            }
            let (bytes, stride) = (self.unit.weight.bytes(), self.unit.weight.row_bytes());
            let bytes = &bytes[rows.start * stride + piece.blocks.start * F::BLOCK_BYTES..];
            let size = (rows.len(), piece.blocks.len() * F::BLOCK_BYTES);
            // SAFETY: a machine with tiles has AVX-512.
            unsafe { pending.prepare::<F>(bytes, stride, size) };
        }
    }

    /// Lays `depth` tiles of each input out, from column `col` of the weights on.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn gather(&self, scratch: &mut Scratch, tokens: Range<usize>, (col, depth): (usize, usize)) {
        let unit = self.unit;
        let mut rows: [&[u16]; TILE_ROWS] = [&[]; TILE_ROWS];
        for (first, tiles) in
            tokens.clone().step_by(TILE_ROWS).zip(scratch.inputs.chunks_exact_mut(depth))
        {
            let count = TILE_ROWS.min(tokens.end - first);
            for (index, row) in rows.iter_mut().take(count).enumerate() {
                *row = unit.input.bfloats(unit.tokens.at(first + index), unit.input_col + col);
            }
            for (index, tile) in tiles.iter_mut().enumerate() {
                let mut lines = [_mm512_setzero_si512(); TILE_ROWS];
                for (line, row) in lines.iter_mut().zip(&rows[..count]) {
                    let columns = &row[index * TILE_COLS..][..TILE_COLS];
                    // SAFETY: the columns are 64 bytes.
                    *line = unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) };
                }
                transpose(&mut lines);
                *tile = lines;
            }
        }
    }

    /// Adds the products of a piece, whose weights are in half `half`, with all inputs to their
    /// totals, and converts the next piece meanwhile.
    #[inline(always)]
    fn quads<F: BlockFormat>(
        &self,
        scratch: &mut Scratch,
        piece: &Piece,
        inputs: &Inputs,
        (half, converts): (usize, bool),
        ahead: &LookAhead,
    ) {
        // Where one quad is all, its sums stay in their tiles from piece to piece.
        let alone = inputs.tiles <= 2;
        for first in (0..inputs.tiles).step_by(2) {
            let at = piece.panel * inputs.tiles + first;
            let quad = Quad {
                tiles: &self.tiles,
                totals: [at, at + inputs.tiles],
                two: inputs.tiles - first > 1,
                both: piece.rows.len() > TILE_ROWS,
            };
            if piece.blocks.start == 0 {
                quad.clear();
            } else if !alone || piece.ends[0] {
                quad.load(&scratch.totals);
            }
            let beside = match (converts, first) {
                (true, 0) if alone => Beside::BothPanels,
                (true, 0) => Beside::Panel(0),
                (true, 2) => Beside::Panel(1),
                _ => Beside::Nothing,
            };
            let columns = inputs.first..inputs.first + piece.depth::<F>();
            let places = [first, first + usize::from(quad.two)].map(|tile| tile * inputs.stride);
            quad.steps::<F>(scratch, places, columns, (half, beside), ahead);
            if !alone || piece.ends[1] {
                quad.store(&mut scratch.totals);
            }
        }
    }

    /// Hands the totals of a piece's rows over.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    fn store(&self, scratch: &Scratch, tokens: Range<usize>, piece: &Piece) {
        let token_tiles = tokens.len().div_ceil(TILE_ROWS);
        for (index, rows) in piece.panels().into_iter().enumerate().filter(|(_, r)| !r.is_empty()) {
            let totals = &scratch.totals[(piece.panel + index) * token_tiles..][..token_tiles];
            for (first, sums) in tokens.clone().step_by(TILE_ROWS).zip(totals) {
                self.hand_over(sums, first..tokens.end, &rows);
            }
        }
    }

    /// Hands the totals of one panel and tile of inputs over, the first inputs of `tokens`.
    #[target_feature(
        enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c"
    )]
    pub(super) fn hand_over(&self, sums: &Sums, tokens: Range<usize>, rows: &Range<usize>) {
        let mut lines = [_mm512_setzero_si512(); TILE_ROWS];
        for (line, sums) in lines.iter_mut().zip(sums) {
            // SAFETY: a row of sums is as large as the vector.
            *line = unsafe { _mm512_loadu_si512(sums.as_ptr().cast()) };
        }
        transpose(&mut lines);
        for (token, sums) in tokens.zip(&lines) {
            self.unit.store(self.s, _mm512_castsi512_ps(*sums), token, rows.clone());
        }
    }
}

/// Where a piece's inputs lie among the tiles.
struct Inputs {
    /// The first tile of columns.
    first: usize,
    /// Tiles from 16 inputs to the next 16.
    stride: usize,
    /// Tiles of inputs.
    tiles: usize,
}

/// Converts two panels that were prepared.
#[inline(always)]
fn convert_all<F: BlockFormat>(pending: &[Pending; 2], tiles: &mut [WeightTiles; 2]) {
    for (pending, tiles) in pending.iter().zip(tiles) {
        let panel: Stripe<F> = pending.stripe(tiles);
        for stripe in 0..2 * QUARTERS {
            let stripe = panel.at((stripe % 2, stripe / 2));
            for row in 0..STRIPE_ROWS {
                // SAFETY: the panel was prepared, and the stripe was just made.
                unsafe { stripe.convert(row) };
            }
        }
    }
}

/// What is converted beside a quad.
#[derive(Clone, Copy)]
enum Beside {
    Nothing,
    /// The quad's steps are as many as the stripes of one panel.
    Panel(usize),
    BothPanels,
}

/// One or two panels by one or two tiles of inputs.
struct Quad<'a> {
    tiles: &'a Tiles,
    /// The first tile of inputs' totals with each panel.
    totals: [usize; 2],
    /// Whether there are two tiles of inputs.
    two: bool,
    /// Whether there are two panels.
    both: bool,
}

impl Quad<'_> {
    #[inline(always)]
    fn clear(&self) {
        self.tiles.clear::<0>();
        self.tiles.clear::<1>();
        self.tiles.clear::<2>();
        self.tiles.clear::<3>();
    }

    #[inline(always)]
    fn load(&self, totals: &[Sums; TOTALS]) {
        let (tiles, [first, second]) = (self.tiles, self.totals);
        tiles.load_sums::<0>(&totals[first]);
        if self.two {
            tiles.load_sums::<1>(&totals[first + 1]);
        }
        if self.both {
            tiles.load_sums::<2>(&totals[second]);
        }
        if self.both && self.two {
            tiles.load_sums::<3>(&totals[second + 1]);
        }
    }

    /// Adds the products of the tiles of inputs that begin at `places`, in their tiles `columns`,
    /// with the weights in half `half`.
    #[inline(always)]
    fn steps<F: BlockFormat>(
        &self,
        scratch: &mut Scratch,
        places: [usize; 2],
        columns: Range<usize>,
        (half, beside): (usize, Beside),
        ahead: &LookAhead,
    ) {
        let [a, b] = &mut scratch.weights;
        let (now, next) = if half == 0 { (a, b) } else { (b, a) };
        let request = |slot: usize| {
            if slot.is_multiple_of(2) {
                ahead.request();
            }
        };
        let operands = |depth: usize, column: usize| {
            let inputs = places.map(|place| &scratch.inputs[place + column]);
            ([&now[0][depth], &now[1][depth]], inputs)
        };
        // A quarter past what is being multiplied: loads wait for stores just before them whose
        // addresses agree in the lowest twelve bits.
        let place = |depth: usize| (depth % 2, (depth / 2 + 1) % QUARTERS);
        match beside {
            Beside::Nothing => {
                for (depth, column) in columns.enumerate() {
                    self.step(operands(depth, column), |_| ());
                }
            }
            Beside::Panel(panel) => {
                let panel: Stripe<F> = scratch.pending[panel].stripe(&mut next[panel]);
                for (depth, column) in columns.enumerate() {
                    let stripe = panel.at(place(depth));
                    self.step(operands(depth, column), |slot| {
                        request(slot);
                        // SAFETY: panels were prepared before their stripes were made, just now; a
                        // machine with tiles of bfloats has the instructions.
                        unsafe { stripe.convert(slot) };
                    });
                }
            }
            Beside::BothPanels => {
                let [first, second] = next;
                let first: Stripe<F> = scratch.pending[0].stripe(first);
                let second: Stripe<F> = scratch.pending[1].stripe(second);
                for (depth, column) in columns.enumerate() {
                    let stripes = (first.at(place(depth)), second.at(place(depth)));
                    self.step(operands(depth, column), |slot| {
                        request(slot);
                        // SAFETY: as above.
                        unsafe {
                            stripes.0.convert(slot);
                            stripes.1.convert(slot);
                        }
                    });
                }
            }
        }
    }

    /// Adds the products of 32 columns, and calls `between` with `0..STRIPE_ROWS` meanwhile.
    #[inline(always)]
    fn step(&self, (weights, inputs): ([&Tile; 2], [&Tile; 2]), mut between: impl FnMut(usize)) {
        let tiles = self.tiles;
        tiles.load_lines::<6>(inputs[0]);
        between(0);
        tiles.load_lines::<4>(weights[0]);
        between(1);
        tiles.multiply::<0, 4, 6>();
        between(2);
        if self.both {
            tiles.load_lines::<5>(weights[1]);
        }
        between(3);
        if self.both {
            tiles.multiply::<2, 5, 6>();
        }
        if self.two {
            tiles.load_lines::<7>(inputs[1]);
        }
        between(4);
        if self.two {
            tiles.multiply::<1, 4, 7>();
        }
        between(5);
        if self.both && self.two {
            tiles.multiply::<3, 5, 7>();
        }
        between(6);
        between(7);
    }

    #[inline(always)]
    fn store(&self, totals: &mut [Sums; TOTALS]) {
        let (tiles, [first, second]) = (self.tiles, self.totals);
        tiles.store::<0>(&mut totals[first]);
        if self.two {
            tiles.store::<1>(&mut totals[first + 1]);
        }
        if self.both {
            tiles.store::<2>(&mut totals[second]);
        }
        if self.both && self.two {
            tiles.store::<3>(&mut totals[second + 1]);
        }
    }
}
