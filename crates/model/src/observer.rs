//! Looking into a forward pass: what flows between its parts, for those who check, measure or
//! learn from it.
//!
//! Nothing is computed, copied or kept for an observer that is not there. One that is there is
//! called on the thread that runs the pass, between parallel regions; it may take its time.

use moeba_kernels::activations::Activations;
use moeba_kernels::matmul::{Job, Rows, matmul};
use moeba_kernels::pool::Pool;
use moeba_kernels::tensor::Matrix;

use crate::tensor_name::TensorName;

/// One half of a layer, or the end of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Branch {
    /// Where tokens see each other.
    Mixer,
    /// The feed-forward network.
    Ffn,
    /// The final norm and the head.
    Head,
}

/// A part of a pass, as far as its time can be told: what shares a parallel region is one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Look-up of the tokens' embeddings, and of the angles of their positions.
    Embedding,
    /// Norms of branches' inputs and outputs, of latents, and before the head.
    Norms,
    /// Inputs made ready for products: rounded to integers.
    Rounding,
    /// Products with attention's matrices.
    Projections,
    /// Norms of heads, rotation, writing of keys and values, and copies between layouts.
    Positions,
    /// Scores, softmax and weighted sums over cached positions.
    Attention,
    /// A router's logits and choices.
    Router,
    /// Gate and up of all experts at work, the shared one included.
    ExpertsIn,
    /// Gate and up of a network without experts.
    DenseIn,
    /// What joins gate and up.
    Activation,
    /// Down of all experts at work, the shared one included.
    ExpertsOut,
    /// Down of a network without experts.
    DenseOut,
    /// Sums: of a token's experts, and of branches and the stream.
    Sums,
    /// Logits.
    Head,
}

/// Sees a forward pass from inside. Write the methods that matter; the others do nothing.
pub trait Observer: Sync {
    /// The residual stream `[tokens, hidden]` on its way into a branch of `layer`, before the
    /// branch's norm. What is written here is what the pass goes on with.
    fn begins(&self, layer: usize, branch: Branch, stream: &mut [f32]) {
        let _ = (layer, branch, stream);
    }

    /// What a branch will add to the stream, `[tokens, hidden]`, after its post-norm and before
    /// the residual scale. Not called for the head, whose result are the logits.
    fn ends(&self, layer: usize, branch: Branch, output: &[f32]) {
        let _ = (layer, branch, output);
    }

    /// A router's logits `[tokens, experts]`. What is written here is what experts are chosen by.
    fn router(&self, layer: usize, logits: &mut [f32]) {
        let _ = (layer, logits);
    }

    /// The choices of a mixture, and what each chosen expert said.
    fn mixture(&self, layer: usize, mixture: &Mixture) {
        let _ = (layer, mixture);
    }

    /// All work since the last call, or since the pass began, was this part's.
    fn done(&self, part: Part) {
        let _ = part;
    }

    /// A product with a weight matrix, before any bias.
    fn product(&self, product: &Product) {
        let _ = product;
    }
}

/// One product with a weight matrix: each output row is the matrix times one input row.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Where the matrix is from.
    pub name: TensorName,
    /// `[outputs, inputs]`
    pub weight: Matrix<'a>,
    /// `[rows, outputs]`
    pub output: &'a [f32],
    input: &'a Activations,
    rows: &'a Rows<'a>,
}

impl Product<'_> {
    /// Number of input rows, and of output rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Input row `index`, in f32 before any rounding, `[inputs]`.
    pub fn input(&self, index: usize) -> &[f32] {
        self.input.row(self.rows.at(index))
    }
}

/// One layer's mixture of experts at work.
#[derive(Clone, Copy, Debug)]
pub struct Mixture<'a> {
    /// How many experts each token has.
    pub num_experts_per_tok: usize,
    /// Chosen experts, best first, `[tokens, num_experts_per_tok]`.
    pub experts: &'a [u32],
    /// Their weights, `[tokens, num_experts_per_tok]`.
    pub weights: &'a [f32],
    /// Row of `outputs` for each choice, `[tokens, num_experts_per_tok]`.
    pub(crate) places: &'a [u32],
    /// `[choices, hidden]`, before weighting
    pub(crate) outputs: &'a [f32],
    pub(crate) hidden: usize,
}

impl Mixture<'_> {
    /// What the expert of choice `choice` of the tokens' said, `[hidden]`, before it is weighted.
    pub fn output(&self, choice: usize) -> &[f32] {
        let start = self.places[choice] as usize * self.hidden;
        &self.outputs[start..start + self.hidden]
    }
}

/// Whoever watches a pass.
pub(crate) type Watch<'a> = Option<&'a dyn Observer>;

/// Tells whoever watches that a part is done.
pub(crate) fn done(watch: Watch, part: Part) {
    if let Some(observer) = watch {
        observer.done(part);
    }
}

/// Multiplies, and shows each product to whoever watches; `name_of` names the matrix of a job.
pub(crate) fn multiply(
    pool: &Pool,
    watch: Watch,
    jobs: &mut [Job],
    name_of: impl Fn(usize) -> TensorName,
) {
    matmul(pool, jobs);
    let Some(observer) = watch else { return };
    for (index, job) in jobs.iter().enumerate() {
        debug_assert_eq!(job.input_col, 0, "layers multiply whole rows");
        let (weight, input, rows) = (job.weight, job.input, &job.rows);
        let name = name_of(index);
        observer.product(&Product { name, weight, output: job.output, input, rows });
    }
}
