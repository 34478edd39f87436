//! Which instruction set the kernels use, decided once per process.
//!
//! Every instruction set gives the same bits (see [`crate::matmul`]; only inputs of
//! [`crate::activations::Precision::Mixed`] meet tiles of bfloats), so this choice is about
//! speed alone: forcing a slower one is safe and is how the tests compare them.

use std::fmt;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set the kernels are compiled for, slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Portable Rust: the reference every other one must equal.
    Scalar,
    /// AVX2 with FMA and F16C: most x86-64 machines since 2013.
    Avx2,
    /// AVX-512 F, BW, VL, DQ and VNNI: servers since Ice Lake, desktops since Zen 4.
    Avx512,
    /// AVX-512, and AMX tiles of bfloats where many inputs share a product and their precision
    /// allows it: servers since Sapphire Rapids.
    Amx,
}

/// No choice was made yet.
const UNDECIDED: u8 = u8::MAX;

static CURRENT: AtomicU8 = AtomicU8::new(UNDECIDED);

impl Isa {
    /// Every instruction set, slowest first, whether or not this machine has it.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Amx];

    /// The fastest one this machine can run.
    pub fn detect() -> Self {
        let mut best = Self::Scalar;
        for isa in Self::ALL {
            if isa.is_available() {
                best = isa;
            }
        }
        best
    }

    /// Whether this machine (and its operating system) can run it.
    pub fn is_available(self) -> bool {
        crate::arch::is_available(self)
    }

    /// The name users type, such as `avx512`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }

    /// The instruction set called `name`, or `None` if there is none by that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name() == name)
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The instruction set in use: the forced one, else the fastest available.
pub fn current() -> Isa {
    match CURRENT.load(Ordering::Relaxed) {
        UNDECIDED => {
            let isa = Isa::detect();
            // A racing thread stores the same answer, unless it forces one: that one wins.
            let _ = CURRENT.compare_exchange(
                UNDECIDED,
                isa as u8,
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if CURRENT.load(Ordering::Relaxed) == isa as u8 { isa } else { current() }
        }
        stored => Isa::ALL[stored as usize],
    }
}

/// Makes every later kernel call of this process use `isa`.
///
/// Returns `false`, and changes nothing, if this machine cannot run it.
pub fn force(isa: Isa) -> bool {
    let available = isa.is_available();
    if available {
        CURRENT.store(isa as u8, Ordering::Relaxed);
    }
    available
}
