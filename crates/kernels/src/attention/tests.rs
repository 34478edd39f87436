//! Attention against the textbook in f64, and against itself cut into every other shape.

use super::*;
use crate::pool::Pinning;

/// A layer's cache and queries for sequences that lie scattered over blocks.
#[derive(Clone)]
struct Case {
    dtype: KvDType,
    num_heads: usize,
    num_kv_heads: usize,
    key_dim: usize,
    value_dim: usize,
    latent: bool,
    mask: Mask,
    softcap: Option<f32>,
    sinks: bool,
    precision: Precision,
    /// Length of each sequence.
    lengths: Vec<usize>,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            dtype: KvDType::F32,
            num_heads: 6,
            num_kv_heads: 2,
            key_dim: 32,
            value_dim: 32,
            latent: false,
            mask: Mask::Full,
            softcap: None,
            sinks: false,
            precision: Precision::Sixteen,
            lengths: vec![70, 1, 33],
        }
    }
}

/// The case as numbers: every sequence's rows, and the filled cache.
struct Data {
    case: Case,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
    sinks: Vec<f32>,
    keys: Vec<u8>,
    values: Vec<u8>,
    spans: Vec<Span>,
    block_ids: Vec<u32>,
    positions: Vec<u32>,
}

fn numbers(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next() * 2.0).collect()
}

impl Case {
    fn layout(&self, role: KvRole) -> KvLayout {
        let dim = if role == KvRole::Keys { self.key_dim } else { self.value_dim };
        KvLayout { dtype: self.dtype, role, num_kv_heads: self.num_kv_heads, dim }
    }

    fn data(&self) -> Data {
        let tokens: usize = self.lengths.iter().sum();
        let blocks: usize = self.lengths.iter().map(|n| n.div_ceil(BLOCK_TOKENS)).sum();
        let (key_layout, value_layout) = (self.layout(KvRole::Keys), self.layout(KvRole::Values));
        let mut data = Data {
            case: self.clone(),
            q: numbers(tokens * self.num_heads * self.key_dim, 1),
            k: numbers(tokens * self.num_kv_heads * self.key_dim, 2),
            v: numbers(tokens * self.num_kv_heads * self.value_dim, 3),
            sinks: numbers(self.num_heads, 4),
            // Stale memory must not matter, so it is all ones: NaN in every float format.
            keys: vec![0xff; blocks * key_layout.block_bytes()],
            values: vec![0xff; blocks * value_layout.block_bytes()],
            spans: Vec::new(),
            block_ids: (0..blocks as u32).rev().collect(),
            positions: Vec::new(),
        };
        let (mut token, mut block) = (0, 0);
        for &length in &self.lengths {
            let count = length.div_ceil(BLOCK_TOKENS);
            data.spans.push(Span { tokens: token..token + length, blocks: block..block + count });
            data.positions.extend(0..length as u32);
            token += length;
            block += count;
        }
        data
    }
}

impl Data {
    fn store(&mut self, tokens: Range<usize>) {
        for span in &self.spans {
            for token in tokens.clone().filter(|token| span.tokens.contains(token)) {
                let position = self.positions[token] as usize;
                let block = self.block_ids[span.blocks.start + position / BLOCK_TOKENS] as usize;
                let slot = block * BLOCK_TOKENS + position % BLOCK_TOKENS;
                for (role, cache, rows) in [
                    (KvRole::Keys, &mut self.keys, &self.k),
                    (KvRole::Values, &mut self.values, &self.v),
                ] {
                    let layout = self.case.layout(role);
                    let len = layout.num_kv_heads * layout.dim;
                    kv_store(&layout, cache, slot, &rows[token * len..(token + 1) * len]);
                }
            }
        }
    }

    fn value_dim(&self) -> usize {
        self.case.value_dim
    }

