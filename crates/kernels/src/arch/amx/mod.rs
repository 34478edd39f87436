//! AMX: registers that are tiles of 16 rows of 64 bytes, and products of tiles.
//!
//! A tile product adds `A [16 rows, 32 columns] · B [32 columns, 16 inputs]` to `C [16 rows, 16
//! inputs]`; `A` and `B` are bfloats, sums are single precision. That is several
//! times what vectors do, and it is an arithmetic of its own: inputs and weights are rounded to 8
//! bits of significand, which is thirty times closer to exact than the 8-bit integers with a common
//! scale that other engines round inputs to, but not the bits of [`crate::matmul`]. It is used
//! where [`crate::activations::Precision::Mixed`] allows it.
//!
//! `product` walks a unit; `weights` makes bfloats of panels, whatever the format; `late` does both
//! for Q4_K where few inputs share a product. `attention` is a task of attention.

mod attention;
mod late;
mod product;
mod weights;

use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, __m512, __m512i, _mm512_cvtne2ps_pbh};
use std::sync::OnceLock;

pub(super) use attention::attend;
pub(super) use product::run;

/// Tile products that need no memory, for the probe; returns the number of operations.
///
/// # Safety
/// [`is_available`] said yes.
pub(super) unsafe fn turns(turns: usize) -> f64 {
    // SAFETY: the caller promises tiles.
    let tiles = unsafe { Tiles::new() };
    for _ in 0..turns {
        tiles.multiply::<0, 4, 6>();
        tiles.multiply::<1, 4, 7>();
        tiles.multiply::<2, 5, 6>();
        tiles.multiply::<3, 5, 7>();
    }
    (turns * 4 * TILE_ROWS * TILE_ROWS * TILE_COLS * 2) as f64
}

/// Rows of a tile.
const TILE_ROWS: usize = 16;
/// Columns of weights and inputs that one tile product takes.
const TILE_COLS: usize = 32;
/// One tile of sums, `[16 rows of the left tile]` of 16 columns of the right one.
type Sums = [[f32; 16]; TILE_ROWS];

/// `low` and `high`, one after the other, rounded to bfloats.
#[target_feature(enable = "avx512f,avx512bf16")]
#[inline]
fn bfloats(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 bits of anything.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Whether the processor has tiles of bfloats and the operating system lets this process use the
/// registers. Asking is what makes Linux grant them, to all threads at once.
pub(super) fn is_available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && saves_tiles() && permitted())
}

