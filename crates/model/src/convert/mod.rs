//! Models into other formats: what becomes of each tensor, and the file they become.
//!
//! A conversion is planned whole before anything is written: [`Conversion::plan`] reads headers
//! only and knows every name, format and size; [`Conversion::write`] then streams tensor by
//! tensor. The result depends on the input, the recipe and this version of the encoders, and on
//! nothing else: not on threads, instruction sets or interruptions.

mod directory;
mod factors;
mod importance;
mod mixes;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use moeba_kernels::dtype::DType;
use moeba_kernels::encode::encode_rows;
use moeba_kernels::os::memory::Bytes;
use moeba_kernels::pool::Pool;
use moeba_kernels::tensor::Matrix;

pub use importance::Importance;
pub use mixes::{Target, is_writable};

use crate::error::{Fault, LoadError};
use crate::files::{
    Container, ContentHash, GgufHeader, GgufTensor, GgufWriter, ModelFiles, Value, all_finite,
};
use mixes::Context;

/// Changes with the bytes any encoder gives, so that no file is half of one version's and half of
/// another's.
const ENCODERS_VERSION: u64 = 1;
/// Numbers of a tensor that are decoded, encoded and written at a time.
const STEP_NUMBERS: usize = 1 << 22;
/// A matrix of fewer numbers is kept as it is: nothing would be saved.
const SMALL_NUMBERS: usize = 1024;

/// How to convert a model.
#[derive(Clone, Copy)]
pub struct Recipe<'a> {
    /// The type to convert to.
    pub target: &'static Target,
    /// All matrices get the target's base format, whatever the mix says.
    pub is_pure: bool,
    /// The user's choice for the tensor of this name, before any rule.
    pub choose: &'a dyn Fn(&str) -> Option<DType>,
    /// How much each column counts, where that was measured.
    pub importance: Option<&'a Importance>,
    /// Keys that say how the model reads and writes, for a directory, which has no such keys.
    pub words: &'a [(String, Value)],
}

impl std::fmt::Debug for Recipe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recipe({})", self.target.name)
    }
}

/// Supplies row `row` of a tensor, counted through all its leading dimensions.
type ReadRow = Box<dyn Fn(usize, &mut [f32]) + Send + Sync>;

/// Metadata.
type Pairs = Vec<(String, Value)>;

/// A tensor of the result, before its format is chosen.
struct Piece {
    /// Its name in GGUF.
    name: String,
    /// Outermost first.
    shape: Vec<usize>,
    /// Its bytes, where they can be taken as they are.
    stored: Option<(DType, Bytes)>,
    /// Its numbers.
    read: ReadRow,
    /// What the numbers come from, to know the input again.
    sources: Vec<Bytes>,
}

/// How a tensor of the result is made.
struct Job {
    /// The piece it is made of.
    piece: usize,
    what: What,
    /// `[experts or 1, cols]`, if they were measured and count.
    importance: Option<Vec<f32>>,
}

/// What a tensor of the result is of its piece.
#[derive(Clone, Copy, PartialEq)]
enum What {
    /// Its numbers.
    Numbers,
    /// Its numbers, those of each matrix divided by the factor that follows.
    Quotients,
    /// The factors.
    Factors,
}

/// A planned conversion.
pub struct Conversion {
    header: GgufHeader,
    pieces: Vec<Piece>,
    /// One for each tensor of the header.
    jobs: Vec<Job>,
    notes: Vec<String>,
    key: u64,
    /// What is converted, for messages.
    source: PathBuf,
}

/// Tensors of one format in a planned file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share {
    /// The format.
    pub dtype: DType,
    /// How many tensors.
    pub tensors: usize,
    /// How many numbers.
    pub numbers: u64,
    /// Their bytes, without padding.
    pub bytes: u64,
}

/// How a conversion ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The file is there.
    Written,
    /// The caller wanted no more. What is done is kept for the next attempt.
    Stopped,
}

