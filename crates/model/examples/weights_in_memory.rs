//! Which is the faster start and the faster read: weights mapped from the page cache, or weights
//! read into huge pages? Makes a synthetic model of about 5 GB and measures both, interleaved.
//!
//! `cargo run --release -p moeba-model --example weights_in_memory -- FILE.gguf [ROUNDS]`

#![expect(clippy::print_stdout, reason = "an experiment prints its results")]

use std::path::Path;
use std::thread;
use std::time::SystemTime;

use moeba_kernels::dtype::DType;
use moeba_kernels::os::memory::Bytes;
use moeba_model::error::LoadError;
use moeba_model::files::{
    Array, GgufHeader, GgufTensor, GgufWriter, OpenOptions, Value, WeightMemory, open_with,
};

const LAYERS: usize = 24;
/// Three expert tensors of 64 experts per layer, 512 x 2048 weights each, in 8-bit blocks.
const SHAPE: [usize; 3] = [64, 512, 2048];
const THREADS: usize = 2;

fn main() -> Result<(), LoadError> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().unwrap_or_else(|| "weights.gguf".to_owned());
    let rounds = arguments.next().and_then(|text| text.parse().ok()).unwrap_or(20);
    let path = Path::new(&path);
    if !path.exists() {
        write(path)?;
    }
    println!("start, in ms of wall clock (processor time of all threads)");
    for round in 0..3 {
        for memory in MEMORIES {
            let (_, times) = start(path, memory)?;
            println!(
                "{round} {memory:?}: open {} load {} first sweep {}",
                times[0], times[1], times[2]
            );
        }
    }
    compare(path, rounds)
}

const MEMORIES: [WeightMemory; 2] = [WeightMemory::Mapped, WeightMemory::HugePages];

/// A vocabulary of 150,000 tokens and 280,000 merges, and 72 tensors of 71 MB.
fn write(path: &Path) -> Result<(), LoadError> {
    let tokens = Array::of_strings((0..150_000).map(|i| format!("token{i}")));
    let merges = Array::of_strings((0..280_000).map(|i| format!("tok{i} en{i}")));
    let kinds = Array::of_i32(&vec![1; 150_000]);
    let mut header = GgufHeader::default();
    for (key, value) in [("tokens", tokens), ("merges", merges), ("token_type", kinds)] {
        header.metadata.push((format!("tokenizer.ggml.{key}"), Value::Array(value)));
    }
    for layer in 0..LAYERS {
        for part in ["gate", "up", "down"] {
            header.tensors.push(GgufTensor {
                name: format!("blk.{layer}.ffn_{part}_exps.weight"),
                dtype: DType::Q8_0,
                shape: SHAPE.to_vec(),
            });
        }
    }
    let bytes: Vec<u8> =
        (0..SHAPE.iter().product::<usize>() / 32 * 34).map(|i| (i % 251) as u8).collect();
    let mut writer = GgufWriter::create(path, &header)?;
    for tensor in &header.tensors {
        writer.write_tensor(&tensor.name, &bytes)?;
    }
    writer.finish()
}

/// Opens, loads and sweeps once; answers the tensors and how long each of the three took.
fn start(path: &Path, memory: WeightMemory) -> Result<(Vec<Bytes>, [Clock; 3]), LoadError> {
    let clock = Clock::now();
    let files = open_with(path, &OpenOptions { memory, ..OpenOptions::default() })?;
    let open = clock.elapsed();
    let clock = Clock::now();
    let tensors: Vec<Bytes> = files
        .tensors
        .names()
        .map(|name| Ok(files.tensors.get(name)?.bytes))
        .collect::<Result<_, LoadError>>()?;
    let load = clock.elapsed();
    let clock = Clock::now();
    sweep(&tensors);
    Ok((tensors, [open, load, clock.elapsed()]))
}

/// Sweeps both copies in turn; prints rates and the ratio of each neighbouring pair.
fn compare(path: &Path, rounds: usize) -> Result<(), LoadError> {
    let copies = [start(path, MEMORIES[0])?.0, start(path, MEMORIES[1])?.0];
    let bytes: usize = copies[0].iter().map(|tensor| tensor.len()).sum();
    let (mut wall, mut processor) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let mut times = copies.each_ref().map(|copy| {
            let clock = Clock::now();
            sweep(copy);
            clock.elapsed()
        });
        if round % 2 == 1 {
            // The same pair again in the other order, so that neither always goes first.
            for (time, copy) in times.iter_mut().zip(&copies).rev() {
                let clock = Clock::now();
                sweep(copy);
                *time = clock.elapsed();
            }
        }
        let rate = times.each_ref().map(|time| bytes as f64 / time.wall_ms / 1e6);
        println!("sweep {round}: mapped {:.2} GB/s, huge pages {:.2} GB/s", rate[0], rate[1]);
        wall.push(times[0].wall_ms / times[1].wall_ms);
        processor.push(times[0].processor_ms / times[1].processor_ms);
    }
    for (name, mut ratios) in [("wall", wall), ("processor", processor)] {
        ratios.sort_by(f64::total_cmp);
        let n = ratios.len();
        println!(
            "huge pages over mapped by {name}: median {:.3}, quartiles {:.3} to {:.3}",
            ratios[n / 2],
            ratios[n / 4],
            ratios[n * 3 / 4]
        );
    }
    Ok(())
}

/// Time passed, by the wall clock and by what all threads of this process used.
#[derive(Clone, Copy)]
struct Clock {
    wall_ms: f64,
    processor_ms: f64,
}

impl Clock {
    fn now() -> Self {
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // User and system time, in hundredths of a second, follow the name in parentheses.
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: u64 =
            fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        let wall_ms = wall.map_or(0.0, |wall| wall.as_secs_f64() * 1e3);
        Self { wall_ms, processor_ms: ticks as f64 * 10.0 }
    }

    fn elapsed(self) -> Self {
        let now = Self::now();
        let wall_ms = now.wall_ms - self.wall_ms;
        Self { wall_ms, processor_ms: now.processor_ms - self.processor_ms }
    }
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:.0} ({:.0})", self.wall_ms, self.processor_ms)
    }
}

/// Reads every byte once: each thread its half of each tensor, as a matrix product would.
fn sweep(tensors: &[Bytes]) {
    thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for tensor in tensors {
                    let half = tensor.len() / THREADS;
                    std::hint::black_box(sum(&tensor[thread * half..][..half]));
                }
            });
        }
    });
}

/// A sum over eight lanes, which the compiler turns into vector additions.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0u64; 8];
    for line in bytes.chunks_exact(64) {
        for (lane, eight) in lanes.iter_mut().zip(line.chunks_exact(8)) {
            let eight = eight.try_into().expect("chunks of eight");
            *lane = lane.wrapping_add(u64::from_le_bytes(eight));
        }
    }
    lanes.iter().fold(0, |sum, lane| sum.wrapping_add(*lane))
}
