//! The fast path agrees with the reference in every layer of every family, in floats and in
//! integers, and what is broken on purpose is found and named.

use std::path::{Path, PathBuf};

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;
use moeba_kernels::pool::{Pinning, Pool};
use moeba_model::comparison::{Comparing, Comparison, Finding, Limits, compare};
use moeba_model::families::FAMILIES;
use moeba_model::files::open;
use moeba_model::{LoadOptions, Model};

use crate::families::fixture;
use crate::files::scratch::Scratch;
use crate::sameness::quantised;

fn load(path: &Path, precision: Precision) -> Model {
    let options = LoadOptions { precision, ..LoadOptions::default() };
    Model::load(path, &options).unwrap()
}

fn compared(model: &Model, plain: &Model, kv_dtype: KvDType) -> Comparison {
    let tokens: Vec<u32> = (0..40).map(|i| 3 + i * 7 % 90).collect();
    let comparing = Comparing { tokens, kv_dtype, product_rows: 3 };
    compare(model, plain, &Pool::new(2, Pinning::None), &comparing, &|_| ()).unwrap()
}

fn found(model: &Model, plain: &Model) -> Vec<Finding> {
    let comparison = compared(model, plain, KvDType::F32);
    Limits::new(model.precision(), KvDType::F32).findings(&comparison)
}

#[test]
fn every_family_agrees_in_floats_and_in_integers() {
    let scratch = Scratch::new();
    for family in FAMILIES {
        let integers = quantised(family.name, &scratch);
        for (path, precision, kv_dtype) in [
            (fixture(family.name), Precision::Sixteen, KvDType::F32),
            (integers.clone(), Precision::Sixteen, KvDType::F32),
            (integers.clone(), Precision::Mixed, KvDType::F32),
            (integers.clone(), Precision::Sixteen, KvDType::F16),
            (integers.clone(), Precision::Sixteen, KvDType::Q8),
            (integers, Precision::Eight, KvDType::BF16),
        ] {
            let name = format!("{} {precision:?} {kv_dtype:?}", path.display());
            let model = load(&path, precision);
            let comparison = compared(&model, &model, kv_dtype);
            let findings = Limits::new(precision, kv_dtype).findings(&comparison);
            assert!(findings.is_empty(), "{name}: {findings:#?}");
            assert_eq!(comparison.layers.len(), model.spec().layers.len());
            assert!(!comparison.products.is_empty());
            if path.is_dir() {
                // Nothing is rounded but sums.
                for layer in &comparison.layers {
                    assert!(layer.mixer.max < 1e-5 && layer.ffn.max < 1e-5, "{name}: {layer:?}");
                }
                assert!(comparison.free.kl_max < 1e-9, "{name}: {:?}", comparison.free);
            }
        }
    }
}

/// A GGUF file's bytes, and where a tensor lies in them.
struct Patient {
    file: PathBuf,
    bytes: Vec<u8>,
}

impl Patient {
    fn new(file: PathBuf) -> Patient {
        let bytes = std::fs::read(&file).unwrap();
        Patient { file, bytes }
    }

    fn place(&self, tensor: &str) -> std::ops::Range<usize> {
        let bytes = open(&self.file).unwrap().tensors.get(tensor).unwrap().bytes;
        bytes.offset()..bytes.offset() + bytes.len()
    }

    /// The model after `hurt` has changed the file's bytes, compared with the sound one.
    fn findings(&self, scratch: &Scratch, hurt: impl FnOnce(&mut [u8])) -> Vec<Finding> {
        let mut bytes = self.bytes.clone();
        hurt(&mut bytes);
        let hurt = load(&scratch.write("hurt.gguf", &bytes), Precision::Sixteen);
        found(&hurt, &load(&self.file, Precision::Sixteen))
    }
}