impl Conversion {
    /// Decides what becomes of each tensor of `files`.
    ///
    /// # Errors
    /// If a tensor is of no known format, or is to get one that does not fit it.
    pub fn plan(files: &ModelFiles, recipe: &Recipe) -> Result<Conversion, LoadError> {
        let (pieces, mut metadata) = match files.container {
            Container::Gguf => (gguf_pieces(files)?, gguf_metadata(files)),
            Container::HuggingFace | Container::Mistral => directory::read(files)?,
        };
        metadata.extend(recipe.words.iter().cloned());
        let named = pieces.iter().map(|piece| (&*piece.name, &*piece.shape));
        let context = context(&named, recipe.importance.is_some());
        let (mut tensors, mut jobs, mut notes) = (Vec::new(), Vec::new(), Vec::new());
        let mut requantised = 0;
        for (index, piece) in pieces.iter().enumerate() {
            let dtype = choose(piece, recipe, &context, &files.path)?;
            let is_float = |dtype: DType| dtype.format().block_len == 1;
            let stored = piece.stored.as_ref().map(|stored| stored.0);
            let is_copy = stored == Some(dtype);
            if !is_copy && stored == Some(DType::Nvfp4) {
                let fault = files.tensors.fault(&piece.name).expected("weights that are whole");
                let hint = "its scale lies in another tensor; convert the original weights";
                return Err(fault.found("NVFP4").hint(hint).unsupported());
            }
            requantised += usize::from(!is_copy && stored.is_some_and(|dtype| !is_float(dtype)));
            let found = recipe.importance.filter(|_| !is_copy && !is_float(dtype));
            let importance = found.map(|i| i.of(&piece.name, &piece.shape)).transpose()?.flatten();
            if found.is_some() && importance.is_none() {
                notes.push(format!("no importances for `{}`", crate::error::shown(&piece.name)));
            }
            let factors = factors::beside(piece, dtype).filter(|factors| {
                // What has factors already keeps them.
                !is_copy && pieces.iter().all(|piece| piece.name != factors.name)
            });
            let what = if factors.is_some() { What::Quotients } else { What::Numbers };
            let (name, shape) = (piece.name.clone(), piece.shape.clone());
            tensors.push(GgufTensor { name, dtype, shape });
            jobs.push(Job { piece: index, what, importance });
            if let Some(factors) = factors {
                tensors.push(factors);
                jobs.push(Job { piece: index, what: What::Factors, importance: None });
            }
        }
        if requantised > 0 {
            notes.push(format!(
                "{requantised} tensors were quantised before; from the original weights the \
                 result would be better"
            ));
        }
        let header = GgufHeader { metadata: finish_metadata(metadata, recipe), tensors };
        let key = key(files, &pieces, &jobs);
        let source = files.path.clone();
        Ok(Conversion { header, pieces, jobs, notes, key, source })
    }

    /// Remarks for whoever asked for the conversion.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The result's tensors, in order.
    pub fn tensors(&self) -> &[GgufTensor] {
        &self.header.tensors
    }

    /// The result by formats, the largest share first.
    pub fn shares(&self) -> Vec<Share> {
        let mut shares: Vec<Share> = Vec::new();
        for tensor in &self.header.tensors {
            let (numbers, bytes) = (numbers(tensor) as u64, tensor_bytes(tensor) as u64);
            let found = shares.iter().position(|share| share.dtype == tensor.dtype);
            let index = found.unwrap_or_else(|| {
                shares.push(Share { dtype: tensor.dtype, tensors: 0, numbers: 0, bytes: 0 });
                shares.len() - 1
            });
            let share = &mut shares[index];
            share.tensors += 1;
            share.numbers += numbers;
            share.bytes += bytes;
        }
        shares.sort_by_key(|share| std::cmp::Reverse(share.bytes));
        shares
    }

    /// Bytes of all tensors of the result.
    pub fn num_bytes(&self) -> u64 {
        self.header.tensors.iter().map(|tensor| tensor_bytes(tensor) as u64).sum()
    }

