//! What a model's makers advise for sampling, wherever they wrote it.
//!
//! `generation_config.json` beside safetensors, `general.sampling.*` keys in GGUF files, or the
//! catalogue. What nobody advises stays open.

use anyhow::Result;
use moeba_engine::SamplingParams;
use moeba_model::files::{Metadata, ModelFiles};
use serde::Deserialize;

/// Sampling settings somebody advises.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Advice {
    /// As in [`SamplingParams`], here and below.
    pub(crate) temperature: Option<f32>,
    /// Likeliest tokens kept.
    pub(crate) top_k: Option<u32>,
    /// Share of probability kept.
    pub(crate) top_p: Option<f32>,
    /// Share of the likeliest token's probability needed.
    pub(crate) min_p: Option<f32>,
    /// Divisor of the logits of tokens seen.
    pub(crate) repeat_penalty: Option<f32>,
}

impl Advice {
    /// The advice in a model's own files.
    ///
    /// # Errors
    /// If a value there is of a wrong type.
    pub(crate) fn of_files(files: &ModelFiles) -> Result<Self> {
        let gguf = Self::read(&files.metadata, |key| match key {
            "temperature" => "general.sampling.temp",
            "top_k" => "general.sampling.top_k",
            "top_p" => "general.sampling.top_p",
            "min_p" => "general.sampling.min_p",
            _ => "general.sampling.penalty_repeat",
        })?;
        let Some(generation) = &files.generation else { return Ok(gguf) };
        // Greedy decoding is advised by a flag there.
        if generation.read_optional("do_sample")? == Some(false) {
            return Ok(Self { temperature: Some(0.0), ..Self::default() });
        }
        Self::read(generation, |key| key)
    }

    fn read(metadata: &Metadata, key: impl Fn(&'static str) -> &'static str) -> Result<Self> {
        Ok(Self {
            temperature: metadata.read_optional(key("temperature"))?,
            top_k: metadata.read_optional(key("top_k"))?,
            top_p: metadata.read_optional(key("top_p"))?,
            min_p: metadata.read_optional(key("min_p"))?,
            repeat_penalty: metadata.read_optional(key("repetition_penalty"))?,
        })
    }

    /// This advice, and where it is silent, another.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            temperature: self.temperature.or(other.temperature),
            top_k: self.top_k.or(other.top_k),
            top_p: self.top_p.or(other.top_p),
            min_p: self.min_p.or(other.min_p),
            repeat_penalty: self.repeat_penalty.or(other.repeat_penalty),
        }
    }

    /// Sampling as advised; where nobody advises, a cautious temperature and nothing else.
    pub(crate) fn sampling(self) -> SamplingParams {
        let nothing = SamplingParams::default();
        SamplingParams {
            temperature: self.temperature.unwrap_or(0.7),
            top_k: self.top_k.unwrap_or(nothing.top_k),
            // A share of 0 cannot be kept; it means the likeliest token alone.
            top_p: self.top_p.unwrap_or(nothing.top_p).max(f32::MIN_POSITIVE),
            min_p: self.min_p.unwrap_or(nothing.min_p),
            repetition_penalty: self.repeat_penalty.unwrap_or(nothing.repetition_penalty),
            ..nothing
        }
    }
}