/// Something was found, it names what it should, and all of it lies in layer 1 or behind it all.
fn assert_named(findings: &[Finding], words: &str) {
    assert!(findings.iter().any(|finding| finding.message.contains(words)), "{findings:#?}");
    assert!(findings.iter().all(|f| f.layer.is_none_or(|layer| layer == 1)), "{findings:#?}");
}

#[test]
fn what_is_broken_is_found_in_its_layer_and_nowhere_else() {
    let scratch = Scratch::new();
    for family in ["llama", "mixtral", "qwen3_moe", "mistral4"] {
        let patient = Patient::new(quantised(family, &scratch));
        // Norms change places.
        let [first, second] =
            ["blk.1.attn_norm.weight", "blk.1.ffn_norm.weight"].map(|name| patient.place(name));
        let findings = patient.findings(&scratch, |bytes| {
            let kept = bytes[first.clone()].to_vec();
            bytes.copy_within(second.clone(), first.start);
            bytes[second].copy_from_slice(&kept);
        });
        assert_named(&findings, "layer 1: the mixer is off");
        assert_named(&findings, "layer 1: the feed-forward network is off");
        // One bit of one weight: the sign of a byte in the middle of a row.
        let place = patient.place("blk.1.attn_output.weight");
        let findings = patient.findings(&scratch, |bytes| bytes[place.start + 19] ^= 0x80);
        assert_named(&findings, "layer 1: the mixer is off");
        assert!(findings.iter().all(|f| !f.message.contains("feed-forward")), "{findings:#?}");
    }
}

#[test]
fn broken_routers_and_experts_are_named() {
    let scratch = Scratch::new();
    for family in ["mixtral", "qwen3_moe", "mistral4"] {
        let patient = Patient::new(quantised(family, &scratch));
        let place = patient.place("blk.1.ffn_gate_inp.weight");
        let findings = patient.findings(&scratch, |bytes| {
            bytes[place].as_chunks_mut::<4>().0[..40].reverse();
        });
        assert_named(&findings, "layer 1: the router is off");
        // Experts change places.
        let down = "blk.1.ffn_down_exps.weight";
        let experts = open(&patient.file).unwrap().tensors.header(down).unwrap().shape[0];
        let place = patient.place(down);
        let findings = patient.findings(&scratch, |bytes| {
            let one = place.len() / experts;
            bytes[place].rotate_left(one);
        });
        assert_named(&findings, "layer 1: the output of expert");
    }
}

#[test]
fn a_lost_bias_is_found() {
    let scratch = Scratch::new();
    let mut tried = 0;
    for family in FAMILIES {
        let file = fixture(family.name).join("model.gguf");
        let names: Vec<String> = open(&file).unwrap().tensors.names().map(str::to_owned).collect();
        let biases =
            names.iter().filter(|name| name.starts_with("blk.1.") && name.contains(".bias"));
        for name in biases {
            let patient = Patient::new(file.clone());
            let place = patient.place(name);
            let findings = patient.findings(&scratch, |bytes| bytes[place].fill(0));
            let unheard = name.contains("attn_k.bias");
            assert!(unheard || !findings.is_empty(), "{}: {name}", family.name);
            assert!(findings.iter().all(|f| f.layer.is_none_or(|l| l == 1)), "{findings:#?}");
            tried += 1;
        }
    }
    println!("{tried} biases");
}

#[test]
fn a_product_that_is_rounded_more_than_it_should_be_is_named() {
    let scratch = Scratch::new();
    let model = load(&quantised("mixtral", &scratch), Precision::Eight);
    let comparison = compared(&model, &model, KvDType::F32);
    let findings = Limits::new(Precision::Sixteen, KvDType::F32).findings(&comparison);
    let named = |tensor: &str| findings.iter().any(|f| f.tensor.as_deref() == Some(tensor));
    assert!(named("blk.0.attn_q.weight") && named("blk.1.ffn_up_exps.weight"), "{findings:#?}");
    assert!(!named("blk.0.ffn_gate_inp.weight"), "routers are floats: {findings:#?}");
}
