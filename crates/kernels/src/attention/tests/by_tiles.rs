//! Attention by tiles against double precision, on machines that have them.

use std::f32::consts::LOG2_E;

use super::super::cache::load_tile;
use super::*;
use crate::formats::half::{bf16_to_f32, f32_to_bf16};

fn has_tiles() -> bool {
    isa::current() == Isa::Amx
}

/// The nearest bfloat.
fn bfloat(x: f32) -> f64 {
    f64::from(bf16_to_f32(f32_to_bf16(x)))
}

/// What the cache holds of one position's row of a head, as bfloats.
fn cached(data: &Data, role: KvRole, span: &Span, position: usize, head: usize) -> Vec<f64> {
    let layout = data.case.layout(role);
    let bytes = if role == KvRole::Keys { &data.keys } else { &data.values };
    let block = data.block_ids[span.blocks.start + position / BLOCK_TOKENS] as usize;
    let mut numbers = vec![0.0; BLOCK_TOKENS * layout.dim];
    let tile = KvTensor { layout, bytes }.tile(block, head);
    load_tile::<lanes::Scalar>(&layout, tile, &mut numbers);
    let token = position % BLOCK_TOKENS;
    let place = |d: usize| match role {
        KvRole::Keys => d * BLOCK_TOKENS + token,
        KvRole::Values => token * layout.dim + d,
    };
    (0..layout.dim).map(|d| bfloat(numbers[place(d)])).collect()
}

/// Checks one query's result: the arithmetic of [`bfloats`] in double precision, but for the
/// rounding of weights, which is what the tolerance allows for.
fn check_query(data: &Data, span: &Span, token: usize, head: usize, out: &[f32]) {
    let case = &data.case;
    let kv_head = head / (case.num_heads / case.num_kv_heads);
    let position = data.positions[token] as usize;
    let factor = 0.2 * LOG2_E * case.softcap.map_or(1.0, |cap| 2.0 / cap);
    let start = (token * case.num_heads + head) * case.key_dim;
    let q: Vec<f64> =
        data.q[start..start + case.key_dim].iter().map(|q| bfloat(q * factor)).collect();
    let (mut scores, mut values, mut reach) = (Vec::new(), Vec::new(), 0f64);
    for seen in case.mask.first_visible(position)..=position {
        let key = cached(data, KvRole::Keys, span, seen, kv_head);
        let sum: f64 = q.iter().zip(&key).map(|(q, k)| q * k).sum();
        reach = reach.max(q.iter().zip(&key).map(|(q, k)| (q * k).abs()).sum());
        scores.push(case.softcap.map_or(sum, |cap| {
            let half = sum / 2.0 / f64::from(LOG2_E);
            f64::from(cap * LOG2_E) * half.tanh()
        }));
        values.push(if case.latent {
            key
        } else {
            cached(data, KvRole::Values, span, seen, kv_head)
        });
    }
    let sink = case.sinks.then(|| f64::from(data.sinks[head] * LOG2_E));
    let largest = scores.iter().copied().chain(sink).fold(f64::MIN, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - largest).exp2()).collect();
    let total = weights.iter().sum::<f64>() + sink.map_or(0.0, |sink| (sink - largest).exp2());
    // Exponentials are exact to 3e-6, capped scores to ten times that for each unit of the cap;
    // sums of scores are in single precision.
    let of_scores =
        1e-5 + reach / f64::from(1 << 20) + 1e-5 * f64::from(case.softcap.unwrap_or(0.0));
    for (d, found) in out.iter().enumerate() {
        let weighted = |of: &dyn Fn(f64) -> f64| -> f64 {
            weights.iter().zip(&values).map(|(p, v)| p * of(v[d])).sum::<f64>() / total
        };
        let expected = weighted(&|v| v);
        // Each weight is rounded to 8 bits, in the sum of weights too: what it adds to the error
        // is a 256th of its value's distance from the mean.
        let room =
            weighted(&|v| (v - expected).abs()) / 256.0 + weighted(&f64::abs) * 2.0 * of_scores;
        let error = (f64::from(*found) - expected).abs();
        assert!(
            error <= room + 1e-30,
            "{:?}, token {token}, head {head}, {d}: {found}, not {expected}, within {room}",
            Show(case)
        );
    }
}

/// Checks all queries of `spans`.
fn check(data: &Data, spans: &[Span], out: &[f32]) {
    let (heads, dim) = (data.case.num_heads, data.value_dim());
    for span in spans {
        let whole = data.spans.iter().find(|whole| whole.blocks == span.blocks).unwrap();
        for token in span.tokens.clone() {
            for head in 0..heads {
                let out = &out[(token * heads + head) * dim..][..dim];
                check_query(data, whole, token, head, out);
            }
        }
    }
}

/// Shapes of real families and awkward ones, all by tiles.
fn cases() -> Vec<Case> {
    let base = || Case {
        precision: Precision::Mixed,
        num_heads: 4,
        num_kv_heads: 2,
        lengths: vec![70, 1, 33, 150],
        ..Case::default()
    };
    let sized = |key_dim| Case { key_dim, value_dim: key_dim, lengths: vec![45], ..base() };
    let mut cases: Vec<Case> = [64, 72, 80, 96, 128, 192, 256].map(sized).into();
    let latent = Case { num_heads: 8, num_kv_heads: 1, latent: true, ..base() };
    let masks = [Mask::Sliding(20), Mask::Sliding(1), Mask::Sliding(140), Mask::Chunked(24)];
    cases.extend(masks.map(|mask| Case { mask, ..base() }));
    cases.extend([
        base(),
        Case { num_heads: 5, num_kv_heads: 1, key_dim: 7, value_dim: 19, ..base() },
        Case { softcap: Some(3.0), ..base() },
        Case { sinks: true, lengths: vec![300], ..base() },
        Case { key_dim: 576, value_dim: 512, lengths: vec![40], ..latent.clone() },
        Case { key_dim: 80, value_dim: 64, lengths: vec![139], ..latent.clone() },
        Case { key_dim: 40, value_dim: 40, ..latent.clone() },
    ]);
    for dtype in KvDType::ALL {
        cases.push(Case { dtype, ..base() });
        cases.push(Case { dtype, key_dim: 9, value_dim: 25, ..base() });
        cases.push(Case { dtype, key_dim: 40, value_dim: 24, ..latent.clone() });
    }
    cases
}

