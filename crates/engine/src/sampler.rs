//! From a row of logits to a token.
//!
//! The draw is a function of the logits, the request's parameters, its seed and the token's
//! position, and of nothing else: there is no generator whose state depends on what ran before,
//! so a request sampled alone, in a batch, or after a preemption yields the same tokens. Sums run
//! in a fixed order and the exponential is our own, so this holds on every machine.
//!
//! One `Sampler` serves all sequences; its scratch memory is as long as the vocabulary and is
//! allocated once. Vocabularies have 150,000 tokens, so nothing here sorts a whole one: the best
//! few are picked in one pass that skips whole runs below the worst of them.

use std::collections::HashMap;

use crate::constraint::{TokenConstraint, TokenMask};
use crate::request::{Request, SamplingParams, TopLogprob};

/// What a sequence brings to its draws.
pub(crate) struct SamplingState {
    pub(crate) params: SamplingParams,
    pub(crate) seed: u64,
    pub(crate) logprobs: Option<usize>,
    pub(crate) constraint: Option<Box<dyn TokenConstraint>>,
    counts: Option<TokenCounts>, // only when a penalty needs them
}

impl SamplingState {
    /// Takes the sampling part out of `request`.
    pub(crate) fn new(request: &mut Request, seed: u64) -> SamplingState {
        let params = std::mem::take(&mut request.sampling);
        let penalties = params.repetition_penalty != 1.0
            || params.presence_penalty != 0.0
            || params.frequency_penalty != 0.0;
        let counts = penalties.then(|| {
            let mut counts = TokenCounts::default();
            request.tokens.iter().for_each(|&token| counts.add(token, 0));
            counts
        });
        let (logprobs, constraint) = (request.logprobs, request.constraint.take());
        SamplingState { params, seed, logprobs, constraint, counts }
    }

    /// Makes room for `tokens` more tokens of history.
    pub(crate) fn reserve(&mut self, tokens: usize) {
        if let Some(counts) = &mut self.counts {
            counts.place.reserve(tokens);
            counts.entries.reserve(tokens);
        }
    }

    /// Notes a generated token for the penalties.
    pub(crate) fn generated(&mut self, token: u32) {
        if let Some(counts) = &mut self.counts {
            counts.add(token, 1);
        }
    }

    fn changes_logits(&self) -> bool {
        self.constraint.is_some() || self.counts.is_some() || !self.params.logit_bias.is_empty()
    }
}

/// The distinct tokens of a sequence and how often each was generated.
#[derive(Default)]
struct TokenCounts {
    place: HashMap<u32, u32>, // token → index into entries
    entries: Vec<(u32, u32)>, // (token, times generated); 0 when only the prompt has it
}

impl TokenCounts {
    fn add(&mut self, token: u32, times: u32) {
        let next = self.entries.len() as u32;
        let place = *self.place.entry(token).or_insert(next);
        if place == next {
            self.entries.push((token, 0));
        }
        self.entries[place as usize].1 += times;
    }
}

/// A chosen token and what was asked to be said about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Choice {
    pub(crate) token: u32,
    pub(crate) logprob: Option<f32>,
    pub(crate) top_logprobs: Vec<TopLogprob>, // allocated only when asked for
}

/// No token can be chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SampleError {
    /// The model's logits hold NaN or infinity, or nothing above minus infinity.
    NotNumbers,
    /// Constraint or bias forbid every token, or the constraint failed.
    Constraint(String),
}

/// Scratch memory for choosing tokens.
pub(crate) struct Sampler {
    logits: Vec<f32>,  // [vocab], a row after bias, penalties and constraint
    weights: Vec<f32>, // [vocab], unnormalised probabilities
    best: Vec<u64>,    // [<= vocab], see `key`
    mask: TokenMask,
}

impl Sampler {
    /// Scratch for a vocabulary.
    pub(crate) fn new(vocab_size: usize) -> Sampler {
        Sampler {
            logits: Vec::with_capacity(vocab_size),
            weights: vec![0.0; vocab_size],
            best: Vec::with_capacity(vocab_size),
            mask: TokenMask::new(vocab_size),
        }
    }

