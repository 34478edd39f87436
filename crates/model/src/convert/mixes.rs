//! The types a model can be converted to, as data: which format each kind of tensor gets.
//!
//! A name like `Q4_K_M` is a mix: most matrices get its base format, those that matter more get a
//! finer one. The names and file-type numbers are those of llama.cpp's `llama-quantize`, and for
//! dense models the mixes are too, so that sizes and expectations carry over. Models with experts
//! differ: there nearly all bytes are experts, so attention and shared experts, which every token
//! meets, are kept finer at next to no cost.

use moeba_kernels::dtype::DType::{
    self, BF16, F16, F32, Iq4Nl, Iq4Xs, Mxfp4, Nvfp4, Q2K, Q3K, Q4_0, Q4_1, Q4K, Q5_0, Q5_1, Q5K,
    Q6K, Q8_0,
};

/// A type a model can be converted to.
#[derive(Debug)]
pub struct Target {
    /// What the user calls it.
    pub name: &'static str,
    /// Its number under `general.file_type`.
    pub file_type: u32,
    /// The format of most matrices.
    base: DType,
    /// The format of the head, and of embeddings that serve as the head too.
    head: DType,
    /// What gets another format than `base`; the first that applies is taken.
    finer: &'static [Finer],
    /// The same for models with experts, asked first.
    finer_with_experts: &'static [Finer],
}

/// Tensors that get another format than most.
#[derive(Debug)]
struct Finer {
    /// The tensors' names in GGUF, without layer and `.weight`; none for all of them.
    stems: &'static [&'static str],
    when: When,
    format: DType,
}

/// In which layers or models a rule applies.
#[derive(Clone, Copy, Debug)]
enum When {
    Always,
    /// In this many layers from the first.
    First(usize),
    /// In the first of so many equal parts of the layers.
    FirstOf(usize),
    /// In the first and the last eighth, and in every third layer between.
    Spread,
    /// Where at least four queries share a key.
    SharedKeys,
    /// Where nobody measured importances.
    Unmeasured,
}

/// What a choice depends on beyond the tensor's name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Context {
    pub(super) num_layers: usize,
    pub(super) has_experts: bool,
    pub(super) is_tied: bool,
    pub(super) is_measured: bool,
    /// Query heads to a key/value head.
    pub(super) group: usize,
}

const V: &[&str] = &["attn_v", "attn_kv_b", "attn_k_b", "attn_v_b"];
const DOWN: &[&str] = &["ffn_down", "ffn_down_exps"];
const OUT: &[&str] = &["attn_output"];
const FUSED: &[&str] = &["attn_qkv"];
/// What every token of a model with experts meets, and what is small beside the experts.
const KEYS: &[&str] = &["attn_k", "attn_v", "attn_kv_a_mqa", "attn_kv_b", "attn_k_b", "attn_v_b"];
const SHARED: &[&str] = &["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"];
const EXPERTS: &[&str] = &["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];
const FUSED_EXPERTS: &[&str] = &["ffn_gate_up_exps"];
const FFN: &[&str] = &["ffn_gate", "ffn_up", "ffn_down"];
const ALL: &[&str] = &[];

const fn finer(stems: &'static [&'static str], when: When, format: DType) -> Finer {
    Finer { stems, when, format }
}

/// Attention and shared experts beside experts of two to four bits.
const BESIDE_SMALL: &[Finer] = &[
    finer(KEYS, When::Always, Q8_0),
    finer(OUT, When::Always, Q5K),
    finer(SHARED, When::Always, Q6K),
];
/// The same beside experts of five or six bits.
const BESIDE_LARGE: &[Finer] =
    &[finer(KEYS, When::Always, Q8_0), finer(SHARED, When::Always, Q8_0)];