#[test]
fn tiles_are_as_close_as_bfloats_are() {
    if !has_tiles() {
        return;
    }
    let pool = Pool::new(2, Pinning::None);
    for case in cases() {
        let mut data = case.data();
        let out = data.whole(Isa::Amx, &pool);
        // A single token is attended by vectors.
        let spans: Vec<Span> =
            data.spans.iter().filter(|span| span.tokens.len() > 1).cloned().collect();
        check(&data, &spans, &out);
    }
}

#[test]
fn sinks_without_weight_count_nothing() {
    if !has_tiles() {
        return;
    }
    let pool = Pool::new(1, Pinning::None);
    let case = Case {
        precision: Precision::Mixed,
        sinks: true,
        mask: Mask::Sliding(20),
        lengths: vec![300],
        ..Case::default()
    };
    let mut data = case.data();
    data.sinks.fill(f32::NEG_INFINITY);
    let out = data.whole(Isa::Amx, &pool);
    check(&data, &data.spans, &out);
}

#[test]
fn queries_get_the_same_bits_whoever_shares_their_tiles() {
    if !has_tiles() {
        return;
    }
    let pools = [1, 2, 5].map(|threads| Pool::new(threads, Pinning::None));
    for case in cases() {
        let mut data = case.data();
        let expected = bits(&data.whole(Isa::Amx, &pools[0]));
        for pool in &pools[1..] {
            let threads = pool.threads();
            let found = bits(&data.whole(Isa::Amx, pool));
            assert!(found == expected, "{:?}, {threads} threads", Show(&case));
        }
        // The rest of each sequence after a cached prefix.
        let (heads, dim) = (case.num_heads, data.value_dim());
        for span in data.spans.iter().filter(|span| span.tokens.len() > 40) {
            let mut out = data.out();
            let rest = Span { tokens: span.tokens.start + 13..span.tokens.end, ..span.clone() };
            data.attend(Isa::Amx, &pools[1], std::slice::from_ref(&rest), &mut out);
            let rest = rest.tokens.start * heads * dim..rest.tokens.end * heads * dim;
            assert!(bits(&out[rest.clone()]) == expected[rest], "{:?}", Show(&case));
        }
    }
}

#[test]
fn tiles_are_used_where_they_may_be_and_only_there() {
    if !has_tiles() {
        return;
    }
    let pool = Pool::new(1, Pinning::None);
    let case = Case { precision: Precision::Mixed, ..Case::default() };
    let mixed = case.data().whole(Isa::Amx, &pool);
    let by_vectors = case.data().whole(Isa::Avx512, &pool);
    let sixteen = Case { precision: Precision::Sixteen, ..case.clone() };
    assert_eq!(bits(&sixteen.data().whole(Isa::Amx, &pool)), bits(&by_vectors));
    // The sequences have 70, 1 and 33 tokens: those that have many differ, the one does not.
    let width = case.num_heads * case.value_dim;
    let same = |tokens: Range<usize>| {
        let range = tokens.start * width..tokens.end * width;
        bits(&mixed[range.clone()]) == bits(&by_vectors[range])
    };
    assert!(!same(0..70) && same(70..71) && !same(71..104));
}

#[test]
fn what_is_no_number_stays_with_those_who_see_it() {
    if !has_tiles() {
        return;
    }
    let pool = Pool::new(1, Pinning::None);
    let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY];
    let sequence = |latent| Case {
        precision: Precision::Mixed,
        num_heads: 2,
        num_kv_heads: 1,
        latent,
        mask: Mask::Sliding(60),
        lengths: vec![200],
        ..Case::default()
    };
    for (latent, bad) in [false, true].into_iter().flat_map(|latent| bad.map(|bad| (latent, bad))) {
        let case = sequence(latent);
        let width = case.num_heads * case.value_dim;
        let good = case.data().whole(Isa::Amx, &pool);
        // The token, what of it is bad, and who may see that.
        for (token, what, victims) in [(37, 0, 37..38), (37, 1, 37..97), (100, 2, 100..160)] {
            if what == 2 && latent {
                continue;
            }
            let mut data = case.data();
            let (rows, dim) = match what {
                0 => (&mut data.q, case.num_heads * case.key_dim),
                1 => (&mut data.k, case.key_dim),
                _ => (&mut data.v, case.value_dim),
            };
            rows[token * dim + 3] = bad;
            let out = data.whole(Isa::Amx, &pool);
            for other in (0..200).filter(|other| !victims.contains(other)) {
                let range = other * width..(other + 1) * width;
                assert_eq!(bits(&out[range.clone()]), bits(&good[range]), "{bad} {what} {other}");
            }
            if bad.is_nan() {
                for victim in victims {
                    assert!(out[victim * width].is_nan(), "{what}: {victim}");
                }
            }
        }
    }
}
