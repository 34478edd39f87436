//! What belongs to a tensor's weights and lies in tensors of its own: scales, zero points, factors.
//!
//! Quantised safetensors come in several spellings. Which one a tensor has is told by **which
//! tensors exist** beside it, never by the configuration's list of exceptions: layers may be mixed
//! freely. Nothing is converted; shapes and types are checked here, so that kernels need not.
//!
//! ```text
//! X.weight_packed U8   + X.weight_scale E4M3 + X.weight_global_scale   NVFP4, divided by it
//! X.weight_packed U8   + X.weight_scale U8                             MXFP4
//! X.weight_packed I32  + X.weight_scale (+ X.weight_zero_point)        4-bit integers in groups
//! X.weight U8          + X.weight_scale E4M3 + X.weight_scale_2        NVFP4, multiplied by it
//! X_blocks U8          + X_scales U8                                   MXFP4, stacked experts
//! X.weight E4M3        + X.weight_scale_inv, .weight_scale or .qscale_weight
//! X.weight (GGUF)      + X.scale                                       factors of any format
//! ```
//! Scales of activations are left alone: weights are multiplied with unrounded inputs' integers.

mod method;
mod shapes;

use moeba_kernels::dtype::DType;
use moeba_kernels::os::memory::Bytes;
use moeba_kernels::tensor::{Factor, Matrix, ScaleType, Scales};

use crate::error::{Fault, LoadError};
use crate::files::{Container, ModelFiles, StoredType, TensorHeader, TensorSource};

pub(crate) use method::check as check_method;
use shapes::{GUARD_HINT, int4_group, scale_type, trivial_g_idx};

/// The bytes of one matrix with all that lies apart from them.
#[derive(Clone, Debug)]
pub(crate) struct Stored {
    pub(crate) dtype: DType,
    pub(crate) bytes: Bytes,
    pub(crate) planes: Planes,
}

impl Stored {
    /// The format's name for people, who need not know where scales lie but how far they reach.
    pub(crate) fn format_name(&self) -> String {
        let tile = self.planes.0.as_ref().and_then(|parts| parts.scales.as_ref()?.tile.into());
        match (self.dtype, tile) {
            (DType::Nvfp4Planes, _) => "NVFP4".to_owned(),
            (DType::Mxfp4Planes, _) => "MXFP4".to_owned(),
            (DType::Int4, Some([_, cols])) => format!("INT4 in groups of {cols}"),
            (DType::F8E4M3, Some([1, _])) => "FP8 with scales by row".to_owned(),
            (DType::F8E4M3, Some([rows, cols])) => format!("FP8 with scales by {rows} x {cols}"),
            (DType::F8E4M3, None) => "FP8 with one scale".to_owned(),
            (dtype, _) => dtype.name().to_owned(),
        }
    }
}

/// What lies apart from a matrix' weights, if anything does: a word, because most matrices have
/// nothing and there are thousands.
#[derive(Clone, Debug)]
pub(crate) struct Planes(Option<Box<Parts>>);

#[derive(Clone, Debug)]
struct Parts {
    scales: Option<Plane>,
    zeros: Option<Bytes>,
    factor: Factor,
}

/// A plane of scales, see [`Scales`].
#[derive(Clone, Debug)]
struct Plane {
    kind: ScaleType,
    /// Rows and columns of the tiles that share a scale.
    tile: [usize; 2],
    bytes: Bytes,
}

impl Planes {
    /// Nothing lies apart.
    pub(crate) const NONE: Planes = Planes(None);

    /// Whether nothing lies apart.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// `matrix` with these planes.
    pub(crate) fn attach<'a>(&'a self, matrix: Matrix<'a>) -> Matrix<'a> {
        let Some(parts) = &self.0 else { return matrix };
        let mut matrix = matrix.with_factor(parts.factor);
        if let Some(Plane { kind, tile: [rows, cols], bytes }) = &parts.scales {
            let scales = Scales { kind: *kind, rows: *rows, cols: *cols, bytes };
            matrix = matrix.with_scales(scales);
        }
        parts.zeros.as_ref().map_or(matrix, |zeros| matrix.with_zeros(zeros))
    }
}

