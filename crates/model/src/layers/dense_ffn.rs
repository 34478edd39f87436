//! A gated feed-forward network that every token passes: `down(act(gate·x) ∘ up·x)`.

use moeba_kernels::activations::ActKinds;
use moeba_kernels::ops;
use moeba_kernels::pool::Pool;

use crate::decoder::{BranchIo, Pass};
use crate::error::LoadError;
use crate::families::names::Role;
use crate::observer::{Part, done, multiply};
use crate::spec::{Activation, DenseFfn, FfnBias};
use crate::weights::{Loader, Weight};

use super::linear::{Linear, kinds};

/// The network's weights.
#[derive(Debug)]
pub(crate) struct DenseLayer {
    /// `[intermediate, hidden]`
    pub(crate) gate: Linear,
    /// `[intermediate, hidden]`
    pub(crate) up: Linear,
    /// `[hidden, intermediate]`
    pub(crate) down: Linear,
    pub(crate) activation: Activation,
}

/// What a network's matrices are called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DenseRoles {
    gate: Role,
    up: Role,
    /// Gate's rows, then up's, in one tensor, where a family stores them so.
    gate_up: Option<Role>,
    down: Role,
}

impl DenseRoles {
    /// The network of a layer without experts.
    pub(crate) const FFN: DenseRoles =
        DenseRoles { gate: Role::FfnGate, up: Role::FfnUp, gate_up: None, down: Role::FfnDown };

    /// The expert that every token visits.
    pub(crate) const SHARED: DenseRoles = DenseRoles {
        gate: Role::SharedGate,
        up: Role::SharedUp,
        gate_up: Some(Role::SharedGateUp),
        down: Role::SharedDown,
    };
}

/// Buffers of one network for as many tokens as a batch may have.
#[derive(Debug, Default)]
pub(crate) struct DenseScratch {
    /// `[tokens, intermediate]`; the product of both afterwards
    pub(crate) gate: Vec<f32>,
    /// `[tokens, intermediate]`
    pub(crate) up: Vec<f32>,
}

impl DenseScratch {
    pub(crate) fn new(intermediate_max: usize, tokens: usize) -> DenseScratch {
        let buffer = || vec![0.0; intermediate_max * tokens];
        DenseScratch { gate: buffer(), up: buffer() }
    }
}

impl DenseLayer {
    /// Loads gate, up and down by these roles.
    pub(crate) fn load(
        loader: &mut Loader,
        spec: &DenseFfn,
        roles: DenseRoles,
        layer: usize,
        hidden: usize,
    ) -> Result<DenseLayer, LoadError> {
        let width = spec.intermediate_size;
        let biased = spec.bias == FfnBias::All;
        let joined = roles.gate_up.filter(|role| loader.has(*role, layer));
        let (gate, up) = if let Some(role) = joined {
            let both = Linear::load(loader, role, layer, [2 * width, hidden], biased)?;
            (both.slice(0, width), both.slice(width, width))
        } else {
            let gate = Linear::load(loader, roles.gate, layer, [width, hidden], biased)?;
            (gate, Linear::load(loader, roles.up, layer, [width, hidden], biased)?)
        };
        let down = Linear::load(loader, roles.down, layer, [hidden, width], biased)?;
        Ok(DenseLayer { gate, up, down, activation: spec.activation })
    }

    /// Width between up and down.
    pub(crate) fn intermediate_size(&self) -> usize {
        self.gate.weight.rows()
    }

    /// All matrices.
    pub(crate) fn weights(&self) -> Vec<&Weight> {
        [&self.gate, &self.up, &self.down].map(|linear| &linear.weight).to_vec()
    }

    /// The forms of the input that gate and up need.
    pub(crate) fn input_kinds(&self) -> ActKinds {
        kinds([&self.gate.weight, &self.up.weight])
    }

    /// Adds the biases of gate and up `[tokens, intermediate]`, and joins both in gate's place.
    pub(crate) fn join(&self, pool: &Pool, gate: &mut [f32], up: &mut [f32]) {
        self.gate.add_bias(pool, gate);
        self.up.add_bias(pool, up);
        let width = self.intermediate_size();
        let up = &*up;
        pool.for_each_row(gate, width, |row, gate| {
            activate(self.activation, gate, &up[row * width..(row + 1) * width]);
        });
    }

    pub(crate) fn forward(&self, pass: &Pass, scratch: &mut DenseScratch, branch: BranchIo) {
        let BranchIo { input, output, acts } = branch;
        let (pool, tokens) = (pass.pool, pass.batch.len());
        let width = self.intermediate_size();
        let gate = &mut scratch.gate[..tokens * width];
        let up = &mut scratch.up[..tokens * width];
        acts.set(pool, input, tokens, input.len() / tokens, self.input_kinds());
        done(pass.watch, Part::Rounding);
        let mut jobs = [self.gate.job(acts, 0..tokens, gate), self.up.job(acts, 0..tokens, up)];
        let weights = [&self.gate.weight, &self.up.weight];
        multiply(pool, pass.watch, &mut jobs, |index| weights[index].name());
        done(pass.watch, Part::DenseIn);
        self.join(pool, gate, up);
        done(pass.watch, Part::Activation);
        acts.set(pool, gate, tokens, width, kinds([&self.down.weight]));
        done(pass.watch, Part::Rounding);
        self.down.forward(pool, pass.watch, acts, output);
        done(pass.watch, Part::DenseOut);
    }
}

/// Joins one token's gate and up `[width]` in the place of gate.
pub(crate) fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => ops::silu_mul(gate, up),
        Activation::GeluTanh => ops::gelu_tanh_mul(gate, up),
        Activation::ClampedSwiglu { alpha, limit } => {
            ops::clamped_swiglu_mul(gate, up, alpha, limit);
        }
    }
}
