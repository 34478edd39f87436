//! All experts in memory, or mapped: acquiring them costs nothing but counting.

use moeba_kernels::dtype::DType;

use crate::weights::Weight;

use super::{Expert, ExpertError, ExpertStore};

/// The experts of one layer.
#[derive(Debug, Default)]
pub(crate) struct LayerExperts {
    /// `[experts]` of `[intermediate, hidden]`
    gate: Vec<Weight>,
    /// `[experts]` of `[intermediate, hidden]`
    up: Vec<Weight>,
    /// `[experts]` of `[hidden, intermediate]`
    down: Vec<Weight>,
    /// Formats of gate and up, without repetition.
    input_dtypes: Vec<DType>,
    /// Formats of down, without repetition.
    down_dtypes: Vec<DType>,
}

impl LayerExperts {
    pub(crate) fn new(gate: Vec<Weight>, up: Vec<Weight>, down: Vec<Weight>) -> LayerExperts {
        let input_dtypes = distinct(gate.iter().chain(&up));
        let down_dtypes = distinct(&down);
        LayerExperts { gate, up, down, input_dtypes, down_dtypes }
    }
}

fn distinct<'a>(weights: impl IntoIterator<Item = &'a Weight>) -> Vec<DType> {
    let mut dtypes = Vec::new();
    for weight in weights {
        if !dtypes.contains(&weight.dtype()) {
            dtypes.push(weight.dtype());
        }
    }
    dtypes
}

/// Experts that are always readable.
#[derive(Debug)]
pub struct Resident {
    /// `[layers]`, empty for dense ones
    layers: Vec<LayerExperts>,
}

impl Resident {
    pub(crate) fn new(layers: Vec<LayerExperts>) -> Resident {
        Resident { layers }
    }
}

impl ExpertStore for Resident {
    fn acquire(&self, layer: usize, experts: &[u32]) -> Result<u64, ExpertError> {
        Ok(experts.iter().map(|expert| self.expert(layer, *expert).num_bytes()).sum())
    }

    fn expert(&self, layer: usize, expert: u32) -> Expert<'_> {
        let (layer, expert) = (&self.layers[layer], expert as usize);
        Expert {
            gate: layer.gate[expert].matrix(),
            up: layer.up[expert].matrix(),
            down: layer.down[expert].matrix(),
        }
    }

    fn release(&self, _layer: usize, _experts: &[u32]) {}

    fn dtypes(&self, layer: usize) -> (&[DType], &[DType]) {
        (&self.layers[layer].input_dtypes, &self.layers[layer].down_dtypes)
    }

    fn num_bytes(&self) -> u64 {
        let each = self.layers.iter().flat_map(|l| l.gate.iter().chain(&l.up).chain(&l.down));
        each.map(|weight| weight.num_bytes() as u64).sum()
    }
}