const fn target(
    (name, file_type): (&'static str, u32),
    (base, head): (DType, DType),
    finer: &'static [Finer],
    finer_with_experts: &'static [Finer],
) -> Target {
    Target { name, file_type, base, head, finer, finer_with_experts }
}

/// All types, from coarse to fine.
static TARGETS: &[Target] = &[
    target(
        ("Q2_K", 10),
        (Q2K, Q6K),
        &[
            finer(V, When::SharedKeys, Q4K),
            finer(V, When::Always, Q3K),
            finer(DOWN, When::Always, Q3K),
            finer(OUT, When::Always, Q3K),
        ],
        BESIDE_SMALL,
    ),
    target(
        ("Q2_K_S", 21),
        (Q2K, Q6K),
        &[finer(V, When::SharedKeys, Q4K), finer(DOWN, When::FirstOf(8), Q4K)],
        BESIDE_SMALL,
    ),
    target(("Q3_K_S", 11), (Q3K, Q6K), &[], BESIDE_SMALL),
    target(
        ("Q3_K_M", 12),
        (Q3K, Q6K),
        &[
            finer(V, When::First(2), Q5K),
            finer(V, When::Always, Q4K),
            finer(DOWN, When::FirstOf(16), Q5K),
            finer(DOWN, When::Always, Q4K),
            finer(OUT, When::Always, Q4K),
            finer(FUSED, When::Always, Q4K),
        ],
        BESIDE_SMALL,
    ),
    target(
        ("Q3_K_L", 13),
        (Q3K, Q6K),
        &[
            finer(V, When::Always, Q5K),
            finer(DOWN, When::Always, Q5K),
            finer(OUT, When::Always, Q5K),
            finer(FUSED, When::Always, Q4K),
        ],
        BESIDE_SMALL,
    ),
    target(
        ("IQ4_XS", 30),
        (Iq4Xs, Q6K),
        &[finer(V, When::SharedKeys, Q5K), finer(DOWN, When::Unmeasured, Q5K)],
        BESIDE_SMALL,
    ),
    target(
        ("IQ4_NL", 25),
        (Iq4Nl, Q6K),
        &[finer(V, When::SharedKeys, Q5K), finer(DOWN, When::Unmeasured, Q5K)],
        BESIDE_SMALL,
    ),
    target(("Q4_0", 2), (Q4_0, Q6K), &[], BESIDE_SMALL),
    target(("Q4_1", 3), (Q4_1, Q6K), &[], BESIDE_SMALL),
    target(
        ("Q4_K_S", 14),
        (Q4K, Q6K),
        &[finer(V, When::First(4), Q5K), finer(DOWN, When::FirstOf(8), Q5K)],
        BESIDE_SMALL,
    ),
    target(
        ("Q4_K_M", 15),
        (Q4K, Q6K),
        &[
            finer(V, When::Spread, Q6K),
            finer(DOWN, When::Spread, Q6K),
            finer(FUSED, When::Always, Q5K),
        ],
        BESIDE_SMALL,
    ),
    target(
        ("MXFP4", 38),
        (Mxfp4, Q8_0),
        &[finer(FFN, When::Always, Mxfp4), finer(ALL, When::Always, Q8_0)],
        &[
            finer(EXPERTS, When::Always, Mxfp4),
            finer(FUSED_EXPERTS, When::Always, Mxfp4),
            finer(ALL, When::Always, Q8_0),
        ],
    ),
    target(
        ("NVFP4", 39),
        (Nvfp4, Q8_0),
        &[finer(FFN, When::Always, Nvfp4), finer(ALL, When::Always, Q8_0)],
        &[
            finer(EXPERTS, When::Always, Nvfp4),
            // No other reader knows a name for their factors.
            finer(FUSED_EXPERTS, When::Always, Iq4Nl),
            finer(ALL, When::Always, Q8_0),
        ],
    ),
    target(("Q5_0", 8), (Q5_0, Q6K), &[], BESIDE_LARGE),
    target(("Q5_1", 9), (Q5_1, Q6K), &[], BESIDE_LARGE),
    target(("Q5_K_S", 16), (Q5K, Q6K), &[], BESIDE_LARGE),
    target(
        ("Q5_K_M", 17),
        (Q5K, Q6K),
        &[
            finer(V, When::Spread, Q6K),
            finer(DOWN, When::Spread, Q6K),
            finer(FUSED, When::Always, Q6K),
        ],
        BESIDE_LARGE,
    ),
    target(("Q6_K", 18), (Q6K, Q6K), &[], BESIDE_LARGE),
    target(("Q8_0", 7), (Q8_0, Q8_0), &[], &[]),
    target(("F16", 1), (F16, F16), &[], &[]),
    target(("BF16", 32), (BF16, BF16), &[], &[]),
    target(("F32", 0), (F32, F32), &[], &[]),
];

/// Other names people type.
static ALIASES: &[(&str, &str)] =
    &[("Q3_K", "Q3_K_M"), ("Q4_K", "Q4_K_M"), ("Q5_K", "Q5_K_M"), ("MXFP4_MOE", "MXFP4")];

/// What stands in for a format whose blocks do not fit a tensor's rows, best first. The next
/// finer format of short blocks is taken, so that nothing is lost but size.
static FALLBACKS: &[(DType, &[DType])] = &[
    (Q2K, &[Iq4Nl, Q4_0]),
    (Q3K, &[Iq4Nl, Q4_0]),
    (Iq4Xs, &[Iq4Nl, Q4_1]),
    (Q4K, &[Q5_0, Q8_0]),
    (Q5K, &[Q5_1, Q8_0]),
    (Q6K, &[Q8_0]),
    (Nvfp4, &[Iq4Nl, Q8_0]),
    (Mxfp4, &[Q8_0]),
];

/// Whether conversions can write `dtype`: GGUF holds it.
pub fn is_writable(dtype: DType) -> bool {
    dtype.can_encode() && dtype.format().ggml_type.is_some()
}

impl Target {
    /// All types, from coarse to fine.
    pub fn all() -> impl Iterator<Item = &'static Target> {
        TARGETS.iter()
    }

    /// The type called `name`, in any case.
    pub fn from_name(name: &str) -> Option<&'static Target> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |(_, name)| name);
        Target::all().find(|target| target.name.eq_ignore_ascii_case(name))
    }

    /// The format of most matrices.
    pub(super) fn base(&self) -> DType {
        self.base
    }

    /// The format the mix gives the matrix called `stem` of layer `layer`.
    pub(super) fn choose(&self, stem: &str, layer: usize, context: &Context) -> DType {
        if stem == "output" || stem == "token_embd" && context.is_tied {
            return self.head;
        }
        let with_experts = if context.has_experts { self.finer_with_experts } else { &[] };
        let rules = with_experts.iter().chain(self.finer);
        let names = |rule: &Finer| rule.stems.is_empty() || rule.stems.contains(&stem);
        let mut applying = rules.filter(|rule| names(rule) && rule.when.holds(layer, context));
        applying.next().map_or(self.base, |rule| rule.format)
    }
}

