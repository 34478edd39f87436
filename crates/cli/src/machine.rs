//! This machine as the user wants it used: instruction set and workers.

use std::io;

use anyhow::{Result, ensure};
use moeba_kernels::isa::{self, Isa};
use moeba_kernels::os::cpu;
use moeba_kernels::pool::{Pinning, Pool};
use moeba_kernels::probe::{self, MachineLimits};

use crate::args::{IsaChoice, KvType};
use crate::progress::Progress;
use crate::settings::{Settings, Voice};

/// Applies `--isa` and starts the workers `--threads` asks for.
///
/// # Errors
/// If this CPU does not have the instruction set.
pub(crate) fn pool(settings: &Settings) -> Result<Pool> {
    if let Some(choice) = settings.isa {
        let isa = match choice {
            IsaChoice::Scalar => Isa::Scalar,
            IsaChoice::Avx2 => Isa::Avx2,
            IsaChoice::Avx512 => Isa::Avx512,
            IsaChoice::Amx => Isa::Amx,
        };
        let best = Isa::detect();
        ensure!(isa::force(isa), "this CPU does not have `{isa}`; its best is `{best}`");
    }
    Ok(Pool::new(threads(settings), Pinning::None))
}

/// Measures what this machine can do, and says meanwhile that it does.
///
/// # Errors
/// If there is no memory to read.
pub(crate) fn limits(pool: &Pool, voice: Voice) -> io::Result<MachineLimits> {
    let waiting = Progress::new(voice).wait("measuring the machine");
    let limits = probe::measure(pool);
    waiting.clear();
    limits
}

/// The load above which somebody else is at work: what a shell and its kin leave is less.
pub(crate) const BUSY: f64 = 0.5;

/// How busy the machine was in the last minute, in threads that ran or wanted to; `None` where it
/// does not say.
pub(crate) fn load() -> Option<f64> {
    let averages = std::fs::read_to_string("/proc/loadavg").ok()?;
    averages.split_whitespace().next()?.parse().ok()
}

/// How many workers to use.
pub(crate) fn threads(settings: &Settings) -> usize {
    settings.threads.unwrap_or_else(cpu::default_threads)
}

impl From<KvType> for moeba_kernels::attention::KvDType {
    fn from(choice: KvType) -> Self {
        match choice {
            KvType::F32 => Self::F32,
            KvType::F16 => Self::F16,
            KvType::Bf16 => Self::BF16,
            KvType::Q8 => Self::Q8,
        }
    }
}
