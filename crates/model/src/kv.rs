//! The paged cache of keys and values: bytes of every layer, in blocks of 16 tokens.
//!
//! A block id names the same block in all layers. Who owns which block is for the engine to know;
//! here are only bytes, and nothing is ever cleared: a step reads no position it did not write
//! or that an earlier step of the same sequence wrote.

use std::io;

use moeba_kernels::attention::{KvDType, KvLayout, KvRole, KvTensor, Values, kv_store};
use moeba_kernels::os::memory::Region;

use crate::spec::{Mixer, ModelSpec};

/// Cached keys and values of every layer.
#[derive(Debug)]
pub struct KvCache {
    layers: Vec<LayerCache>,
    num_blocks: usize,
    dtype: KvDType,
}

/// One layer's share.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tiles,
    values: CachedValues,
}

#[derive(Debug)]
enum CachedValues {
    Own(Tiles),
    /// The first so many numbers of a key row.
    KeyPrefix(usize),
}

/// One kind of row of one layer.
#[derive(Debug)]
struct Tiles {
    layout: KvLayout,
    bytes: Region,
}

impl Tiles {
    fn new(layout: KvLayout, num_blocks: usize) -> io::Result<Tiles> {
        let len = layout.block_bytes().checked_mul(num_blocks);
        let len = len.ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        Ok(Tiles { layout, bytes: Region::anonymous(len)? })
    }

    fn tensor(&self) -> KvTensor<'_> {
        KvTensor { layout: self.layout, bytes: &self.bytes }
    }

    /// Stores rows `[tokens, num_kv_heads · dim]` at their slots `[tokens]`.
    fn store(&mut self, slots: &[u32], rows: &[f32]) {
        let bytes = self.bytes.bytes_mut();
        let width = self.layout.num_kv_heads * self.layout.dim;
        for (slot, row) in slots.iter().zip(rows.chunks_exact(width)) {
            kv_store(&self.layout, bytes, *slot as usize, row);
        }
    }
}

/// Layouts of a mixer's keys, and of its values where they are stored apart.
fn layouts(mixer: &Mixer, dtype: KvDType) -> (KvLayout, Option<KvLayout>) {
    let layout = |role, num_kv_heads, dim| KvLayout { dtype, role, num_kv_heads, dim };
    match mixer {
        Mixer::Gqa(gqa) => {
            let of = |role| layout(role, gqa.num_key_value_heads, gqa.head_dim);
            (of(KvRole::Keys), Some(of(KvRole::Values)))
        }
        Mixer::Mla(mla) => (layout(KvRole::Keys, 1, mla.cache_dim()), None),
    }
}

/// Bytes that one block of 16 tokens takes in a layer with this mixer.
pub(crate) fn layer_block_bytes(mixer: &Mixer, dtype: KvDType) -> u64 {
    let (keys, values) = layouts(mixer, dtype);
    (keys.block_bytes() + values.map_or(0, |values| values.block_bytes())) as u64
}

impl KvCache {
    /// Room for `num_blocks` blocks of 16 tokens in every layer, as numbers of type `dtype`.
    /// Memory is taken from the system when it is first written.
    ///
    /// # Errors
    /// When the system refuses that much address space.
    pub fn new(spec: &ModelSpec, num_blocks: usize, dtype: KvDType) -> io::Result<KvCache> {
        let layer = |mixer: &Mixer| -> io::Result<LayerCache> {
            let (keys, values) = layouts(mixer, dtype);
            let values = match (values, mixer) {
                (Some(layout), _) => CachedValues::Own(Tiles::new(layout, num_blocks)?),
                (None, Mixer::Mla(mla)) => CachedValues::KeyPrefix(mla.kv_lora_rank),
                (None, Mixer::Gqa(_)) => unreachable!("grouped heads store their values"),
            };
            Ok(LayerCache { keys: Tiles::new(keys, num_blocks)?, values })
        };
        let layers = spec.layers.iter().map(|l| layer(&l.mixer)).collect::<io::Result<_>>()?;
        Ok(KvCache { layers, num_blocks, dtype })
    }

    /// Bytes that one block of 16 tokens takes in all layers together.
    pub fn bytes_per_block(spec: &ModelSpec, dtype: KvDType) -> u64 {
        spec.layers.iter().map(|layer| layer_block_bytes(&layer.mixer, dtype)).sum()
    }

    /// How many blocks there are.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// How numbers are stored.
    pub fn dtype(&self) -> KvDType {
        self.dtype
    }

    /// How many layers the cache was made for.
    pub(crate) fn num_layers(&self) -> usize {
        self.layers.len()
    }

    pub(crate) fn layer(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }
}

impl LayerCache {
    /// Stores keys and values `[tokens, num_kv_heads · dim]` of a batch at their slots.
    pub(crate) fn store(&mut self, slots: &[u32], keys: &[f32], values: Option<&[f32]>) {
        self.keys.store(slots, keys);
        match (&mut self.values, values) {
            (CachedValues::Own(tiles), Some(values)) => tiles.store(slots, values),
            (CachedValues::KeyPrefix(_), None) => {}
            _ => unreachable!("a mixer stores values exactly when its layout has them"),
        }
    }

    pub(crate) fn keys(&self) -> KvTensor<'_> {
        self.keys.tensor()
    }

    pub(crate) fn values(&self) -> Values<'_> {
        match &self.values {
            CachedValues::Own(tiles) => Values::Cache(tiles.tensor()),
            CachedValues::KeyPrefix(len) => Values::KeyPrefix(*len),
        }
    }
}