impl When {
    fn holds(self, layer: usize, context: &Context) -> bool {
        let layers = context.num_layers;
        match self {
            When::Always => true,
            When::First(count) => layer < count,
            When::FirstOf(parts) => layer < layers / parts,
            When::Spread => {
                let eighth = layers / 8;
                layer < eighth || layer >= 7 * layers / 8 || (layer - eighth) % 3 == 2
            }
            When::SharedKeys => context.group >= 4,
            When::Unmeasured => !context.is_measured && layer < layers / 8,
        }
    }
}

/// `dtype`, or what stands in for it where rows of `cols` numbers are no whole blocks.
pub(super) fn fitting(dtype: DType, cols: usize) -> DType {
    let fits = |dtype: &DType| dtype.row_bytes(cols).is_some();
    let listed = FALLBACKS.iter().find(|(own, _)| *own == dtype);
    let others = listed.map_or(&[][..], |(_, others)| others);
    std::iter::once(dtype).chain(others.iter().copied()).find(fits).unwrap_or(F16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = Context {
        num_layers: 32,
        has_experts: false,
        is_tied: false,
        is_measured: false,
        group: 1,
    };

    #[test]
    fn the_medium_mix_keeps_more_bits_in_spread_layers() {
        let target = Target::from_name("q4_k").unwrap();
        assert_eq!(target.name, "Q4_K_M");
        let finer: Vec<usize> = (0..32)
            .filter(|&layer| target.choose("ffn_down", layer, &CONTEXT) == DType::Q6K)
            .collect();
        assert_eq!(finer, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        assert_eq!(target.choose("ffn_up", 0, &CONTEXT), DType::Q4K);
        assert_eq!(target.choose("output", 0, &CONTEXT), DType::Q6K);
        assert_eq!(target.choose("token_embd", 0, &CONTEXT), DType::Q4K);
        let tied = Context { is_tied: true, ..CONTEXT };
        assert_eq!(target.choose("token_embd", 0, &tied), DType::Q6K);
        let experts = Context { has_experts: true, ..CONTEXT };
        assert_eq!(target.choose("attn_k", 9, &experts), DType::Q8_0);
        assert_eq!(target.choose("ffn_up_exps", 9, &experts), DType::Q4K);
        assert_eq!(target.choose("ffn_down_exps", 9, &experts), DType::Q6K);
    }

    #[test]
    fn rows_of_no_whole_blocks_get_a_finer_format_of_short_ones() {
        assert_eq!(fitting(DType::Q4K, 512), DType::Q4K);
        assert_eq!(fitting(DType::Q6K, 160), DType::Q8_0);
        assert!(fitting(DType::Q4K, 160).row_bytes(160).is_some());
        assert_eq!(fitting(DType::Q4K, 100), DType::F16);
    }

    #[test]
    fn every_format_of_the_tables_can_be_written() {
        for target in TARGETS {
            assert!(is_writable(target.base) && is_writable(target.head), "{}", target.name);
            let rules = target.finer.iter().chain(target.finer_with_experts);
            rules.for_each(|rule| assert!(is_writable(rule.format), "{}", rule.format));
        }
        for (dtype, others) in FALLBACKS {
            let sound = is_writable(*dtype) && others.iter().all(|other| is_writable(*other));
            assert!(sound, "{dtype}");
        }
    }
}