    /// Starts the result at `path`, or goes on where an earlier attempt at the same was stopped:
    /// the writer knows which.
    ///
    /// # Errors
    /// If another process writes it, or the disk refuses.
    pub fn start(&self, path: &Path) -> Result<GgufWriter, LoadError> {
        GgufWriter::resume(path, &self.header, self.key)
    }

    /// Writes the result, or what is missing of it. `on_bytes` is told how many bytes of tensors
    /// are done and may break off.
    ///
    /// # Errors
    /// If a weight is no number, or reading or writing fails. Nothing is under the result's name
    /// then but what was there before, and the next attempt goes on with what is done.
    pub fn write(
        &self,
        mut writer: GgufWriter,
        pool: &Pool,
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Ending, LoadError> {
        let first = writer.num_written();
        let mut done: u64 =
            self.header.tensors[..first].iter().map(|tensor| tensor_bytes(tensor) as u64).sum();
        let mut factors = Vec::new();
        for index in first..self.jobs.len() {
            let job = &self.jobs[index];
            factors = match job.what {
                What::Numbers => Vec::new(),
                // They follow their quotients, which an earlier attempt may have written.
                What::Factors if index > first => factors,
                What::Quotients | What::Factors => factors::of(&self.pieces[job.piece], pool),
            };
            let mut on_bytes = |bytes| {
                done += bytes;
                on_bytes(done)
            };
            let ending = self.write_tensor(&mut writer, index, (&factors, pool), &mut on_bytes)?;
            if ending.is_break() {
                return Ok(Ending::Stopped);
            }
        }
        writer.finish()?;
        Ok(Ending::Written)
    }

    fn write_tensor(
        &self,
        writer: &mut GgufWriter,
        index: usize,
        (factors, pool): (&[f32], &Pool),
        on_bytes: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, LoadError> {
        let (job, tensor) = (&self.jobs[index], &self.header.tensors[index]);
        let piece = &self.pieces[job.piece];
        let mut append = |bytes: &[u8]| {
            writer.append(bytes)?;
            Ok::<_, LoadError>(on_bytes(bytes.len() as u64))
        };
        if job.what == What::Factors {
            let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
            return append(&bytes);
        }
        if let Some((stored, bytes)) = &piece.stored
            && *stored == tensor.dtype
        {
            for part in bytes.chunks(4 * STEP_NUMBERS) {
                if append(part)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            return Ok(ControlFlow::Continue(()));
        }
        let cols = *tensor.shape.last().expect("the header was checked");
        let row_bytes = tensor.dtype.row_bytes(cols).expect("the header was checked");
        // Importances and factors hold for one matrix, so no step reaches into the next one.
        let importance = job.importance.as_deref().unwrap_or_default();
        let matrices = factors.len().max(importance.len() / cols).max(1);
        let (rows, mut buffer) = (numbers(tensor) / cols, Vec::new());
        let group = rows / matrices;
        let step = (STEP_NUMBERS / cols).clamp(1, group);
        for first in (0..rows).step_by(group).flat_map(|g| (g..g + group).step_by(step)) {
            let matrix = first / group;
            let end = (first + step).min((matrix + 1) * group);
            buffer.resize((end - first) * row_bytes, 0);
            let own = importance.chunks(cols).cycle().nth(matrix);
            let own = own.filter(|own| own.iter().any(|&v| v > 0.0));
            let factor = factors.get(matrix).copied().unwrap_or(1.0);
            let bad = AtomicUsize::new(usize::MAX);
            encode_rows(pool, tensor.dtype, (cols, own), &mut buffer, |row, values| {
                (piece.read)(first + row, values);
                if !all_finite(values) {
                    bad.fetch_min(first + row, Ordering::Relaxed);
                }
                for value in values {
                    *value /= factor;
                }
            });
            let bad = bad.into_inner();
            if bad != usize::MAX {
                let found = format!("NaN or infinity in row {bad}");
                let fault = Fault::new(&self.source).tensor(&tensor.name).expected("numbers");
                return Err(fault.found(found).damaged());
            }
            if append(&buffer)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

impl std::fmt::Debug for Conversion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Conversion({} tensors, {} bytes)", self.pieces.len(), self.num_bytes())
    }
}

fn numbers(tensor: &GgufTensor) -> usize {
    tensor.shape.iter().product()
}

fn tensor_bytes(tensor: &GgufTensor) -> usize {
    let cols = tensor.shape.last().copied().unwrap_or(0).max(1);
    tensor.dtype.row_bytes(cols).unwrap_or(0) * (numbers(tensor) / cols)
}

/// All tensors of a GGUF file, as they are.
fn gguf_pieces(files: &ModelFiles) -> Result<Vec<Piece>, LoadError> {
    let names: Vec<String> = files.tensors.names().map(str::to_owned).collect();
    let pieces = names.into_iter().map(|name| {
        let tensor = files.tensors.get(&name)?;
        let cols = tensor.shape.last().copied().unwrap_or(1);
        let rows = tensor.shape.iter().product::<usize>() / cols.max(1);
        let (dtype, bytes) = (tensor.dtype, tensor.bytes);
        let own = bytes.clone();
        let read: ReadRow =
            Box::new(move |row, out| Matrix::new(dtype, rows, cols, &own).decode_row(row, out));
        let sources = vec![bytes.clone()];
        Ok(Piece { name, shape: tensor.shape, stored: Some((dtype, bytes)), read, sources })
    });
    pieces.collect()
}

/// What a GGUF file says about itself, without what the conversion changes.
fn gguf_metadata(files: &ModelFiles) -> Vec<(String, Value)> {
    let changes = |key: &str| key.starts_with("split.") || key.starts_with("quantize.");
    let entries = files.metadata.entries().iter();
    entries.filter(|(key, _)| !changes(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// The pairs with those that say how the file was made; the architecture first, as readers expect.
fn finish_metadata(mut pairs: Vec<(String, Value)>, recipe: &Recipe) -> Vec<(String, Value)> {
    let mut own = vec![
        ("general.file_type", Value::U32(recipe.target.file_type)),
        ("general.quantization_version", Value::U32(2)),
    ];
    if let Some(importance) = recipe.importance {
        let entries = Value::I32(importance.len() as i32);
        own.push(("quantize.imatrix.entries_count", entries));
        own.push(("quantize.imatrix.chunks_count", Value::I32(importance.chunks as i32)));
        let datasets = importance.datasets.join(", ");
        own.push(("quantize.imatrix.dataset", Value::Text(datasets)));
    }
    pairs.retain(|(key, _)| own.iter().all(|(name, _)| key != name));
    pairs.extend(own.into_iter().map(|(key, value)| (key.to_owned(), value)));
    pairs.sort_by_key(|(key, _)| key != "general.architecture");
    pairs
}

/// The layer and the rest of a tensor's name, `.weight` left out; `None` if it is no weight.
fn stem(name: &str) -> Option<(usize, &str)> {
    let name = name.strip_suffix(".weight")?;
    let Some((layer, rest)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
    else {
        return Some((0, name));
    };
    Some((layer.parse().ok()?, rest))
}

/// The formats that `target` gives tensors of these GGUF names and shapes, if nobody measured which
/// of their weights matter.
pub(crate) fn formats(tensors: &[(String, Vec<usize>)], target: &Target) -> Vec<DType> {
    let named = tensors.iter().map(|(name, shape)| (&**name, &**shape));
    let context = context(&named, false);
    let format = |(name, shape): (&str, &[usize])| {
        mixed(name, shape, target, &context).unwrap_or(DType::F32)
    };
    named.map(format).collect()
}

fn context<'a>(
    tensors: &(impl Iterator<Item = (&'a str, &'a [usize])> + Clone),
    is_measured: bool,
) -> Context {
    let stems = || tensors.clone().filter_map(|(name, shape)| Some((stem(name)?, shape)));
    let rows = |wanted: &str| {
        stems().find(|((_, stem), _)| *stem == wanted).and_then(|(_, s)| s.first().copied())
    };
    let group = rows("attn_q").zip(rows("attn_k")).map_or(1, |(q, k)| q / k.max(1));
    Context {
        num_layers: stems().map(|((layer, _), _)| layer + 1).max().unwrap_or(0),
        has_experts: stems().any(|((_, stem), _)| stem.ends_with("_exps")),
        is_tied: !stems().any(|((_, stem), _)| stem == "output"),
        is_measured,
        group,
    }
}

/// The format a tensor gets.
fn choose(
    piece: &Piece,
    recipe: &Recipe,
    context: &Context,
    path: &Path,
) -> Result<DType, LoadError> {
    let cols = piece.shape.last().copied().unwrap_or(0);
    if let Some(dtype) = (recipe.choose)(&piece.name) {
        let fits = is_writable(dtype) && dtype.row_bytes(cols).is_some_and(|bytes| bytes > 0);
        let fits = fits || piece.stored.as_ref().is_some_and(|stored| stored.0 == dtype);
        let expected = format!("rows of whole blocks, to be written as {dtype}");
        let fault = || Fault::new(path).tensor(&piece.name).expected(expected);
        return if fits {
            Ok(dtype)
        } else {
            Err(fault().found(format!("shape {:?}", piece.shape)).unsupported())
        };
    }
    let mixed = mixed(&piece.name, &piece.shape, recipe.target, context);
    let pure = mixed.map(|_| mixes::fitting(recipe.target.base(), cols));
    let dtype = if recipe.is_pure { pure } else { mixed };
    Ok(dtype.unwrap_or_else(|| kept(piece)))
}

/// The format the mix gives a tensor; `None` if it is not to be quantised.
fn mixed(name: &str, shape: &[usize], target: &Target, context: &Context) -> Option<DType> {
    let numbers = shape.iter().fold(1usize, |product, len| product.saturating_mul(*len));
    let is_matrix = shape.len() >= 2 && numbers >= SMALL_NUMBERS;
    let (layer, stem) = stem(name).filter(|(_, stem)| is_matrix && !is_precise(stem))?;
    Some(mixes::fitting(target.choose(stem, layer, context), *shape.last()?))
}

/// Whether a matrix is one whose small errors do harm out of proportion to its size: routers,
/// whose error sends a token to another expert, and what is no weight at all.
fn is_precise(stem: &str) -> bool {
    stem.contains("ffn_gate_inp") || stem.contains("norm") || stem.ends_with("_embd_pos")
}

/// The format of what is not quantised: as it is, or F32, which all readers take.
fn kept(piece: &Piece) -> DType {
    match &piece.stored {
        Some((dtype, _)) if dtype.format().block_len > 1 => *dtype,
        _ => DType::F32,
    }
}

/// A hash of what the data depends on beyond the header: when the input was last changed, and the
/// beginnings and ends of all tensors, since reading them whole would take as long as the work it
/// is to save.
fn key(files: &ModelFiles, pieces: &[Piece], jobs: &[Job]) -> u64 {
    const SAMPLE: usize = 4096;
    let mut hash = ContentHash::default();
    hash.update(&ENCODERS_VERSION.to_le_bytes());
    for nanoseconds in files.tensors.changed() {
        hash.update(&nanoseconds.to_le_bytes());
    }
    for bytes in pieces.iter().flat_map(|piece| &piece.sources) {
        let end = bytes.len().saturating_sub(SAMPLE);
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(&bytes[..bytes.len().min(SAMPLE)]);
        hash.update(&bytes[end..]);
    }
    for Job { importance, .. } in jobs {
        hash.update(&[u8::from(importance.is_some())]);
        importance.iter().flatten().for_each(|value| hash.update(&value.to_le_bytes()));
    }
    hash.finish()
}
