//! The numbers of a tensor, however many tensors of a directory hold them, and in whatever format.

use std::sync::{Arc, Mutex, PoisonError};

use moeba_kernels::os::memory::Bytes;
use moeba_kernels::tensor::Matrix;

use crate::error::LoadError;
use crate::families::names::{Naming, Role, bias_of};
use crate::files::ModelFiles;
use crate::planes::{self, Finder, Planes, Stored};

/// Supplies row `row` of a tensor, counted through all its leading dimensions.
pub(super) type Rows = Arc<dyn Fn(usize, &mut [f32]) + Send + Sync>;

/// Matrices `[rows, cols]` one after another.
#[derive(Clone)]
struct Stack {
    parts: Arc<[Stored]>,
    rows: usize,
    cols: usize,
}

impl Stack {
    fn read(&self, row: usize, out: &mut [f32]) {
        let Stored { dtype, bytes, planes } = &self.parts[row / self.rows];
        let matrix = Matrix::new(*dtype, self.rows, self.cols, bytes);
        planes.attach(matrix).decode_row(row % self.rows, out);
    }
}

/// A tensor of the directory, or the tensors of all experts as one.
pub(super) struct Found {
    /// Outermost dimension first.
    pub(super) shape: Vec<usize>,
    pub(super) sources: Vec<Bytes>,
    stack: Stack,
}

impl Found {
    /// The tensor of `role`, or those of all `experts`, and what belongs to each as its bias;
    /// `None` if the model has none.
    pub(super) fn find(
        files: &ModelFiles,
        naming: Naming,
        (role, layer, experts): (Role, usize, usize),
    ) -> Result<Option<(Found, Option<Found>)>, LoadError> {
        let source = &files.tensors;
        let is_turned = Role::TRANSPOSED.contains(&role);
        // What is packed is never transposed, though it may share the name.
        let holds = |name: &str| {
            if is_turned { source.contains(name) } else { planes::holds(source, name) }
        };
        let mut names = naming.candidates(role, layer, 0);
        let Some((name, single)) = names.find(|(name, _)| holds(name)) else { return Ok(None) };
        let mut all = vec![name];
        for expert in 1..if single { experts } else { 1 } {
            let mut names = naming.candidates(role, layer, expert);
            all.extend(names.find(|(name, single)| *single && holds(name)).map(|(name, _)| name));
        }
        let found = Found::of(files, &all, single)?;
        let biases: Vec<String> = all.iter().map(|name| bias_of(name)).collect();
        let biased = source.contains(&biases[0]);
        Ok(Some((found, biased.then(|| Found::of(files, &biases, single)).transpose()?)))
    }

    /// The tensors `names`; of one dimension more than each, if they are `stacked`.
    fn of(files: &ModelFiles, names: &[String], stacked: bool) -> Result<Found, LoadError> {
        let mut shape = planes::shape(&files.tensors, &names[0]);
        let cols = shape.last().copied().unwrap_or(1);
        let (count, rows) = match shape[..] {
            [count, rows, _] => (Some(count), rows),
            [rows, _] => (None, rows),
            _ => (None, 1),
        };
        let (mut parts, mut rows_of_part) = (Vec::new(), rows);
        for name in names {
            let found = Finder::new(files, name, count, [rows, cols]).find()?;
            if let Some(found) = found.filter(|_| shape.len() > 1) {
                parts.extend(found);
                continue;
            }
            let tensor = files.tensors.get(name)?;
            rows_of_part = rows * count.unwrap_or(1);
            parts.push(Stored { dtype: tensor.dtype, bytes: tensor.bytes, planes: Planes::NONE });
        }
        if stacked {
            shape.insert(0, names.len());
        }
        let sources = parts.iter().map(|part| part.bytes.clone()).collect();
        Ok(Found { shape, sources, stack: Stack { parts: parts.into(), rows: rows_of_part, cols } })
    }

    /// The rows as they lie.
    pub(super) fn rows(&self) -> Rows {
        let stack = self.stack.clone();
        Arc::new(move |row, out| stack.read(row, out))
    }

    /// The columns of the first `kept` of every `each` rows, as rows.
    pub(super) fn columns(&self, each: usize, kept: usize) -> Rows {
        let (stack, made) = (self.stack.clone(), Mutex::new([const { None }; 2]));
        Arc::new(move |row, out| {
            let (part, col) = (row / stack.cols, row % stack.cols);
            // Threads are at the same part or at two neighbours.
            let mut made = made.lock().unwrap_or_else(PoisonError::into_inner);
            let slot: &mut Option<(usize, Arc<[f32]>)> = &mut made[part % 2];
            if slot.as_ref().is_none_or(|(own, _)| *own != part) {
                *slot = Some((part, turned(&stack, part * each, kept)));
            }
            let turned = slot.as_ref().map(|(_, turned)| turned.clone());
            drop(made);
            let turned = turned.expect("the slot was filled");
            out.copy_from_slice(&turned[col * kept..][..kept]);
        })
    }
}

/// Rows `first .. first + count` as columns, `[cols, count]`.
fn turned(stack: &Stack, first: usize, count: usize) -> Arc<[f32]> {
    /// Rows that are decoded at a time, so that what is written lies side by side.
    const STRIP: usize = 16;
    let cols = stack.cols;
    let (mut strip, mut turned) = (vec![0.0; STRIP * cols], vec![0.0; cols * count]);
    for start in (0..count).step_by(STRIP) {
        let height = STRIP.min(count - start);
        for (row, values) in strip.chunks_exact_mut(cols).take(height).enumerate() {
            stack.read(first + start + row, values);
        }
        for (col, out) in turned.chunks_exact_mut(count).enumerate() {
            for (row, out) in out[start..start + height].iter_mut().enumerate() {
                *out = strip[row * cols + col];
            }
        }
    }
    turned.into()
}