    fn attend(&self, isa: Isa, pool: &Pool, spans: &[Span], out: &mut [f32]) {
        let case = &self.case;
        let tensor = |role, bytes| KvTensor { layout: case.layout(role), bytes };
        let args = AttentionArgs {
            q: &self.q,
            q_strides: Strides::token_major(case.num_heads, case.key_dim),
            num_heads: case.num_heads,
            keys: tensor(KvRole::Keys, &self.keys),
            values: if case.latent {
                Values::KeyPrefix(case.value_dim)
            } else {
                Values::Cache(tensor(KvRole::Values, &self.values))
            },
            spans,
            block_ids: &self.block_ids,
            positions: &self.positions,
            mask: case.mask,
            scale: 0.2,
            softcap: case.softcap,
            sinks: case.sinks.then_some(&self.sinks[..]),
            out_strides: Strides::token_major(case.num_heads, case.value_dim),
        };
        let scratch =
            AttentionScratch::new(pool.threads(), case.key_dim, case.value_dim, case.precision);
        attention_on(isa, pool, &args, &scratch, out);
    }

    fn out(&self) -> Vec<f32> {
        vec![f32::NAN; self.positions.len() * self.case.num_heads * self.value_dim()]
    }

    /// Everything at once, from a full cache.
    fn whole(&mut self, isa: Isa, pool: &Pool) -> Vec<f32> {
        self.store(0..self.positions.len());
        let mut out = self.out();
        self.attend(isa, pool, &self.spans, &mut out);
        out
    }

    /// Textbook attention in f64 over the rows themselves.
    fn reference(&self) -> Vec<f64> {
        let case = &self.case;
        let mut out = Vec::new();
        for span in &self.spans {
            for token in span.tokens.clone() {
                for head in 0..case.num_heads {
                    out.extend(self.reference_head(span, token, head));
                }
            }
        }
        out
    }

    fn reference_head(&self, span: &Span, token: usize, head: usize) -> Vec<f64> {
        let case = &self.case;
        let kv_head = head / (case.num_heads / case.num_kv_heads);
        let position = self.positions[token] as usize;
        let seen: Vec<usize> = (case.mask.first_visible(position)..=position)
            .map(|position| (span.tokens.start + position) * case.num_kv_heads + kv_head)
            .collect();
        let dim = case.key_dim;
        let q = &self.q[(token * case.num_heads + head) * dim..][..dim];
        let score = |&row: &usize| {
            let k = &self.k[row * dim..][..dim];
            let dot: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            let scaled = dot * f64::from(0.2f32);
            case.softcap.map_or(scaled, |cap| f64::from(cap) * (scaled / f64::from(cap)).tanh())
        };
        let scores: Vec<f64> = seen.iter().map(score).collect();
        let sink = if case.sinks { f64::from(self.sinks[head]).exp() } else { 0.0 };
        let total: f64 = scores.iter().map(|s| s.exp()).sum::<f64>() + sink;
        let value = |row: usize, d: usize| {
            f64::from(if case.latent {
                self.k[row * dim + d]
            } else {
                self.v[row * case.value_dim + d]
            })
        };
        let weighted = |d| -> f64 {
            seen.iter().zip(&scores).map(|(&row, s)| s.exp() / total * value(row, d)).sum()
        };
        (0..case.value_dim).map(weighted).collect()
    }
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Shapes of real families and awkward ones.
fn cases() -> Vec<Case> {
    let base = Case::default;
    let mut cases = vec![
        base(),
        Case { num_heads: 9, num_kv_heads: 3, key_dim: 64, value_dim: 64, ..base() },
        Case { num_heads: 4, num_kv_heads: 4, key_dim: 128, value_dim: 128, ..base() },
        Case { num_heads: 5, num_kv_heads: 1, key_dim: 7, value_dim: 19, ..base() },
        Case { mask: Mask::Sliding(20), ..base() },
        Case { mask: Mask::Sliding(1), ..base() },
        Case { mask: Mask::Chunked(24), ..base() },
        Case { softcap: Some(3.0), sinks: true, ..base() },
    ];
    let latent = Case { num_heads: 8, num_kv_heads: 1, latent: true, ..base() };
    cases.push(Case { key_dim: 80, value_dim: 64, ..latent.clone() });
    cases.push(Case { key_dim: 40, value_dim: 40, ..latent });
    let formats = KvDType::ALL.map(|dtype| {
        [Case { dtype, ..base() }, Case { dtype, key_dim: 9, value_dim: 25, ..base() }]
    });
    cases.extend(formats.into_iter().flatten());
    cases
}

#[test]
fn attention_matches_the_textbook() {
    let pool = Pool::new(2, Pinning::None);
    for case in cases() {
        let mut data = case.data();
        let found = data.whole(isa::current(), &pool);
        let tolerance = match case.dtype {
            KvDType::F32 => 4e-6,
            KvDType::F16 => 2e-3,
            KvDType::BF16 => 2e-2,
            KvDType::Q8 => 4e-2,
        };
        for (i, (&found, expected)) in found.iter().zip(data.reference()).enumerate() {
            let error = (f64::from(found) - expected).abs();
            assert!(
                error < tolerance,
                "{case:?}\n{i}: {found} instead of {expected}",
                case = Show(&case)
            );
        }
    }
}

mod by_tiles;

struct Show<'a>(&'a Case);