    /// Chooses the token at `position` from `row`, the model's logits `[vocab]`.
    pub(crate) fn choose(
        &mut self,
        row: &[f32],
        position: usize,
        state: &mut SamplingState,
    ) -> Result<Choice, SampleError> {
        let max = check_row(row)?;
        let token = if state.changes_logits() {
            let mut logits = std::mem::take(&mut self.logits);
            let token =
                self.change_logits(row, &mut logits, state).and_then(|()| {
                    match check_row(&logits) {
                        Ok(max) => Ok(self.draw(&logits, max, position, state)),
                        Err(_) => Err(SampleError::Constraint("every token is forbidden".into())),
                    }
                });
            self.logits = logits;
            token?
        } else {
            self.draw(row, max, position, state)
        };
        let (logprob, top_logprobs) = match state.logprobs {
            None => (None, Vec::new()),
            Some(count) => self.report(row, max, token, count),
        };
        Ok(Choice { token, logprob, top_logprobs })
    }

    /// Copies `row` to `logits` and applies bias, penalties and constraint.
    fn change_logits(
        &mut self,
        row: &[f32],
        logits: &mut Vec<f32>,
        state: &mut SamplingState,
    ) -> Result<(), SampleError> {
        logits.clear();
        logits.extend_from_slice(row);
        let params = &state.params;
        for &(token, bias) in &params.logit_bias {
            let logit = &mut logits[token as usize];
            *logit = (*logit + bias).min(f32::MAX);
        }
        let entries = state.counts.as_ref().map_or(&[][..], |counts| &counts.entries);
        for &(token, times) in entries {
            let logit = &mut logits[token as usize];
            let repetition = params.repetition_penalty;
            let scaled = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
            let presence = if times > 0 { params.presence_penalty } else { 0.0 };
            *logit = (scaled - presence - params.frequency_penalty * times as f32).min(f32::MAX);
        }
        if let Some(constraint) = &mut state.constraint {
            self.mask.clear();
            constraint
                .allowed(&mut self.mask)
                .map_err(|error| SampleError::Constraint(error.to_string()))?;
            for (token, logit) in logits.iter_mut().enumerate() {
                if !self.mask.allows(token as u32) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        Ok(())
    }

    /// Chooses from `logits`, whose highest is `max`.
    fn draw(&mut self, logits: &[f32], max: f32, position: usize, state: &SamplingState) -> u32 {
        let params = &state.params;
        if params.temperature == 0.0 {
            let token = logits.iter().position(|&logit| logit == max);
            return token.expect("the highest logit is one of them") as u32;
        }
        let uniform = uniform(state.seed, position as u64);
        let few = params.top_k > 0 && (params.top_k as usize) < logits.len();
        if few {
            self.keep_best(logits, params.top_k as usize);
            self.weigh_best(logits, max, params.temperature);
            let total = self.weights[..self.best.len()].iter().map(|&w| f64::from(w)).sum();
            return self.draw_best(params, total, uniform);
        }
        weigh(logits, max, params.temperature, &mut self.weights);
        let total = sum(&self.weights);
        if params.top_p < 1.0 {
            self.keep_nucleus(logits, params.top_p, total);
            self.weigh_best(logits, max, params.temperature);
            return self.draw_best(params, total, uniform);
        }
        // The likeliest token weighs 1, so min-p is a threshold on the weights.
        let kept = self.weights.iter().map(|&w| if w >= params.min_p { w } else { 0.0 });
        let total = if params.min_p > 0.0 { kept.clone().map(f64::from).sum() } else { total };
        pick(kept, total, uniform) as u32
    }

    /// Cuts the sorted and weighed `best` to the nucleus and min-p, and draws. `total` is the sum
    /// the nucleus is a fraction of.
    fn draw_best(&mut self, params: &SamplingParams, total: f64, uniform: f64) -> u32 {
        let weights = &self.weights[..self.best.len()];
        let wanted = f64::from(params.top_p) * total;
        let mut reached = 0.0;
        let mut count = 0;
        for &weight in weights {
            if params.top_p < 1.0 && reached >= wanted || weight < params.min_p {
                break;
            }
            reached += f64::from(weight);
            count += 1;
        }
        let index = pick(weights[..count].iter().copied(), reached, uniform);
        token_of(self.best[index])
    }

    /// Leaves the `count` highest of `logits` in `best`, highest first, ties by lowest id.
    fn keep_best(&mut self, logits: &[f32], count: usize) {
        let room = (2 * count).max(64);
        self.best.clear();
        let mut floor = f32::NEG_INFINITY;
        for (run, chunk) in logits.chunks(RUN).enumerate() {
            if run_max(chunk) < floor {
                continue;
            }
            for (offset, &logit) in chunk.iter().enumerate() {
                if logit < floor {
                    continue;
                }
                if self.best.len() == room {
                    self.best.select_nth_unstable(count - 1);
                    self.best.truncate(count);
                    floor = logits[token_of(self.best[count - 1]) as usize];
                }
                self.best.push(key(logit, (run * RUN + offset) as u32));
            }
        }
        if self.best.len() > count {
            self.best.select_nth_unstable(count - 1);
            self.best.truncate(count);
        }
        self.best.sort_unstable();
    }

    /// Leaves in `best`, sorted, the fewest likeliest tokens whose `weights` reach `top_p` of
    /// `total`.
    fn keep_nucleus(&mut self, logits: &[f32], top_p: f32, total: f64) {
        // Tokens lighter than this are outside the nucleus: even all of them together weigh less
        // than the part that is cut away.
        let floor = (total * (1.0 - f64::from(top_p)) / logits.len() as f64) as f32;
        self.best.clear();
        for (run, chunk) in self.weights.chunks(RUN).enumerate() {
            if run_max(chunk) < floor {
                continue;
            }
            for (offset, &weight) in chunk.iter().enumerate() {
                if weight >= floor {
                    let token = run * RUN + offset;
                    self.best.push(key(logits[token], token as u32));
                }
            }
        }
        // Halves the candidates until one is left, the last of the nucleus: linear, where sorting
        // them all first would cost several times as much.
        let wanted = f64::from(top_p) * total;
        let (mut low, mut high) = (0, self.best.len());
        let mut reached = 0.0;
        while high - low > 1 {
            let middle = low.midpoint(high);
            self.best[low..high].select_nth_unstable(middle - low);
            let weight = |&key: &u64| f64::from(self.weights[token_of(key) as usize]);
            let upper = self.best[low..middle].iter().map(weight).sum::<f64>();
            if reached + upper >= wanted {
                high = middle;
            } else {
                (low, reached) = (middle, reached + upper);
            }
        }
        self.best.truncate(low + 1);
        self.best.sort_unstable();
    }

    /// Sets `weights[i]` to the weight of `best[i]`.
    fn weigh_best(&mut self, logits: &[f32], max: f32, temperature: f32) {
        for (weight, &key) in self.weights.iter_mut().zip(&self.best) {
            *weight = exp(scaled(logits[token_of(key) as usize], max, temperature));
        }
    }

    /// Log-probability of `token` and the `count` likeliest, from the model's own `row`.
    fn report(
        &mut self,
        row: &[f32],
        max: f32,
        token: u32,
        count: usize,
    ) -> (Option<f32>, Vec<TopLogprob>) {
        weigh(row, max, 1.0, &mut self.weights);
        let log_total = sum(&self.weights).ln();
        let logprob = |id: u32| (f64::from(row[id as usize]) - f64::from(max) - log_total) as f32;
        let mut top = Vec::new();
        if count > 0 {
            self.keep_best(row, count.min(row.len()));
            top.extend(self.best.iter().map(|&key| {
                let id = token_of(key);
                TopLogprob { id, logprob: logprob(id) }
            }));
        }
        (Some(logprob(token)), top)
    }
}

/// How many neighbouring logits are skipped or looked at together.
const RUN: usize = 64;

/// The highest logit of a row. Refuses NaN, infinity, and a row without anything above minus
/// infinity: no fluent text is made of broken numbers.
pub(crate) fn check_row(row: &[f32]) -> Result<f32, SampleError> {
    let mut max = f32::NEG_INFINITY;
    let mut nan = false;
    for chunk in row.chunks(RUN) {
        // A comparison with NaN is false, so NaN would slip through the maximum.
        nan |= chunk.iter().fold(false, |nan, logit| nan | logit.is_nan());
        max = max.max(run_max(chunk));
    }
    if nan || !max.is_finite() { Err(SampleError::NotNumbers) } else { Ok(max) }
}

fn run_max(run: &[f32]) -> f32 {
    const LANES: usize = 8;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = run.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            // Not `f32::max`, whose care for NaN costs the vector instruction.
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    let of = |a: f32, &b: &f32| if b > a { b } else { a };
    tail.iter().fold(lanes.iter().fold(f32::NEG_INFINITY, of), of)
}

/// A token and its logit as one integer: ascending order is descending logits, ties ascending ids.
fn key(logit: f32, token: u32) -> u64 {
    // Adding 0 turns -0 into +0, which compare equal as numbers and not as bits.
    let bits = (logit + 0.0).to_bits();
    let ascending = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(!ascending) << 32 | u64::from(token)
}

fn token_of(key: u64) -> u32 {
    key as u32
}

/// The exponent of a token's weight. Not above 0, so weights are at most 1.
fn scaled(logit: f32, max: f32, temperature: f32) -> f32 {
    (logit - max) / temperature
}

fn weigh(logits: &[f32], max: f32, temperature: f32, weights: &mut [f32]) {
    for (weight, &logit) in weights.iter_mut().zip(logits) {
        *weight = exp(scaled(logit, max, temperature));
    }
}

/// `e^x` for `x <= 0`, to 3e-7 relative; 0 below -87. Plain operations in a fixed order, which the
/// compiler turns into vectors and every machine rounds alike.
fn exp(x: f32) -> f32 {
    // Adding 1.5·2^23 rounds to an integer, which is then in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let whole = shifted - ROUND;
    // ln 2 in two parts: the first has few bits, so its product is exact.
    let rest = clamped - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    // Taylor polynomial of e^rest for |rest| <= ln 2 / 2.
    let mut value = 1.0 / 720.0;
    for coefficient in [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        value = value * rest + coefficient;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let result = value * f32::from_bits(exponent << 23);
    if x > -87.0 { result } else { 0.0 }
}

fn sum(weights: &[f32]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0f64; LANES];
    let chunks = weights.chunks_exact(LANES);
    let tail = chunks.remainder();
    for chunk in chunks {
        for lane in 0..LANES {
            lanes[lane] += f64::from(chunk[lane]);
        }
    }
    lanes.iter().sum::<f64>() + tail.iter().map(|&weight| f64::from(weight)).sum::<f64>()
}

/// The index at which the running sum of `weights` passes `uniform · total`.
fn pick(weights: impl Iterator<Item = f32>, total: f64, uniform: f64) -> usize {
    let mut left = uniform * total;
    let mut last = 0;
    for (index, weight) in weights.enumerate() {
        if weight > 0.0 {
            left -= f64::from(weight);
            last = index;
            if left < 0.0 {
                break;
            }
        }
    }
    // Rounding may leave a crumb after the last weight; it belongs to that one.
    last
}

/// A number in `[0, 1)` that depends on seed and position alone: two rounds of the SplitMix64
/// finaliser (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
fn uniform(seed: u64, position: u64) -> f64 {
    let bits = mix(mix(seed).wrapping_add(position.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// The SplitMix64 finaliser.
pub(crate) fn mix(mut bits: u64) -> u64 {
    bits = bits.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::ConstraintError;

    fn state(params: SamplingParams) -> SamplingState {
        let mut request = Request::new(vec![0]);
        request.sampling = params;
        SamplingState::new(&mut request, 7)
    }

    fn noise(count: usize, seed: u64) -> Vec<f32> {
        (0..count as u64).map(|i| (uniform(seed, i) * 16.0 - 8.0) as f32).collect()
    }

    /// The textbook way: sort everything, in f64.
    fn kept(row: &[f32], params: &SamplingParams) -> Vec<(u32, f64)> {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut all: Vec<(u32, f64)> = row
            .iter()
            .enumerate()
            .map(|(i, &l)| (i as u32, (f64::from(l - max) / f64::from(params.temperature)).exp()))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if params.top_k > 0 {
            all.truncate(params.top_k as usize);
        }
        let total: f64 = all.iter().map(|(_, w)| w).sum();
        let mut reached = 0.0;
        all.retain(|(_, w)| {
            let keep = params.top_p == 1.0 || reached < f64::from(params.top_p) * total;
            reached += w;
            keep && *w >= f64::from(params.min_p)
        });
        let total: f64 = all.iter().map(|(_, w)| w).sum();
        all.into_iter().map(|(i, w)| (i, w / total)).collect()
    }

    /// Draws often and compares frequencies with the textbook's probabilities.
    #[track_caller]
    fn check(row: &[f32], params: SamplingParams) {
        const DRAWS: usize = 4000;
        let expected = kept(row, &params);
        let mut sampler = Sampler::new(row.len());
        let mut state = state(params);
        let mut counts = vec![0usize; row.len()];
        for position in 0..DRAWS {
            counts[sampler.choose(row, position, &mut state).unwrap().token as usize] += 1;
        }
        let mut seen = 0;
        for (token, probability) in expected {
            let mean = probability * DRAWS as f64;
            let count = counts[token as usize];
            seen += count;
            let off = (count as f64 - mean).abs();
            assert!(off <= 6.0 * mean.sqrt() + 3.0, "token {token}: {count} of {mean}");
        }
        assert_eq!(seen, DRAWS, "only tokens that are kept are drawn");
    }

    #[test]
    fn draws_follow_the_textbook() {
        let base = SamplingParams::default;
        for (size, seed) in [(5, 1), (200, 2), (1000, 3)] {
            let row = noise(size, seed);
            check(&row, base());
            check(&row, SamplingParams { temperature: 0.3, ..base() });
            check(&row, SamplingParams { temperature: 2.0, top_k: 3, ..base() });
            check(&row, SamplingParams { top_p: 0.7, ..base() });
            check(&row, SamplingParams { temperature: 50.0, top_p: 0.95, ..base() });
            check(&row, SamplingParams { min_p: 0.1, ..base() });
            check(&row, SamplingParams { top_k: 40, top_p: 0.9, min_p: 0.02, ..base() });
            check(&row, SamplingParams { top_k: 100_000, ..base() });
        }
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_so_does_the_order() {
        let mut row = noise(300, 4);
        (row[17], row[3], row[250]) = (9.0, 9.0, 9.0);
        let mut sampler = Sampler::new(300);
        let greedy = &mut state(SamplingParams::greedy());
        assert_eq!(sampler.choose(&row, 0, greedy).unwrap().token, 3);
        sampler.keep_best(&row, 3);
        let best: Vec<u32> = sampler.best.iter().map(|&key| token_of(key)).collect();
        assert_eq!(best, [3, 17, 250]);
        sampler.keep_best(&[-0.0, 0.0, -0.0], 3);
        assert_eq!(sampler.best.iter().map(|&key| token_of(key)).collect::<Vec<_>>(), [0, 1, 2]);
    }

    #[test]
    fn the_best_few_are_those_of_a_full_sort() {
        for (size, count) in [(1, 1), (63, 5), (1000, 1), (1000, 64), (5000, 700), (5000, 5000)] {
            let row: Vec<f32> = noise(size, 5).iter().map(|x| (x * 4.0).round()).collect();
            let mut sampler = Sampler::new(size);
            sampler.keep_best(&row, count);
            let mut all: Vec<u64> = (0..size as u32).map(|i| key(row[i as usize], i)).collect();
            all.sort_unstable();
            all.truncate(count);
            assert_eq!(sampler.best, all, "{count} of {size}");
        }
    }

    #[test]
    fn the_exponential_is_close_and_never_above_one() {
        let mut x = 0.0f32;
        while x > -86.0 {
            let expected = f64::from(x).exp();
            let error = (f64::from(exp(x)) - expected).abs() / expected;
            assert!(error < 3e-7, "exp({x}) is off by {error}");
            x -= 0.0137;
        }
        assert_eq!((exp(0.0), exp(-87.5), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn broken_rows_are_refused() {
        let mut sampler = Sampler::new(100);
        let refused = Err(SampleError::NotNumbers);
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 63, 64, 99] {
                let mut row = noise(100, 6);
                row[at] = bad;
                let params = SamplingParams::greedy();
                assert_eq!(sampler.choose(&row, 0, &mut state(params)), refused);
            }
        }
        let nothing = vec![f32::NEG_INFINITY; 100];
        assert_eq!(sampler.choose(&nothing, 0, &mut state(SamplingParams::greedy())), refused);
        let mut single = nothing.clone();
        single[42] = -1e30;
        for params in [SamplingParams::greedy(), SamplingParams::default()] {
            assert_eq!(sampler.choose(&single, 0, &mut state(params)).unwrap().token, 42);
        }
    }

    #[test]
    fn penalties_and_bias_change_the_choice_but_not_the_logprobs() {
        let row = [1.0f32, 3.0, 2.0, -1.0];
        let mut sampler = Sampler::new(4);
        let mut choose = |params: SamplingParams, history: &[u32]| {
            let mut request = Request::new(vec![1]);
            request.sampling = SamplingParams { temperature: 0.0, ..params };
            request.logprobs = Some(2);
            let mut state = SamplingState::new(&mut request, 7);
            for &token in history {
                state.generated(token);
            }
            sampler.choose(&row, 0, &mut state).unwrap()
        };
        let plain = choose(SamplingParams::default(), &[]);
        assert_eq!(plain.token, 1);
        let total: f64 = row.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = (3.0 - total.ln()) as f32;
        assert!((plain.logprob.unwrap() - expected).abs() < 1e-6);
        assert_eq!(plain.top_logprobs.iter().map(|t| t.id).collect::<Vec<_>>(), [1, 2]);

        let biased = SamplingParams { logit_bias: vec![(3, 100.0)], ..SamplingParams::default() };
        let biased = choose(biased, &[]);
        assert_eq!((biased.token, biased.top_logprobs), (3, plain.top_logprobs));
        // The prompt holds token 1: repetition counts it, presence and frequency do not.
        let params = SamplingParams { repetition_penalty: 2.0, ..SamplingParams::default() };
        assert_eq!(choose(params, &[]).token, 2);
        let params = SamplingParams { presence_penalty: 1.5, ..SamplingParams::default() };
        assert_eq!(choose(params.clone(), &[]).token, 1);
        assert_eq!(choose(params, &[1, 1]).token, 2);
        let params = SamplingParams { frequency_penalty: 0.6, ..SamplingParams::default() };
        assert_eq!(choose(params.clone(), &[1]).token, 1);
        assert_eq!(choose(params, &[1, 1]).token, 2);
    }

    struct Only(Vec<u32>);
    impl TokenConstraint for Only {
        fn allowed(&mut self, mask: &mut TokenMask) -> Result<(), ConstraintError> {
            self.0.iter().for_each(|&token| mask.allow(token));
            Ok(())
        }
        fn accept(&mut self, _: u32) -> Result<(), ConstraintError> {
            Ok(())
        }
        fn is_complete(&self) -> bool {
            false
        }
    }

    #[test]
    fn a_constraint_leaves_only_what_it_allows() {
        let row = noise(200, 8);
        let mut sampler = Sampler::new(200);
        for params in [
            SamplingParams::default(),
            SamplingParams::greedy(),
            SamplingParams { top_k: 50, ..SamplingParams::default() },
            SamplingParams { top_p: 0.9, ..SamplingParams::default() },
        ] {
            let mut state = state(params);
            state.constraint = Some(Box::new(Only(vec![11, 150])));
            for position in 0..100 {
                let token = sampler.choose(&row, position, &mut state).unwrap().token;
                assert!(token == 11 || token == 150);
            }
            state.constraint = Some(Box::new(Only(vec![])));
            let refused = sampler.choose(&row, 0, &mut state);
            assert!(matches!(refused, Err(SampleError::Constraint(_))));
        }
    }

    #[test]
    fn draws_depend_on_seed_and_position_alone() {
        let row = vec![0.0; 1000];
        let mut sampler = Sampler::new(1000);
        let mut draw = |seed, position| {
            let mut state = state(SamplingParams::default());
            state.seed = seed;
            sampler.choose(&row, position, &mut state).unwrap().token
        };
        assert_eq!(draw(1, 5), draw(1, 5));
        let pairs = (0..20).map(|i| (i, 5)).chain((0..20).map(|i| (1, i)));
        let row: Vec<u32> = pairs.map(|(seed, position)| draw(seed, position)).collect();
        let distinct: std::collections::HashSet<u32> = row.iter().copied().collect();
        assert!(distinct.len() > 33, "neighbouring seeds and positions are unrelated: {row:?}");
    }
}