/// The processor's word for it: AMX-TILE, AMX-BF16, AVX512-BF16, and tiles of the size used here.
fn has_tiles() -> bool {
    let leaves = __cpuid_count(0, 0).eax;
    let features = __cpuid_count(7, 0).edx;
    let (tiles, bfloats) = (features >> 24 & 1 == 1, features >> 22 & 1 == 1);
    if leaves < 0x1d || !tiles || !bfloats || !is_x86_feature_detected!("avx512bf16") {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    let (tiles, row_bytes) = (palette.ebx >> 16, palette.ebx & 0xffff);
    tiles >= 8 && row_bytes >= 64 && palette.ecx & 0xffff >= TILE_ROWS as u32
}

/// Whether the operating system keeps vector and tile registers when it switches threads: bits of
/// XCR0.
fn saves_tiles() -> bool {
    /// SSE, AVX, the three parts of AVX-512, and the two of AMX.
    const SAVED: u32 = 0b110_0000_0000_1110_0110;
    let has_xgetbv = __cpuid_count(1, 0).ecx >> 27 & 1 == 1;
    if !has_xgetbv {
        return false;
    }
    let saved: u32;
    // SAFETY: the processor has the instruction, which only reads.
    unsafe {
        asm!("xgetbv", in("ecx") 0, out("eax") saved, out("edx") _, options(nomem, nostack));
    }
    saved & SAVED == SAVED
}

/// Asks Linux for the tile registers: they enlarge the state saved with a signal, so a process has
/// to say that it knows (`arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA)`).
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const SYS_ARCH_PRCTL: usize = 158;
    const ARCH_REQ_XCOMP_PERM: usize = 0x1023;
    const XTILEDATA: usize = 18;
    let mut result = SYS_ARCH_PRCTL;
    // SAFETY: a system call that touches no memory of this process; it changes what the kernel
    // saves, and clobbers the two registers that every system call does.
    unsafe {
        asm!(
            "syscall",
            inout("rax") result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// One asm block of tile instructions.
macro_rules! tile_asm {
    ($instruction:literal $(, $($operand:tt)*)?) => {
        asm!(
            $instruction, $($($operand)*,)?
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack)
        )
    };
}

/// This thread's tile registers, configured: tiles 0 to 3 are sums, 4 and 5 left factors
/// (weights; queries), 6 and 7 right ones (inputs; keys), all of 16 rows of 64 bytes.
///
/// No other code of this program touches tile registers, and the operating system keeps them over
/// switches of threads and signals, so what one method leaves in a tile the next one finds there.
struct Tiles(());

#[expect(clippy::unused_self, reason = "a value is proof that the tiles are configured")]
impl Tiles {
    /// Takes the tiles.
    ///
    /// # Safety
    /// [`is_available`] said yes.
    unsafe fn new() -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        row_bytes[..8].fill(64);
        rows[..8].fill(TILE_ROWS as u8);
        let config = Config { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows };
        // SAFETY: the machine has tiles, and the configuration is one that palette 1 takes.
        unsafe { tile_asm!("ldtilecfg [{config}]", config = in(reg) &raw const config) };
        Self(())
    }

    /// Sets a tile to zeros.
    #[inline(always)]
    fn clear<const TILE: usize>(&self) {
        // SAFETY: the tiles are configured.
        unsafe { tile_asm!("tilezero tmm{tile}", tile = const TILE) };
    }

    /// Loads a tile of sums.
    #[inline(always)]
    fn load_sums<const TILE: usize>(&self, sums: &Sums) {
        // SAFETY: an array of sums is as large as the tile.
        unsafe { self.load::<TILE>(sums.as_ptr().cast()) };
    }

    /// Loads a tile of inputs or weights.
    #[inline(always)]
    fn load_lines<const TILE: usize>(&self, lines: &[__m512i; TILE_ROWS]) {
        // SAFETY: 16 lines are as large as the tile.
        unsafe { self.load::<TILE>(lines.as_ptr().cast()) };
    }

    /// Loads a tile of bfloats.
    #[inline(always)]
    fn load_bfloats<const TILE: usize>(&self, rows: &[[u16; TILE_COLS]; TILE_ROWS]) {
        // SAFETY: 16 rows of 32 bfloats are as large as the tile.
        unsafe { self.load::<TILE>(rows.as_ptr().cast()) };
    }

    /// # Safety
    /// 16 rows of 64 bytes are readable from `first` on.
    #[inline(always)]
    unsafe fn load<const TILE: usize>(&self, first: *const u8) {
        // SAFETY: the tiles are configured, and the caller promises the bytes.
        unsafe {
            tile_asm!(
                "tileloadd tmm{tile}, [{first} + {stride}*1]",
                tile = const TILE, first = in(reg) first, stride = in(reg) 64usize
            );
        }
    }

    /// Adds the product of two tiles to sums.
    #[inline(always)]
    fn multiply<const SUM: usize, const LEFT: usize, const RIGHT: usize>(&self) {
        // SAFETY: the tiles are configured, with shapes that fit each other.
        unsafe {
            tile_asm!(
                "tdpbf16ps tmm{sum}, tmm{left}, tmm{right}",
                sum = const SUM, left = const LEFT, right = const RIGHT
            );
        }
    }

    /// Stores a tile of sums.
    #[inline(always)]
    fn store<const TILE: usize>(&self, sums: &mut Sums) {
        // SAFETY: the tiles are configured, and an array of sums is as large as the tile.
        unsafe {
            tile_asm!(
                "tilestored [{first} + {stride}*1], tmm{tile}",
                tile = const TILE, first = in(reg) sums.as_mut_ptr(), stride = in(reg) 64usize
            );
        }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles are configured; nothing uses them after this.
        unsafe { tile_asm!("tilerelease") };
    }
}
