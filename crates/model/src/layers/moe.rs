//! A mixture of experts: route, gather each expert's tokens, multiply, combine.
//!
//! However many experts work, their products are two lists of jobs: gate and up of all of them
//! (the shared expert too), then down of all of them. A token's experts are summed in the order of
//! its own choice, the shared expert last, so that its result does not depend on the batch.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use moeba_kernels::activations::{ActKinds, Activations, Precision};
use moeba_kernels::matmul::{Job, Rows};
use moeba_kernels::ops;
use moeba_kernels::pool::Pool;

use crate::decoder::{BranchIo, Pass};
use crate::error::LoadError;
use crate::experts::resident::LayerExperts;
use crate::experts::{ExpertError, ExpertStore, GateUp};
use crate::families::names::Role;
use crate::files::all_finite;
use crate::observer::{Mixture, Part, done};
use crate::spec::{Activation, FfnBias, ModelSpec, Moe, RouterBias, SharedWeight, Weighs};
use crate::tensor_name::TensorName;
use crate::weights::{Loader, Weight, computed};

use super::assignments::Assignments;
use super::dense_ffn::{DenseLayer, DenseRoles, DenseScratch, activate};
use super::expert_weights::{self, ExpertNames};
use super::linear::{JobList, Linear, kinds};
use super::router::{Choice, route, total};

/// What a mixture has beside its experts.
#[derive(Debug)]
pub(crate) struct MoeLayer {
    spec: Moe,
    layer: usize,
    /// `[experts, hidden]`
    pub(crate) router: Linear,
    /// Correction for the choice, `[experts]`.
    pub(crate) choice_bias: Option<Vec<f32>>,
    pub(crate) shared: Option<DenseLayer>,
    /// `[1, hidden]`: the shared expert's weight is the sigmoid of this.
    pub(crate) shared_weight: Option<Linear>,
    /// Apart, because nothing but an error or an observer looks at them.
    names: Box<ExpertNames>,
}

/// Buffers for the widest mixture and as many tokens as a batch may have.
#[derive(Debug)]
pub(crate) struct MoeScratch {
    /// `[tokens, experts]`
    scores: Vec<f32>,
    /// `[tokens, experts]`
    ranked: Vec<f32>,
    /// The chosen experts, best first, `[tokens, experts_per_tok]`.
    pub(crate) chosen: Vec<u32>,
    /// Their weights, `[tokens, experts_per_tok]`.
    pub(crate) weights: Vec<f32>,
    plan: Assignments,
    /// Gate `[assignments, intermediate]`, then up; or both by turns, `[assignments, 2 ·
    /// intermediate]`. Once joined, the first half holds `[assignments, intermediate]`.
    routed: Vec<f32>,
    /// `[assignments, hidden]`
    down: Vec<f32>,
    routed_acts: Activations,
    shared: DenseScratch,
    /// `[tokens, hidden]`
    shared_down: Vec<f32>,
    /// `[tokens]`
    shared_weights: Vec<f32>,
    shared_acts: Activations,
    jobs: JobList,
}

/// What the widest mixtures of a model need.
struct Widest {
    experts: usize,
    per_tok: usize,
    /// Between up and down of an expert.
    routed: usize,
    /// The same of the shared expert; 0 where there is none.
    shared: usize,
}

impl Widest {
    fn of(spec: &ModelSpec) -> Widest {
        let widest = |width: fn(&Moe) -> usize| {
            spec.layers.iter().filter_map(|l| l.ffn.moe()).map(width).max().unwrap_or(0)
        };
        Widest {
            experts: widest(|moe| moe.num_experts),
            per_tok: widest(|moe| moe.num_experts_per_tok),
            routed: widest(|moe| moe.expert.intermediate_size),
            shared: widest(|moe| moe.shared.as_ref().map_or(0, |s| s.intermediate_size)),
        }
    }
}

