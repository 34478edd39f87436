//! When a difference is a fault: limits, and the sentences that name what exceeds them.
//!
//! Limits follow from what is rounded. Between the products everything is f32; inputs of quantised
//! weights are rounded to 8 or twice 8 bits, keys and values to the cache's type. A fault (a scale,
//! a norm, a bias, a swapped row) changes a branch by percents at the least. Errors are infinite
//! where something is no number, so they exceed every limit.

use moeba_kernels::activations::Precision;
use moeba_kernels::attention::KvDType;

use super::{Comparison, LayerComparison, RoutingComparison, RowErrors};
use crate::error::shown;

/// The largest errors that rounding explains.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Mean relative error of what a branch adds to the stream, over the tokens.
    pub branch_mean: f64,
    /// The same of the worst token.
    pub branch_max: f64,
    /// Relative error of the worst checked row of a product.
    pub product_max: f64,
    /// Relative error of an expert's weight, by the same logits.
    pub expert_weight_max: f64,
    /// Gap below which two experts may be exchanged, by the same logits.
    pub tie_gap: f64,
    /// Mean divergence of the logits, in nats.
    pub kl_mean: f64,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The layer, where it is one layer's.
    pub layer: Option<usize>,
    /// The tensor, as the file calls it, where one is known.
    pub tensor: Option<String>,
    /// A sentence.
    pub message: String,
}

impl Limits {
    /// What a pass of this precision, with this cache, may differ by.
    pub fn new(precision: Precision, kv_dtype: KvDType) -> Limits {
        let (branch, product, kl) = match precision {
            Precision::Eight => (3e-2, 5e-2, 5e-2),
            Precision::Sixteen => (5e-4, 1e-3, 1e-4),
            Precision::Mixed => (1e-2, 2e-2, 5e-2),
        };
        let cache = match kv_dtype {
            KvDType::F32 => 0.0,
            KvDType::F16 => 2e-3,
            KvDType::BF16 => 1.6e-2,
            KvDType::Q8 => 3e-2,
        };
        Limits {
            branch_mean: branch + cache,
            branch_max: 10.0 * (branch + cache),
            product_max: product,
            expert_weight_max: 1e-4,
            tie_gap: 1e-6,
            kl_mean: kl + cache,
        }
    }

    /// Everything in a comparison that rounding does not explain.
    pub fn findings(&self, comparison: &Comparison) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (index, layer) in comparison.layers.iter().enumerate() {
            let of_layer = self.layer(layer).into_iter();
            findings.extend(of_layer.map(|message| Finding {
                layer: Some(index),
                tensor: None,
                message: format!("layer {index}: {message}"),
            }));
        }
        for product in comparison.products.iter().filter(|p| p.errors.max > self.product_max) {
            let (tensor, part) = (shown(&product.name.name()), product.name.part());
            let part = part.map(|part| format!(", part {part}")).unwrap_or_default();
            let message = format!(
                "product with tensor `{tensor}`{part} ({}) is off by {:.2e} (limit {:.1e})",
                product.format, product.errors.max, self.product_max
            );
            let layer = Some(product.name.layer());
            findings.push(Finding { layer, tensor: Some(tensor), message });
        }
        for (what, errors) in
            [("the head alone", comparison.guided), ("all errors together", comparison.free)]
        {
            if errors.kl_mean > self.kl_mean {
                let message = format!(
                    "logits: {what} cost {:.2e} nats (limit {:.1e})",
                    errors.kl_mean, self.kl_mean
                );
                findings.push(Finding { layer: None, tensor: None, message });
            }
        }
        findings
    }

    fn layer(&self, layer: &LayerComparison) -> Vec<String> {
        let mut found = Vec::new();
        let mut branch = |what: &str, errors: &RowErrors| {
            if errors.mean() > self.branch_mean || errors.max > self.branch_max {
                found.push(format!(
                    "{what} is off by {:.2e} on average, {:.2e} at worst, in row {} (limits {:.1e} \
                     and {:.1e})",
                    errors.mean(),
                    errors.max,
                    errors.worst_row,
                    self.branch_mean,
                    self.branch_max
                ));
            }
        };
        branch("the mixer", &layer.mixer);
        branch("the feed-forward network", &layer.ffn);
        if let Some(routing) = &layer.routing {
            branch("the router", &routing.logits);
            branch(&format!("the output of expert {}", routing.worst_expert), &routing.outputs);
            found.extend(self.routing(routing));
        }
        found
    }

    fn routing(&self, routing: &RoutingComparison) -> Vec<String> {
        let mut found = Vec::new();
        let wrong = routing.guided;
        if wrong.tokens > 0 && wrong.gap_max > self.tie_gap {
            found.push(format!(
                "by the same logits {} of {} tokens got other experts (gap up to {:.1e})",
                wrong.tokens, routing.tokens, wrong.gap_max
            ));
        }
        if routing.weight_error_max > self.expert_weight_max {
            found.push(format!(
                "by the same logits an expert's weight is off by {:.2e} (limit {:.1e})",
                routing.weight_error_max, self.expert_weight_max
            ));
        }
        found
    }
}
