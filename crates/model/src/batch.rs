//! One step's work as plain data: which tokens of which sequences, and where their cache lies.
//!
//! A batch does not know requests, and it does not know whether a span is "prefill" or "decode":
//! a span is a run of consecutive positions of one sequence, be it one token or a thousand. The
//! engine fills the same `Batch` again each step, so a warm step allocates nothing.

pub use moeba_kernels::attention::{BLOCK_TOKENS, Span};

/// Which rows of a span the caller wants logits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WantLogits {
    /// None: a chunk in the middle of a prompt.
    No,
    /// The span's last token only: the usual case before sampling.
    Last,
    /// Every token: scoring a text.
    All,
}

/// Tokens of several sequences that go through the model together.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// Token ids, `[tokens]`, span after span.
    pub tokens: Vec<u32>,
    /// Absolute position of each token in its sequence, `[tokens]`.
    pub positions: Vec<u32>,
    /// The sequences' shares of this batch, in the order of `tokens`, without gaps.
    pub spans: Vec<Span>,
    /// Ids of cache blocks, span after span: those of a span cover its sequence from position 0
    /// on, and reach at least to the span's last position.
    pub block_ids: Vec<u32>,
    /// Rows of `tokens` to compute logits for, ascending; row `i` of the workspace's logits
    /// belongs to `logit_rows[i]`.
    pub logit_rows: Vec<u32>,
}

impl Batch {
    /// An empty batch with room for this many tokens and block ids, so that filling it never
    /// allocates.
    pub fn with_capacity(tokens: usize, block_ids: usize) -> Batch {
        Batch {
            tokens: Vec::with_capacity(tokens),
            positions: Vec::with_capacity(tokens),
            spans: Vec::with_capacity(tokens),
            block_ids: Vec::with_capacity(block_ids),
            logit_rows: Vec::with_capacity(tokens),
        }
    }

    /// Empties the batch and keeps its memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.spans.clear();
        self.block_ids.clear();
        self.logit_rows.clear();
    }

    /// Adds `tokens` of one sequence, the first of them at `first_position`.
    ///
    /// `blocks` are the ids of all the sequence's blocks from position 0 on; they must reach the
    /// span's last position. Panics when they do not, when `tokens` is empty, or when a position
    /// does not fit 32 bits: these are mistakes of the caller.
    pub fn push_span(
        &mut self,
        tokens: &[u32],
        first_position: u32,
        blocks: &[u32],
        want: WantLogits,
    ) {
        assert!(!tokens.is_empty(), "a span has at least one token");
        let count = u32::try_from(tokens.len()).expect("a span is shorter than 2^32 tokens");
        let end = first_position.checked_add(count).expect("positions fit 32 bits");
        let reach = blocks.len() * BLOCK_TOKENS;
        assert!(
            end as usize <= reach,
            "blocks reach position {reach}, the span needs positions up to {end}"
        );
        let first_row = self.tokens.len();
        let first_block = self.block_ids.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend(first_position..end);
        self.block_ids.extend_from_slice(blocks);
        let rows = first_row..self.tokens.len();
        match want {
            WantLogits::No => {}
            WantLogits::Last => self.logit_rows.push(rows.end as u32 - 1),
            WantLogits::All => self.logit_rows.extend(rows.start as u32..rows.end as u32),
        }
        self.spans.push(Span { tokens: rows, blocks: first_block..self.block_ids.len() });
    }

    /// Number of tokens in the batch.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the batch holds no token.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_follow_each_other_and_rows_of_logits_are_batch_rows() {
        let mut batch = Batch::with_capacity(8, 8);
        batch.push_span(&[5, 6, 7], 14, &[3, 9], WantLogits::Last);
        batch.push_span(&[8], 0, &[4], WantLogits::No);
        batch.push_span(&[1, 2], 0, &[5], WantLogits::All);
        assert_eq!(batch.positions, [14, 15, 16, 0, 0, 1]);
        assert_eq!(batch.logit_rows, [2, 4, 5]);
        assert_eq!(batch.spans[1], Span { tokens: 3..4, blocks: 2..3 });
        assert_eq!(batch.len(), 6);
        batch.clear();
        assert!(batch.is_empty() && batch.spans.is_empty() && batch.block_ids.is_empty());
    }

    #[test]
    #[should_panic(expected = "blocks reach position 16")]
    fn too_few_blocks_are_the_callers_mistake() {
        Batch::default().push_span(&[1, 2], 15, &[0], WantLogits::No);
    }
}