impl MoeScratch {
    /// Room for the widest mixture of `spec`; nothing for a dense model.
    pub(crate) fn new(
        spec: &ModelSpec,
        tokens: usize,
        precision: Precision,
        kinds: ActKinds,
    ) -> MoeScratch {
        let Widest { experts, per_tok, routed, shared } = Widest::of(spec);
        let assignments = tokens * per_tok;
        let shared_tokens = if shared > 0 { tokens } else { 0 };
        MoeScratch {
            scores: vec![0.0; tokens * experts],
            ranked: vec![0.0; tokens * experts],
            chosen: vec![0; assignments],
            weights: vec![0.0; assignments],
            plan: Assignments::with_capacity(experts, assignments),
            routed: vec![0.0; 2 * assignments * routed],
            down: vec![0.0; assignments * spec.hidden_size],
            routed_acts: Activations::with_capacity(assignments, routed, precision, kinds),
            shared: DenseScratch::new(shared, tokens),
            shared_down: vec![0.0; shared_tokens * spec.hidden_size],
            shared_weights: vec![0.0; shared_tokens],
            shared_acts: Activations::with_capacity(shared_tokens, shared, precision, kinds),
            jobs: JobList::with_capacity(2 * (experts.min(assignments) + 1) + 1),
        }
    }

    /// Bytes of these buffers for each token of a batch.
    pub(crate) fn bytes_per_token(
        spec: &ModelSpec,
        precision: Precision,
        kinds: ActKinds,
    ) -> usize {
        let Widest { experts, per_tok, routed, shared } = Widest::of(spec);
        let of_choice = 1 + 2 * routed + spec.hidden_size;
        let shared_out = if shared > 0 { spec.hidden_size + 1 } else { 0 };
        let floats = 2 * experts + per_tok * of_choice + 2 * shared + shared_out;
        // Each choice's expert, and the three lists of the plan.
        let numbers = 4 * per_tok;
        floats * size_of::<f32>()
            + numbers * size_of::<u32>()
            + Activations::num_bytes(per_tok, routed, precision, kinds)
            + Activations::num_bytes(usize::from(shared > 0), shared, precision, kinds)
    }
}

impl MoeLayer {
    /// Loads router and shared expert, and finds the experts. `file_layer` is the layer's number
    /// in the file, `layer` in the model.
    pub(crate) fn load(
        loader: &mut Loader,
        spec: &Moe,
        [layer, file_layer]: [usize; 2],
        hidden: usize,
    ) -> Result<(MoeLayer, LayerExperts), LoadError> {
        let (count, bias) = (spec.num_experts, spec.router.bias);
        let biased = bias == RouterBias::Logits;
        let router = Linear::load(loader, Role::Router, file_layer, [count, hidden], biased)?;
        let choice_bias = (bias == RouterBias::Choice)
            .then(|| loader.row(Role::RouterChoiceBias, file_layer, count))
            .transpose()?;
        let shared = spec.shared.as_ref();
        let load =
            |shared| DenseLayer::load(loader, shared, DenseRoles::SHARED, file_layer, hidden);
        let shared = shared.map(load).transpose()?;
        let shared_weight = match spec.shared_weight {
            SharedWeight::Sigmoid if shared.is_some() => {
                let row = loader.row(Role::SharedWeight, file_layer, hidden)?;
                let name = loader.name_of(Role::SharedWeight, file_layer);
                Some(Linear { weight: computed([1, hidden], &row, name)?, bias: None })
            }
            SharedWeight::One | SharedWeight::Sigmoid => None,
        };
        let experts = expert_weights::load(loader, spec, file_layer, hidden)?;
        let names = Box::new(ExpertNames::find(loader, spec, file_layer));
        let spec = spec.clone();
        let layer = MoeLayer { spec, layer, router, choice_bias, shared, shared_weight, names };
        Ok((layer, experts))
    }