/// Whether the file holds this tensor, or one that stands for it.
pub(crate) fn holds(source: &TensorSource, name: &str) -> bool {
    header(source, name).is_some()
}

/// Of this tensor, or of the packed codes that stand for it.
fn header<'a>(source: &'a TensorSource, name: &str) -> Option<&'a TensorHeader> {
    let packed = || ["_packed", "_blocks"].iter().find_map(|s| source.header(&with(name, s)));
    source.header(name).or_else(packed)
}

/// The dimensions of the numbers called `name`, or of what is packed in their place.
///
/// # Panics
/// If the file does not hold them.
pub(crate) fn shape(source: &TensorSource, name: &str) -> Vec<usize> {
    let header = header(source, name).expect("whoever asks has found it");
    let mut shape = header.shape.clone();
    let per_element = match header.stored {
        StoredType::Known(_) => 1,
        StoredType::Other("I32") => 8,
        StoredType::Other(_) if header.name.ends_with("_blocks") => {
            // Blocks are a dimension of their own.
            shape.pop();
            32
        }
        StoredType::Other(_) => 2,
    };
    if let Some(cols) = shape.last_mut() {
        *cols *= per_element;
    }
    shape
}

fn with(name: &str, suffix: &str) -> String {
    format!("{name}{suffix}")
}

/// Looks for one tensor's planes.
pub(crate) struct Finder<'a> {
    source: &'a TensorSource,
    container: Container,
    /// Rows and columns of tiles, where the configuration says.
    block: [usize; 2],
    /// Tensors that were looked at.
    used: Vec<String>,
    name: &'a str,
    /// How many matrices are stacked; `None` if the tensor is a single one.
    count: Option<usize>,
    rows: usize,
    cols: usize,
}

