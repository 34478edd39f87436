//! What a step costs: bytes it has to read and operations it has to do, at the least.
//!
//! Divided by what a machine reads and computes per second, these are the time below which no
//! engine gets. They are counted, not measured: from a loaded model's matrices
//! ([`Cost::of_model`]), or from a [`ModelSpec`] whose weights are imagined at so many bits
//! ([`Cost::imagined`]), before anything is downloaded. Norms, activations and rotary embeddings
//! are left out; they are less than a hundredth.

use std::ops::{Add, AddAssign, Range};

use moeba_kernels::activations::ActKinds;
use moeba_kernels::attention::{KvDType, Mask};
use moeba_kernels::tensor::Matrix;

use crate::Model;
use crate::batch::BLOCK_TOKENS;
use crate::experts::GateUp;
use crate::kv;
use crate::parameters;
use crate::spec::{LayerSpec, Mixer, ModelSpec};

/// Multiplications and additions, each counted as one, by the arithmetic they are done in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// With quantised weights, in 8-bit integers: 2 for each weight and token. Inputs of sixteen
    /// bits are two limbs and make a machine do twice as many
    /// ([`Precision::limbs`](moeba_kernels::activations::Precision::limbs)).
    pub integer: u64,
    /// With weights that are floats: 2 for each weight and token.
    pub float: u64,
    /// Attention, in floats: for each query head and each position it sees, 2 for each number of
    /// its key (the score) and of its value (the weighted sum).
    pub attention: u64,
}

/// What a step reads and does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of weights that every step reads, whatever its tokens; of embeddings a row for each.
    pub dense_bytes: u64,
    /// Bytes of experts' weights.
    pub expert_bytes: u64,
    /// Bytes of cached keys and values, each position once for a sequence.
    pub cache_bytes: u64,
    /// Arithmetic.
    pub operations: Operations,
}

/// The shape of a step: `sequences` of them, each of which computes `positions`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StepShape {
    /// How many sequences take part.
    pub sequences: usize,
    /// Which positions each computes: one when it decodes, many when it reads a prompt.
    pub positions: Range<usize>,
    /// Rows of logits that are wanted, of all sequences together.
    pub logit_rows: usize,
    /// How keys and values are cached.
    pub kv_dtype: KvDType,
}

/// What a model makes each step cost.
#[derive(Clone, Debug)]
pub struct Cost {
    layers: Vec<LayerCost>,
    head: Weights,
    embedding_row_bytes: u64,
}

#[derive(Clone, Debug)]
struct LayerCost {
    dense: Weights,
    experts: Option<Experts>,
    mixer: Mixer,
}

/// The experts of a layer, which are all alike.
#[derive(Clone, Copy, Debug)]
struct Experts {
    count: usize,
    per_token: usize,
    each: Weights,
}

/// Some weights: their bytes, and how many there are by the arithmetic they take part in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weights {
    pub(crate) bytes: u64,
    integer: u64,
    float: u64,
}

impl Cost {
    /// Counts the matrices of a model.
    pub fn of_model(model: &Model) -> Cost {
        let layer = |(index, spec): (usize, &LayerSpec)| {
            let each = || of_expert(model, index);
            LayerCost {
                dense: model.layers[index].weights().map(|weight| of(weight.matrix())).sum(),
                experts: Experts::of(spec, each),
                mixer: spec.mixer.clone(),
            }
        };
        let embedding = &model.embedding;
        Cost {
            layers: model.spec.layers.iter().enumerate().map(layer).collect(),
            head: of(model.head.weight.matrix()),
            embedding_row_bytes: (embedding.num_bytes() / embedding.rows().max(1)) as u64,
        }
    }

    /// Counts a model whose weights would take `bits` each (4.5 as Q4_K, 16 as BF16; what takes
    /// less than 16 counts as quantised). Biases and norms count as weights.
    pub fn imagined(spec: &ModelSpec, bits: f64) -> Cost {
        let weights = |count: u64| {
            let (integer, float) = if bits < 16.0 { (count, 0) } else { (0, count) };
            Weights { bytes: (count as f64 * bits / 8.0) as u64, integer, float }
        };
        let hidden = spec.hidden_size;
        let layer = |layer: &LayerSpec| {
            let active = parameters::of_layer(layer, hidden).active;
            let each = layer.ffn.moe().map_or(0, |moe| parameters::of_dense(&moe.expert, hidden));
            let chosen = layer.ffn.moe().map_or(0, |moe| moe.num_experts_per_tok * each);
            LayerCost {
                dense: weights(active - chosen as u64),
                experts: Experts::of(layer, || weights(each as u64)),
                mixer: layer.mixer.clone(),
            }
        };
        Cost {
            layers: spec.layers.iter().map(layer).collect(),
            head: weights((spec.vocab_size * hidden) as u64),
            embedding_row_bytes: weights(hidden as u64).bytes,
        }
    }

    /// How many layers the model has.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// What one token costs that a single sequence decodes at `position`, with logits.
    pub fn token(&self, position: usize, kv_dtype: KvDType) -> Work {
        let positions = position..position + 1;
        self.step(&StepShape { sequences: 1, positions, logit_rows: 1, kv_dtype })
    }