    /// Runs the mixture. Returns how many bytes of experts' weights it read.
    pub(crate) fn forward(
        &self,
        pass: &Pass,
        store: &dyn ExpertStore,
        scratch: &mut MoeScratch,
        branch: BranchIo,
    ) -> Result<u64, ExpertError> {
        let BranchIo { input, output, acts } = branch;
        let (pool, tokens) = (pass.pool, pass.batch.len());
        let (gate_up, down) = store.dtypes(self.layer);
        let of_experts = gate_up.iter().fold(ActKinds::F32, |k, dtype| k | ActKinds::of(*dtype));
        let of_shared = self.shared.as_ref().map_or(ActKinds::F32, DenseLayer::input_kinds);
        let all = kinds([&self.router.weight]) | of_experts | of_shared;
        let per_expert = tokens * self.per_tok() / self.spec.num_experts;
        acts.set_shared(pool, input, [tokens, input.len() / tokens], all, per_expert);
        done(pass.watch, Part::Rounding);
        self.route(pass, acts, scratch);
        let chosen = &scratch.chosen[..tokens * self.per_tok()];
        scratch.plan.set(self.spec.num_experts, self.per_tok(), chosen);
        let bytes = store.acquire(self.layer, &scratch.plan.active)?;
        done(pass.watch, Part::Router);
        self.gate_up(pass, store, acts, scratch);
        done(pass.watch, Part::ExpertsIn);
        self.join(pool, store, tokens, scratch);
        done(pass.watch, Part::Activation);
        let kinds = down.iter().fold(ActKinds::F32, |k, dtype| k | ActKinds::of(*dtype));
        self.down(pass, store, kinds, scratch);
        done(pass.watch, Part::ExpertsOut);
        self.show(pass, scratch);
        let sound = self.combine(pool, scratch, output);
        done(pass.watch, Part::Sums);
        let blame = if sound { None } else { self.blame(store, scratch, input, output) };
        store.release(self.layer, &scratch.plan.active);
        blame.map_or(Ok(bytes), Err)
    }

    /// The matrices of router and shared expert.
    pub(crate) fn weights(&self) -> Vec<&Weight> {
        let mut weights = self.shared.as_ref().map_or(Vec::new(), DenseLayer::weights);
        weights.push(&self.router.weight);
        weights.extend(self.shared_weight.as_ref().map(|row| &row.weight));
        weights
    }

    /// How many experts work on a token.
    pub(crate) fn per_tok(&self) -> usize {
        self.spec.num_experts_per_tok
    }

    /// Chooses and weighs each token's experts.
    fn route(&self, pass: &Pass, acts: &Activations, scratch: &mut MoeScratch) {
        let pool = pass.pool;
        let (tokens, experts, per_tok) = (acts.rows(), self.spec.num_experts, self.per_tok());
        let scores = &mut scratch.scores[..tokens * experts];
        self.router.forward(pool, pass.watch, acts, scores);
        if let Some(observer) = pass.watch {
            observer.router(self.layer, scores);
        }
        let rows = scores
            .chunks_exact_mut(experts)
            .zip(scratch.ranked.chunks_exact_mut(experts))
            .zip(scratch.chosen.chunks_exact_mut(per_tok))
            .zip(scratch.weights.chunks_exact_mut(per_tok));
        let one = |(((scores, ranked), experts), weights)| {
            let choice = Choice { scores, ranked, experts, weights };
            route(&self.spec.router, self.choice_bias.as_deref(), choice);
        };
        // A few tokens are chosen for faster than workers wake.
        if tokens < 16 {
            return rows.for_each(one);
        }
        let rows = Mutex::new(rows);
        pool.run(&|_| {
            loop {
                let row = rows.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(row) = row else { return };
                one(row);
            }
        });
    }

