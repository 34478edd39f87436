//! Which experts fired, kept on request: for people who look, and for caches that learn.

use crate::layers::moe::MoeScratch;
use crate::spec::ModelSpec;

/// The routing of one step.
#[derive(Debug, Default)]
pub struct Routing {
    /// Room for every mixture of the model; empty while nothing is recorded.
    layers: Vec<LayerRouting>,
    /// How many of `layers` the step has filled.
    filled: usize,
}

/// The routing of one layer in one step.
#[derive(Debug, Default)]
pub struct LayerRouting {
    /// The layer, from 0, dense ones counted.
    pub layer: usize,
    /// How many experts each token has.
    pub num_experts_per_tok: usize,
    /// Chosen experts, best first, `[tokens, num_experts_per_tok]`.
    pub experts: Vec<u32>,
    /// Their weights, `[tokens, num_experts_per_tok]`.
    pub weights: Vec<f32>,
}

impl Routing {
    /// Room for the mixtures of a model in batches of up to `tokens` tokens; with no tokens,
    /// nothing will be recorded.
    pub(crate) fn with_room(spec: &ModelSpec, tokens: usize) -> Routing {
        let mixtures = spec.layers.iter().filter_map(|layer| layer.ffn.moe());
        let room = mixtures.map(|moe| LayerRouting {
            experts: Vec::with_capacity(tokens * moe.num_experts_per_tok),
            weights: Vec::with_capacity(tokens * moe.num_experts_per_tok),
            ..LayerRouting::default()
        });
        Routing { layers: if tokens > 0 { room.collect() } else { Vec::new() }, filled: 0 }
    }

    /// The layers with experts, in order.
    pub fn layers(&self) -> &[LayerRouting] {
        &self.layers[..self.filled]
    }

    pub(crate) fn begin(&mut self) {
        self.filled = 0;
    }

    /// Keeps what a layer has just chosen for `tokens` tokens.
    pub(crate) fn record(
        &mut self,
        layer: usize,
        per_tok: usize,
        tokens: usize,
        scratch: &MoeScratch,
    ) {
        let Some(entry) = self.layers.get_mut(self.filled) else { return };
        self.filled += 1;
        (entry.layer, entry.num_experts_per_tok) = (layer, per_tok);
        entry.experts.clear();
        entry.experts.extend_from_slice(&scratch.chosen[..tokens * per_tok]);
        entry.weights.clear();
        entry.weights.extend_from_slice(&scratch.weights[..tokens * per_tok]);
    }
}