impl<'a> Finder<'a> {
    /// For the tensor `name`: a matrix `[rows, cols]`, or `count` of them.
    pub(crate) fn new(
        files: &'a ModelFiles,
        name: &'a str,
        count: Option<usize>,
        [rows, cols]: [usize; 2],
    ) -> Finder<'a> {
        let (source, container) = (&files.tensors, files.container);
        let block = method::block(files);
        Finder { source, container, block, used: Vec::new(), name, count, rows, cols }
    }

    /// Names of the tensors that were looked at.
    pub(crate) fn used(self) -> Vec<String> {
        self.used
    }

    /// The matrices, if their weights are stored with anything apart from them; `None` if they are
    /// stored plainly, or not at all.
    pub(crate) fn find(&mut self) -> Result<Option<Vec<Stored>>, LoadError> {
        let name = self.name;
        let stored = |name: &str| self.source.header(name).map(|header| header.stored);
        if stored(name).is_none() {
            let (packed, blocks) = (with(name, "_packed"), with(name, "_blocks"));
            return match (stored(&packed), stored(&blocks)) {
                (Some(StoredType::Other("I32")), _) => self.int4(&packed).map(Some),
                (Some(_), _) => self.packed(&packed).map(Some),
                (None, Some(_)) => self.blocks(&blocks).map(Some),
                (None, None) => Ok(None),
            };
        }
        match (self.container, stored(name)) {
            (Container::HuggingFace | Container::Mistral, Some(StoredType::Other("U8"))) => {
                let blocks = name.ends_with("_blocks");
                if blocks { self.blocks(name) } else { self.modelopt() }.map(Some)
            }
            (
                Container::HuggingFace | Container::Mistral,
                Some(StoredType::Known(DType::F8E4M3)),
            ) => self.e4m3().map(Some),
            (Container::Gguf, Some(StoredType::Known(dtype))) => self.gguf(dtype),
            _ => Ok(None),
        }
    }

    /// NVFP4 or MXFP4 of compressed-tensors.
    fn packed(&mut self, codes: &str) -> Result<Vec<Stored>, LoadError> {
        let scale = with(self.name, "_scale");
        let bytes = self.tensor(codes, &["U8"], &[self.rows, self.cols / 2])?;
        let global = with(self.name, "_global_scale");
        if !self.source.contains(&global) && self.stored_name(&scale) != Some("F8_E4M3") {
            return self.mxfp4(&bytes, &scale);
        }
        self.ignore(&with(base(self.name), ".input_global_scale"));
        let factors = self.factors(&global)?;
        if let Some(small) = factors.iter().find(|factor| **factor <= 1.0) {
            let fault = self.source.fault(&global).expected("a divisor in the thousands");
            return Err(fault.found(small).hint(GUARD_HINT).damaged());
        }
        self.nvfp4(&bytes, &scale, &factors, Factor::Over)
    }

    /// NVFP4 of ModelOpt.
    fn modelopt(&mut self) -> Result<Vec<Stored>, LoadError> {
        let bytes = self.tensor(self.name, &["U8"], &[self.rows, self.cols / 2])?;
        let global = with(self.name, "_scale_2");
        self.ignore(&with(base(self.name), ".input_scale"));
        let factors = self.factors(&global)?;
        if let Some(large) = factors.iter().find(|factor| **factor >= 1.0) {
            let fault = self.source.fault(&global).expected("a multiplier far below 1");
            return Err(fault.found(large).hint(GUARD_HINT).damaged());
        }
        self.nvfp4(&bytes, &with(self.name, "_scale"), &factors, Factor::Times)
    }

    fn nvfp4(
        &mut self,
        codes: &Bytes,
        scale: &str,
        factors: &[f32],
        factor: fn(f32) -> Factor,
    ) -> Result<Vec<Stored>, LoadError> {
        self.whole_blocks(DType::Nvfp4Planes)?;
        let plane = self.tensor(scale, &["F8_E4M3"], &[self.rows, self.cols / 16])?;
        let plane = Plane { kind: ScaleType::E4M3, tile: [1, 16], bytes: plane };
        let apart = (Some(&plane), None);
        Ok(self.split(DType::Nvfp4Planes, codes, apart, |part| factor(factors[part])))
    }

    /// MXFP4 as gpt-oss has it: blocks are a dimension of their own.
    fn blocks(&mut self, codes: &str) -> Result<Vec<Stored>, LoadError> {
        let bytes = self.tensor(codes, &["U8"], &[self.rows, self.cols / 32, 16])?;
        self.mxfp4(&bytes, &with(codes.strip_suffix("_blocks").unwrap_or(codes), "_scales"))
    }

    fn mxfp4(&mut self, codes: &Bytes, scale: &str) -> Result<Vec<Stored>, LoadError> {
        self.whole_blocks(DType::Mxfp4Planes)?;
        let plane = self.tensor(scale, &["U8", "F8_E8M0"], &[self.rows, self.cols / 32])?;
        let plane = Plane { kind: ScaleType::E8M0, tile: [1, 32], bytes: plane };
        Ok(self.split(DType::Mxfp4Planes, codes, (Some(&plane), None), |_| Factor::ONE))
    }

    /// Four-bit integers of compressed-tensors.
    fn int4(&mut self, codes: &str) -> Result<Vec<Stored>, LoadError> {
        self.whole_blocks(DType::Int4)?;
        let bytes = self.tensor(codes, &["I32"], &[self.rows, self.cols / 8])?;
        let scale = with(self.name, "_scale");
        let shape = self.shape_of(&scale)?;
        let group = int4_group(self.source, &scale, &shape, self.cols)?;
        let kind = scale_type(self.source, &scale)?;
        let groups = self.cols / group;
        let plane = self.tensor(&scale, &["F32", "BF16", "F16"], &[self.rows, groups])?;
        let order = with(self.name, "_g_idx");
        if let Some(header) = self.source.header(&order) {
            self.ignore(&order);
            trivial_g_idx(self.source, header, group)?;
        }
        self.ignore(&with(self.name, "_shape"));
        let zeros = with(self.name, "_zero_point");
        let zeros = if self.source.contains(&zeros) {
            Some(self.tensor(&zeros, &["I32"], &[self.rows.div_ceil(8), groups])?)
        } else {
            None
        };
        let plane = Plane { kind, tile: [1, group], bytes: plane };
        let apart = (Some(&plane), zeros.as_ref());
        Ok(self.split(DType::Int4, &bytes, apart, |_| Factor::ONE))
    }

    /// Floats of 8 bits, with scales of any reach.
    fn e4m3(&mut self) -> Result<Vec<Stored>, LoadError> {
        let shape = [self.rows, self.cols];
        let codes = self.tensor(self.name, &["F8_E4M3"], &shape)?;
        let native = with(base(self.name), ".qscale_weight");
        let names = [with(self.name, "_scale_inv"), with(self.name, "_scale"), native];
        let Some(scale) = names.iter().find(|name| self.source.contains(name)) else {
            let fault = self.source.fault(&names[0]).expected("the scales of 8-bit weights");
            return Err(fault.found("no such tensor").damaged());
        };
        for suffix in [".activation_scale", ".input_scale", ".qscale_act"] {
            self.ignore(&with(base(self.name), suffix));
        }
        self.ignore(&with(self.name, "_activation_scale"));
        self.ignore(&with(self.name, "_input_scale"));
        let shape = self.shape_of(scale)?;
        if shapes::is_factors(&shape, self.count) {
            let factors = self.factors(scale)?;
            let factor = |part: usize| Factor::Times(factors[part]);
            return Ok(self.split(DType::F8E4M3, &codes, (None, None), factor));
        }
        let kind = scale_type(self.source, scale)?;
        let tile = shapes::tile(&shape, self.count, [self.rows, self.cols], self.block);
        let Some(tile) = tile else {
            let [rows, cols] = self.block;
            let expected = format!(
                "one scale, one for each of {} rows, or one for each tile of {rows} x {cols}",
                self.rows
            );
            let fault = self.source.fault(scale).expected(expected);
            return Err(fault.found(format!("shape {shape:?}")).damaged());
        };
        let bytes = self.raw(scale)?;
        let plane = Plane { kind, tile, bytes };
        Ok(self.split(DType::F8E4M3, &codes, (Some(&plane), None), |_| Factor::ONE))
    }

    /// Whatever format, with the factors that GGUF keeps beside it.
    fn gguf(&mut self, dtype: DType) -> Result<Option<Vec<Stored>>, LoadError> {
        self.ignore(&with(base(self.name), ".input_scale"));
        let scale = with(base(self.name), ".scale");
        let row_bytes = dtype.row_bytes(self.cols);
        let shape = self.source.header(self.name).map(|header| &header.shape[..]);
        if !self.source.contains(&scale)
            || row_bytes.is_none()
            || shape != Some(&self.shape(&[self.rows, self.cols]))
        {
            return Ok(None);
        }
        let factors = self.factors(&scale)?;
        let bytes = self.raw(self.name)?;
        let parts = self.split(dtype, &bytes, (None, None), |part| Factor::Times(factors[part]));
        Ok(Some(parts))
    }

    /// Cuts codes and scales into the matrices they belong to.
    fn split(
        &self,
        dtype: DType,
        codes: &Bytes,
        (plane, zeros): (Option<&Plane>, Option<&Bytes>),
        factor: impl Fn(usize) -> Factor,
    ) -> Vec<Stored> {
        let count = self.count.unwrap_or(1);
        let part = |bytes: &Bytes, index: usize| {
            let each = bytes.len() / count;
            bytes.slice(index * each..(index + 1) * each)
        };
        let one = |index: usize| {
            let scales = plane.map(|Plane { kind, tile, bytes }| Plane {
                kind: *kind,
                tile: *tile,
                bytes: part(bytes, index),
            });
            let zeros = zeros.map(|bytes| part(bytes, index));
            let parts = Parts { scales, zeros, factor: factor(index) };
            let planes = Planes(Some(Box::new(parts)));
            Stored { dtype, bytes: part(codes, index), planes }
        };
        (0..count).map(one).collect()
    }

    /// One positive number for each matrix: from one for all, or as many as there are matrices.
    fn factors(&mut self, name: &str) -> Result<Vec<f32>, LoadError> {
        let shape = self.shape_of(name)?;
        if !shapes::is_factors(&shape, self.count) {
            let count = self.count.map_or(String::new(), |count| format!(", or {count}"));
            let fault = self.source.fault(name).expected(format!("one number{count}"));
            return Err(fault.found(format!("shape {shape:?}")).damaged());
        }
        let tensor = self.source.get(name)?;
        self.used.push(name.to_owned());
        let mut values = vec![0.0; shape.iter().product()];
        if tensor.dtype.format().block_len != 1 {
            let fault = self.source.fault(name).expected("plain floats");
            return Err(fault.found(tensor.dtype.name()).damaged());
        }
        tensor.dtype.decode_row(&tensor.bytes, &mut values);
        if let Some(bad) = values.iter().find(|value| !(value.is_finite() && **value > 0.0)) {
            let fault = self.source.fault(name).expected("a positive number");
            return Err(fault.found(bad).hint("the file is damaged; obtain it again").damaged());
        }
        let count = self.count.unwrap_or(1);
        Ok(if values.len() == count { values } else { vec![values[0]; count] })
    }

    /// Checks that rows are whole blocks of 32 weights.
    fn whole_blocks(&self, dtype: DType) -> Result<(), LoadError> {
        if dtype.row_bytes(self.cols).is_some() {
            return Ok(());
        }
        let fault = self.source.fault(self.name).expected("rows of a multiple of 32 weights");
        Err(fault.found(format!("{} weights", self.cols)).unsupported())
    }

    /// `shape` of one matrix, or of the stack.
    fn shape(&self, shape: &[usize]) -> Vec<usize> {
        self.count.into_iter().chain(shape.iter().copied()).collect()
    }

    fn shape_of(&self, name: &str) -> Result<Vec<usize>, LoadError> {
        Ok(self.header(name)?.shape.clone())
    }

    fn header(&self, name: &str) -> Result<&'a crate::files::TensorHeader, LoadError> {
        self.source.header(name).ok_or_else(|| {
            let expected = format!("this tensor, since `{}` is quantised", self.name);
            let hint = "the checkpoint is incomplete; obtain all of its files";
            self.missing(name).expected(expected).hint(hint).damaged()
        })
    }

    fn missing(&self, name: &str) -> Fault {
        self.source.fault(name).found("no such tensor")
    }

    fn stored_name(&self, name: &str) -> Option<&'static str> {
        self.source.header(name).map(|header| header.stored.name())
    }

    /// The bytes of the tensor `name`, which must be of one of these types and, for each matrix,
    /// this shape.
    fn tensor(&mut self, name: &str, types: &[&str], shape: &[usize]) -> Result<Bytes, LoadError> {
        let header = self.header(name)?;
        let (found, shape) = (header.stored.name(), self.shape(shape));
        if !types.contains(&found) {
            let fault = self.source.fault(name).expected(types.join(" or "));
            return Err(fault.found(found).damaged());
        }
        if header.shape != shape {
            let fault = self.source.fault(name).expected(format!("shape {shape:?}"));
            return Err(fault.found(format!("{:?}", header.shape)).damaged());
        }
        self.raw(name)
    }

    fn raw(&mut self, name: &str) -> Result<Bytes, LoadError> {
        self.used.push(name.to_owned());
        self.source.bytes_of(name)
    }

    /// Marks a tensor as known that does nothing here.
    fn ignore(&mut self, name: &str) {
        if self.source.contains(name) {
            self.used.push(name.to_owned());
        }
    }
}

/// What a tensor's own name begins with: the module it belongs to.
fn base(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}