    /// Gate and up of every expert at work, into `routed`, and of the shared one.
    fn gate_up(
        &self,
        pass: &Pass,
        store: &dyn ExpertStore,
        acts: &Activations,
        scratch: &mut MoeScratch,
    ) {
        let MoeScratch { plan, routed, shared, shared_weights, jobs, .. } = scratch;
        let (tokens, width) = (acts.rows(), self.spec.expert.intermediate_size);
        let by_turns = self.by_turns(store, plan);
        let routed = &mut routed[..2 * plan.count * width];
        // What lies by turns takes its room from the first part alone.
        let ups = if by_turns { routed.len() } else { routed.len() / 2 };
        let (mut gate, mut up) = routed.split_at_mut(ups);
        let per_expert = if by_turns { 1 } else { 2 };
        let name_of = |job: usize| match plan.active.get(job / per_expert) {
            Some(expert) => [self.names.gate, self.names.up][job % per_expert].of_part(*expert),
            None => self.shared_name(job - per_expert * plan.active.len()),
        };
        jobs.run(pass.pool, pass.watch, name_of, |jobs| {
            for &expert in &plan.active {
                let rows = &plan.tokens[plan.rows(expert)];
                let len = rows.len() * width;
                let mut push = |weight, output: Option<_>| {
                    let output = output.expect("there is room for all assignments");
                    jobs.push(Job {
                        weight,
                        input: acts,
                        input_col: 0,
                        rows: Rows::Gather(rows),
                        output,
                    });
                };
                match store.expert(self.layer, expert).gate_up {
                    GateUp::Apart { gate: of_gate, up: of_up } => {
                        push(of_gate, gate.split_off_mut(..len));
                        push(of_up, up.split_off_mut(..len));
                    }
                    GateUp::ByTurns(both) => push(both, gate.split_off_mut(..2 * len)),
                }
            }
            if let Some(layer) = &self.shared {
                let len = tokens * layer.intermediate_size();
                jobs.push(layer.gate.job(acts, 0..tokens, &mut shared.gate[..len]));
                jobs.push(layer.up.job(acts, 0..tokens, &mut shared.up[..len]));
            }
            if let Some(row) = &self.shared_weight {
                jobs.push(row.job(acts, 0..tokens, &mut shared_weights[..tokens]));
            }
        });
        if self.shared_weight.is_some() {
            ops::sigmoid(&mut shared_weights[..tokens]);
        }
    }

    /// Whether this layer's gate and up lie by turns; all its experts are alike.
    fn by_turns(&self, store: &dyn ExpertStore, plan: &Assignments) -> bool {
        let first = plan.active.first().map(|expert| store.expert(self.layer, *expert).gate_up);
        matches!(first, Some(GateUp::ByTurns(_)))
    }

    /// Joins gate and up: the first half of `routed` holds the result, `shared.gate` that of the
    /// shared expert.
    fn join(&self, pool: &Pool, store: &dyn ExpertStore, tokens: usize, scratch: &mut MoeScratch) {
        let by_turns = self.by_turns(store, &scratch.plan);
        self.complete(pool, store, by_turns, scratch);
        let MoeScratch { plan, routed, shared, .. } = scratch;
        let (activation, width) = (self.spec.expert.activation, self.spec.expert.intermediate_size);
        let routed = &mut routed[..2 * plan.count * width];
        if by_turns {
            pool.for_each_row(routed, 2 * width, |_, row| activate_by_turns(activation, row));
            for assignment in 1..plan.count {
                let start = assignment * 2 * width;
                routed.copy_within(start..start + width, assignment * width);
            }
        } else {
            let (gate, up) = routed.split_at_mut(plan.count * width);
            pool.for_each_row(gate, width, |row, gate| {
                activate(activation, gate, &up[row * width..(row + 1) * width]);
            });
        }
        if let Some(layer) = &self.shared {
            let len = tokens * layer.intermediate_size();
            layer.join(pool, &mut shared.gate[..len], &mut shared.up[..len]);
        }
    }

    /// Gives gate and up what their products lack: biases, and weights where these multiply inputs.
    /// A weight times the product is the product of the weighted input, but the input is rounded
    /// once for all of a token's experts.
    fn complete(
        &self,
        pool: &Pool,
        store: &dyn ExpertStore,
        by_turns: bool,
        scratch: &mut MoeScratch,
    ) {
        let weighs_inputs = self.spec.router.weighs == Weighs::Inputs;
        if !weighs_inputs && self.spec.expert.bias == FfnBias::None {
            return;
        }
        let MoeScratch { plan, routed, weights, chosen, .. } = scratch;
        let (count, width) = (plan.count, self.spec.expert.intermediate_size);
        // All rows of gate come before those of up, or each assignment has both in one.
        let row_len = if by_turns { 2 * width } else { width };
        pool.for_each_row(&mut routed[..2 * count * width], row_len, |row, values| {
            let choice = plan.choices[row % count] as usize;
            if weighs_inputs {
                ops::scale_assign(values, weights[choice]);
            }
            if let Some(bias) = store.expert(self.layer, chosen[choice]).bias {
                let first = row / count * width;
                ops::add_assign(values, &bias.gate_up[first..first + row_len]);
            }
        });
    }

