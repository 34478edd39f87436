//! A profile accounts for all time and all products of a pass, and allocates nothing meanwhile.

use std::time::Instant;

use allocation_counter::measure;
use moeba_kernels::attention::KvDType;
use moeba_model::batch::{Batch, WantLogits};
use moeba_model::cost::{Cost, StepShape};
use moeba_model::observer::Part;
use moeba_model::profile::{PARTS, Profile, Share};

use crate::families::fixture;
use crate::oracle::Runner;

/// Runs tokens `0..tokens`; what each part of each layer took, and nanoseconds in all.
fn profiled(runner: &mut Runner, tokens: u32) -> (Vec<[Share; PARTS.len()]>, u64) {
    let Runner { model, pool, cache, workspace } = runner;
    let mut batch = Batch::default();
    batch.push_span(&(3..3 + tokens).collect::<Vec<_>>(), 0, &[0, 1, 2], WantLogits::Last);
    let profile = Profile::new(model, pool);
    let mut nanos = 0;
    let pass = measure(|| {
        let start = Instant::now();
        profile.begin();
        model.forward_observed(pool, &batch, cache, workspace, &profile).unwrap();
        nanos = start.elapsed().as_nanos() as u64;
    });
    assert_eq!(pass.count_total, 0, "{pass:?}");
    (profile.into_shares(), nanos)
}

fn total(shares: &[[Share; PARTS.len()]], wanted: impl Fn(Part) -> bool) -> Share {
    let parts = shares.iter().flat_map(|layer| PARTS.iter().zip(layer));
    let parts = parts.filter(|(part, _)| wanted(**part));
    parts.fold(Share::default(), |mut sum, (_, share)| {
        sum += *share;
        sum
    })
}

#[test]
fn a_profile_accounts_for_all_time_and_all_products() {
    for family in ["mixtral", "mistral4", "gemma3", "llama4", "deepseek_v2"] {
        let mut runner = Runner::load(&fixture(family), 40).unwrap();
        let (shares, nanos) = profiled(&mut runner, 40);
        let all = total(&shares, |_| true);
        assert!(all.nanos <= nanos, "{family}: {} of {nanos}", all.nanos);
        assert!(all.regions > 0, "{family}");
        assert!(all.idle_nanos <= 2 * nanos, "{family}: {} of {nanos}", all.idle_nanos);

        let shape =
            StepShape { sequences: 1, positions: 0..40, logit_rows: 1, kv_dtype: KvDType::F32 };
        let work = Cost::of_model(&runner.model).step(&shape);
        assert_eq!(all.operations.integer, work.operations.integer, "{family}");
        assert_eq!(all.operations.float, work.operations.float, "{family}");
        let experts = total(&shares, |part| matches!(part, Part::ExpertsIn | Part::ExpertsOut));
        assert!(experts.bytes >= runner.workspace.expert_bytes(), "{family}");
        // Every layer has both branches; what belongs to none is embedding and head.
        let (ends, layers) = shares.split_last().unwrap();
        let timed = |part: Part, layer: &[Share; PARTS.len()]| layer[part as usize].nanos > 0;
        for layer in layers {
            assert!(timed(Part::Attention, layer) && timed(Part::Sums, layer), "{family}");
            assert!(timed(Part::ExpertsIn, layer) != timed(Part::DenseIn, layer), "{family}");
            assert!(!timed(Part::Head, layer) && !timed(Part::Embedding, layer), "{family}");
        }
        assert!(timed(Part::Head, ends) && timed(Part::Embedding, ends), "{family}");
        assert!(!timed(Part::Attention, ends), "{family}");
    }
}

#[test]
fn one_tokens_products_read_what_a_token_reads() {
    for family in ["mixtral", "mistral4", "qwen2_moe"] {
        let mut runner = Runner::load(&fixture(family), 8).unwrap();
        let (shares, _) = profiled(&mut runner, 1);
        let row =
            total(&shares, |part| part == Part::Head).bytes / runner.model.spec().vocab_size as u64;
        let read = total(&shares, |_| true).bytes + row;
        assert_eq!(read, runner.model.bytes_per_token(), "{family}");
    }
}