impl std::fmt::Debug for Show<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let c = self.0;
        let dims = (c.num_heads, c.num_kv_heads, c.key_dim, c.value_dim);
        write!(f, "{:?} {dims:?} latent {} {:?}", c.dtype, c.latent, c.mask)
    }
}

#[test]
fn every_instruction_set_and_split_gives_the_same_bits() {
    let pools = [1, 2, 5].map(|threads| Pool::new(threads, Pinning::None));
    for case in cases() {
        let expected = bits(&case.data().whole(Isa::Scalar, &pools[0]));
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            for pool in &pools {
                let found = bits(&case.data().whole(isa, pool));
                assert!(
                    found == expected,
                    "{:?} on {isa:?}, {} threads",
                    Show(&case),
                    pool.threads()
                );
            }
        }
    }
}

#[test]
fn chunks_and_single_tokens_give_the_bits_of_the_whole() {
    let pool = Pool::new(2, Pinning::None);
    for case in cases() {
        let expected = bits(&case.data().whole(isa::current(), &pool));
        for chunk in [1, 5, 16, 23] {
            let mut data = case.data();
            let mut out = data.out();
            // Sequences take turns; each step stores its chunk and attends to it.
            for span in data.spans.clone() {
                for start in span.tokens.clone().step_by(chunk) {
                    let tokens = start..span.tokens.end.min(start + chunk);
                    data.store(tokens.clone());
                    let step = [Span { tokens, blocks: span.blocks.clone() }];
                    data.attend(isa::current(), &pool, &step, &mut out);
                }
            }
            assert!(bits(&out) == expected, "{:?}, chunks of {chunk}", Show(&case));
        }
    }
}

#[test]
fn a_batch_gives_the_bits_of_its_members_alone() {
    let pool = Pool::new(2, Pinning::None);
    for case in cases() {
        let mut data = case.data();
        let expected = bits(&data.whole(isa::current(), &pool));
        let mut out = data.out();
        for span in &data.spans {
            data.attend(isa::current(), &pool, std::slice::from_ref(span), &mut out);
        }
        assert!(bits(&out) == expected, "{:?}", Show(&case));
    }
}