    /// Down of every expert at work, `[assignments, hidden]`, and of the shared one.
    fn down(
        &self,
        pass: &Pass,
        store: &dyn ExpertStore,
        kinds_routed: ActKinds,
        scratch: &mut MoeScratch,
    ) {
        let pool = pass.pool;
        let MoeScratch { plan, routed, down, routed_acts, chosen, .. } = scratch;
        let MoeScratch { shared, shared_down, shared_acts, jobs, .. } = scratch;
        let width = self.spec.expert.intermediate_size;
        let hidden = self.router.weight.cols();
        let assignments = plan.count;
        let tokens = assignments / self.per_tok();
        let per_expert = assignments / plan.active.len().max(1);
        let routed = &routed[..assignments * width];
        routed_acts.set_shared(pool, routed, [assignments, width], kinds_routed, per_expert);
        if let Some(layer) = &self.shared {
            let width = layer.intermediate_size();
            let gate = &shared.gate[..tokens * width];
            shared_acts.set(pool, gate, tokens, width, kinds([&layer.down.weight]));
        }
        done(pass.watch, Part::Rounding);
        let (routed_acts, shared_acts) = (&*routed_acts, &*shared_acts);
        let name_of = |job: usize| match plan.active.get(job) {
            Some(expert) => self.names.down.of_part(*expert),
            None => self.shared_name(3),
        };
        let down = &mut down[..assignments * hidden];
        jobs.run(pool, pass.watch, name_of, |jobs| {
            let mut down = &mut *down;
            for &expert in &plan.active {
                let weight = store.expert(self.layer, expert).down;
                let range = plan.rows(expert);
                let output;
                (output, down) = down.split_at_mut(range.len() * hidden);
                let rows = Rows::Range(range);
                jobs.push(Job { weight, input: routed_acts, input_col: 0, rows, output });
            }
            if let Some(layer) = &self.shared {
                let output = &mut shared_down[..tokens * hidden];
                jobs.push(layer.down.job(shared_acts, 0..tokens, output));
            }
        });
        if let Some(layer) = &self.shared {
            layer.down.add_bias(pool, &mut shared_down[..tokens * hidden]);
        }
        if self.spec.expert.bias == FfnBias::All {
            pool.for_each_row(down, hidden, |assignment, out| {
                let expert = chosen[plan.choices[assignment] as usize];
                if let Some(bias) = store.expert(self.layer, expert).bias {
                    ops::add_assign(out, bias.down);
                }
            });
        }
    }

    /// Where a matrix of the shared expert is from: gate, up, the row of its weight, down.
    fn shared_name(&self, index: usize) -> TensorName {
        let shared = self.shared.as_ref().expect("its jobs were made from it");
        let row = self.shared_weight.as_ref().unwrap_or(&shared.gate);
        [&shared.gate, &shared.up, row, &shared.down][index].weight.name()
    }

    /// Shows choices and experts' outputs to whoever watches.
    fn show(&self, pass: &Pass, scratch: &MoeScratch) {
        let Some(observer) = pass.watch else { return };
        let choices = scratch.plan.count;
        let mixture = Mixture {
            num_experts_per_tok: self.per_tok(),
            experts: &scratch.chosen[..choices],
            weights: &scratch.weights[..choices],
            places: &scratch.plan.places[..choices],
            outputs: &scratch.down,
            hidden: self.router.weight.cols(),
        };
        observer.mixture(self.layer, &mixture);
    }