    /// What a step costs. Several tokens share experts: here as many different ones are read as
    /// `tokens` draws of `num_experts_per_tok` among all alike touch on average. Real routers
    /// have favourites and touch fewer; a single token's bytes are exact.
    pub fn step(&self, shape: &StepShape) -> Work {
        let tokens = (shape.sequences * shape.positions.len()) as u64;
        if tokens == 0 {
            return Work::default();
        }
        let mut work = Work::default();
        work.dense_bytes += tokens * self.embedding_row_bytes;
        if shape.logit_rows > 0 {
            work.dense_bytes += self.head.bytes;
        }
        self.head.count(shape.logit_rows as u64, &mut work.operations);
        for layer in &self.layers {
            work.dense_bytes += layer.dense.bytes;
            layer.dense.count(tokens, &mut work.operations);
            if let Some(experts) = &layer.experts {
                let touched = experts.touched(tokens);
                work.expert_bytes += (touched * experts.each.bytes as f64).round() as u64;
                let visits = tokens * experts.per_token as u64;
                experts.each.count(visits, &mut work.operations);
            }
            attend(&layer.mixer, shape, &mut work);
        }
        work
    }
}

impl Experts {
    fn of(layer: &LayerSpec, each: impl Fn() -> Weights) -> Option<Experts> {
        layer.ffn.moe().map(|moe| Experts {
            count: moe.num_experts,
            per_token: moe.num_experts_per_tok,
            each: each(),
        })
    }

    /// How many different experts `tokens` tokens touch: `E · (1 − (1 − k/E)^tokens)`.
    fn touched(&self, tokens: u64) -> f64 {
        let count = self.count as f64;
        let missed = 1.0 - self.per_token as f64 / count;
        count * (1.0 - missed.powf(tokens as f64))
    }
}

impl Weights {
    /// Adds what these weights do with `rows` input rows.
    pub(crate) fn count(&self, rows: u64, operations: &mut Operations) {
        operations.integer += 2 * rows * self.integer;
        operations.float += 2 * rows * self.float;
    }
}

impl std::iter::Sum for Weights {
    fn sum<I: Iterator<Item = Weights>>(parts: I) -> Weights {
        parts.fold(Weights::default(), |sum, part| Weights {
            bytes: sum.bytes + part.bytes,
            integer: sum.integer + part.integer,
            float: sum.float + part.float,
        })
    }
}

/// Counts one matrix.
pub(crate) fn of(matrix: Matrix) -> Weights {
    let count = (matrix.rows() * matrix.cols()) as u64;
    let floats = ActKinds::of(matrix.dtype()) == ActKinds::F32;
    let (integer, float) = if floats { (0, count) } else { (count, 0) };
    Weights { bytes: matrix.num_bytes() as u64, integer, float }
}

/// The first expert of a layer, which stands for all.
fn of_expert(model: &Model, layer: usize) -> Weights {
    let expert = model.experts.expert(layer, 0);
    let (first, second) = match expert.gate_up {
        GateUp::Apart { gate, up } => (gate, Some(up)),
        GateUp::ByTurns(both) => (both, None),
    };
    let weights: Weights =
        [Some(first), second, Some(expert.down)].into_iter().flatten().map(of).sum();
    Weights { bytes: expert.num_bytes(), ..weights }
}

/// Adds one layer's attention of all sequences.
fn attend(mixer: &Mixer, shape: &StepShape, work: &mut Work) {
    // Numbers of a head's key, and of what it gathers.
    let (heads, widths, mask) = match mixer {
        Mixer::Gqa(gqa) => (gqa.num_attention_heads, 2 * gqa.head_dim, gqa.mask),
        Mixer::Mla(mla) => {
            (mla.num_attention_heads, mla.cache_dim() + mla.kv_lora_rank, Mask::Full)
        }
    };
    let positions = &shape.positions;
    let seen: usize = positions.clone().map(|p| p + 1 - mask.first_visible(p)).sum();
    let pairs = (shape.sequences * heads * seen) as u64;
    work.operations.attention += 2 * pairs * widths as u64;
    let cached = (shape.sequences * (positions.end - mask.first_visible(positions.start))) as u64;
    let block = kv::layer_block_bytes(mixer, shape.kv_dtype);
    work.cache_bytes += cached * block / BLOCK_TOKENS as u64;
}

impl Operations {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.integer + self.float + self.attention
    }
}

impl Work {
    /// Bytes of weights.
    pub fn weight_bytes(&self) -> u64 {
        self.dense_bytes + self.expert_bytes
    }

    /// Bytes of weights and cache.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes() + self.cache_bytes
    }
}

impl Add for Operations {
    type Output = Operations;

    fn add(self, other: Operations) -> Operations {
        Operations {
            integer: self.integer + other.integer,
            float: self.float + other.float,
            attention: self.attention + other.attention,
        }
    }
}

impl Add for Work {
    type Output = Work;

    fn add(self, other: Work) -> Work {
        Work {
            dense_bytes: self.dense_bytes + other.dense_bytes,
            expert_bytes: self.expert_bytes + other.expert_bytes,
            cache_bytes: self.cache_bytes + other.cache_bytes,
            operations: self.operations + other.operations,
        }
    }
}

impl AddAssign for Work {
    fn add_assign(&mut self, other: Work) {
        *self = *self + other;
    }
}