#[test]
fn head_major_queries_and_results_are_the_same_numbers() {
    let pool = Pool::new(1, Pinning::None);
    let case = Case { lengths: vec![21], ..Case::default() };
    let mut data = case.data();
    let expected = data.whole(isa::current(), &pool);
    let (tokens, heads, dim) = (21, case.num_heads, case.key_dim);
    let mut q = vec![0.0; data.q.len()];
    for token in 0..tokens {
        for head in 0..heads {
            let from = &data.q[(token * heads + head) * dim..][..dim];
            q[(head * tokens + token) * dim..][..dim].copy_from_slice(from);
        }
    }
    let args = AttentionArgs {
        q: &q,
        q_strides: Strides::head_major(tokens, dim),
        num_heads: heads,
        keys: KvTensor { layout: case.layout(KvRole::Keys), bytes: &data.keys },
        values: Values::Cache(KvTensor {
            layout: case.layout(KvRole::Values),
            bytes: &data.values,
        }),
        spans: &data.spans,
        block_ids: &data.block_ids,
        positions: &data.positions,
        mask: case.mask,
        scale: 0.2,
        softcap: None,
        sinks: None,
        out_strides: Strides::head_major(tokens, dim),
    };
    let mut out = data.out();
    attention(&pool, &args, &AttentionScratch::new(1, dim, dim, case.precision), &mut out);
    for token in 0..tokens {
        for head in 0..heads {
            let found = &out[(head * tokens + token) * dim..][..dim];
            assert_eq!(found, &expected[(token * heads + head) * dim..][..dim]);
        }
    }
}

#[test]
fn stored_numbers_are_clamped_rounded_and_scaled() {
    let layout = KvLayout { dtype: KvDType::F16, role: KvRole::Values, num_kv_heads: 1, dim: 2 };
    let mut cache = vec![0; layout.block_bytes()];
    kv_store(&layout, &mut cache, 3, &[1e9, -1.0]);
    assert_eq!(cache[12..16], [0xff, 0x7b, 0x00, 0xbc]);
    let layout = KvLayout { dtype: KvDType::Q8, role: KvRole::Keys, num_kv_heads: 1, dim: 2 };
    let mut cache = vec![0; layout.block_bytes()];
    kv_store(&layout, &mut cache, 2, &[-4.0, 1.0]);
    kv_store(&layout, &mut cache, 3, &[0.0, 0.0]);
    assert_eq!(cache[8..12], (4.0f32 / 127.0).to_le_bytes());
    assert_eq!((cache[64 + 2] as i8, cache[64 + 16 + 2]), (-127, 32));
    assert_eq!((cache[64 + 3], cache[64 + 16 + 3]), (0, 0));
    kv_store(&layout, &mut cache, 4, &[f32::NAN, 1.0]);
    assert!(f32::from_le_bytes(*cache[16..].first_chunk().unwrap()).is_nan());
}

#[test]
#[should_panic(expected = "span beyond its blocks")]
fn too_few_blocks_are_the_callers_mistake() {
    let mut data = Case::default().data();
    data.spans[0].blocks.end -= 1;
    data.whole(isa::current(), &Pool::new(1, Pinning::None));
}

#[test]
#[should_panic(expected = "spans overlap or descend")]
fn a_token_in_two_spans_is_the_callers_mistake() {
    let mut data = Case::default().data();
    let twice = data.spans[0].clone();
    data.spans.insert(1, twice);
    data.whole(isa::current(), &Pool::new(1, Pinning::None));
}

#[test]
#[should_panic(expected = "outputs overlap")]
fn strides_that_share_places_are_the_callers_mistake() {
    let case = Case::default();
    let data = case.data();
    let tensor = |role, bytes| KvTensor { layout: case.layout(role), bytes };
    let args = AttentionArgs {
        q: &data.q,
        q_strides: Strides::token_major(case.num_heads, case.key_dim),
        num_heads: case.num_heads,
        keys: tensor(KvRole::Keys, &data.keys),
        values: Values::Cache(tensor(KvRole::Values, &data.values)),
        spans: &data.spans,
        block_ids: &data.block_ids,
        positions: &data.positions,
        mask: Mask::Full,
        scale: 0.2,
        softcap: None,
        sinks: None,
        out_strides: Strides { token: case.value_dim, head: case.value_dim },
    };
    let scratch = AttentionScratch::new(1, case.key_dim, case.value_dim, case.precision);
    attention(&Pool::new(1, Pinning::None), &args, &scratch, &mut data.out());
}