    /// Sums each token's experts, in the order of its choice, then the shared one. The sum is the
    /// best expert's output plus weighted differences from it: where all experts say the same, it
    /// is that to the bit, so an upcycled model equals its dense parent. (A difference in the last
    /// bit would flip roundings of the next layer's inputs, and grow: with inputs of eight bits, to
    /// percents of a logit.)
    /// Returns whether all sums are finite, seen while they are in the cache.
    fn combine(&self, pool: &Pool, scratch: &MoeScratch, output: &mut [f32]) -> bool {
        let sound = AtomicBool::new(true);
        let (hidden, per_tok) = (self.router.weight.cols(), self.per_tok());
        pool.for_each_row(output, hidden, |token, out| {
            let choices = token * per_tok..(token + 1) * per_tok;
            let weights = &scratch.weights[choices.clone()];
            let row = |choice: usize| {
                let place = scratch.plan.places[choice] as usize;
                &scratch.down[place * hidden..(place + 1) * hidden]
            };
            let best = row(choices.start);
            out.fill(0.0);
            // Where weights multiplied the inputs, they have done their work.
            let outputs = self.spec.router.weighs == Weighs::Outputs;
            let sum = if outputs { total(&self.spec.router, weights) } else { per_tok as f32 };
            ops::axpy(sum, best, out);
            for (choice, weight) in choices.zip(weights).skip(1) {
                let weight = if outputs { *weight } else { 1.0 };
                for ((out, value), best) in out.iter_mut().zip(row(choice)).zip(best) {
                    *out += weight * (value - best);
                }
            }
            if self.shared.is_some() {
                let shared = &scratch.shared_down[token * hidden..(token + 1) * hidden];
                match self.spec.shared_weight {
                    SharedWeight::One => ops::add_assign(out, shared),
                    SharedWeight::Sigmoid => {
                        ops::axpy(scratch.shared_weights[token], shared, out);
                    }
                }
            }
            if !all_finite(out) {
                sound.store(false, Ordering::Relaxed);
            }
        });
        sound.into_inner()
    }

    /// Looks for the damaged weights behind outputs that are no numbers. Where the input was none
    /// already, or no weights are damaged, no expert is to blame: then `None`, and whoever reads
    /// the logits has to see to it. Only experts that answered nonsense are decoded.
    #[cold]
    fn blame(
        &self,
        store: &dyn ExpertStore,
        scratch: &MoeScratch,
        input: &[f32],
        output: &[f32],
    ) -> Option<ExpertError> {
        let (hidden, per_tok) = (self.router.weight.cols(), self.per_tok());
        let tokens = input.chunks_exact(hidden).zip(output.chunks_exact(hidden)).enumerate();
        let tokens = tokens.filter(|(_, (input, out))| all_finite(input) && !all_finite(out));
        let mut suspects: Vec<u32> = tokens
            .flat_map(|(token, _)| token * per_tok..(token + 1) * per_tok)
            .filter(|choice| {
                let place = scratch.plan.places[*choice] as usize;
                !all_finite(&scratch.down[place * hidden..(place + 1) * hidden])
            })
            .map(|choice| scratch.chosen[choice])
            .collect();
        suspects.sort_unstable();
        suspects.dedup();
        suspects.into_iter().find_map(|expert| {
            let weights = store.expert(self.layer, expert);
            self.names.damage(self.layer, expert, &weights)
        })
    }
}

/// Joins one assignment's gate and up, `[2 · intermediate]` by turns; the first half holds the
/// result.
fn activate_by_turns(activation: Activation, row: &mut [f32]) {
    /// Pairs taken apart at a time.
    const CHUNK: usize = 64;
    let width = row.len() / 2;
    for start in (0..width).step_by(CHUNK) {
        let count = CHUNK.min(width - start);
        let (mut gate, mut up) = ([0.0; CHUNK], [0.0; CHUNK]);
        let pairs = row[2 * start..2 * (start + count)].as_chunks::<2>().0;
        for ((gate, up), pair) in gate.iter_mut().zip(&mut up).zip(pairs) {
            (*gate, *up) = (pair[0], pair[1]);
        }
        activate(activation, &mut gate[..count], &up[..count]);
        row[start..start + count].copy_from_slice(&gate[..count]);
    }
}
