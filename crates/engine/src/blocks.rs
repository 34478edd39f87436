//! Who owns which cache block, and which blocks hold a beginning that others may share.
//!
//! A block is a number; its bytes belong to the model's cache. It is in exactly one of three
//! places:
//!
//! ```text
//!   free ──take──► held by 1..n sequences ──last release──► free             (no name)
//!     ▲                  ▲                └───────────────► cached, LRU list (named)
//!     └── evict oldest ──┴───────────── retain on a prefix hit ──┘
//! ```
//!
//! A full block gets a *name* once its keys and values are computed and known to be sound: the
//! hash of the name of the block before it and of its 16 tokens, the first one seeded with the
//! request's salt. Equal names mean equal history under the same salt. The hash is SHA-256, cut
//! to 128 bits, because whoever can make two histories collide reads another's conversation;
//! it costs about a microsecond per 16 tokens.
//!
//! Nothing here allocates after construction: lists are linked through the blocks themselves and
//! the table of names has twice the room it needs.

use std::collections::HashMap;
use std::fmt;

use moeba_model::batch::BLOCK_TOKENS;
use sha2::{Digest, Sha256};

/// The name of a full block: a hash of its tokens and all tokens before them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockName(pub [u8; 16]);

impl BlockName {
    /// The name before the first block of a sequence with this salt.
    pub fn root(salt: u64) -> BlockName {
        BlockName::cut(Sha256::new_with_prefix(b"moeba block").chain_update(salt.to_le_bytes()))
    }

    /// The name of the block of `tokens` that follows the block named `self`. Panics when
    /// `tokens` is not a full block.
    #[must_use]
    pub fn child(&self, tokens: &[u32]) -> BlockName {
        assert_eq!(tokens.len(), BLOCK_TOKENS, "only full blocks have names");
        let mut hash = Sha256::new_with_prefix(self.0);
        for token in tokens {
            hash.update(token.to_le_bytes());
        }
        BlockName::cut(hash)
    }

    fn cut(hash: Sha256) -> BlockName {
        let digest = hash.finalize();
        let mut name = [0; 16];
        name.copy_from_slice(&digest[..16]);
        BlockName(name)
    }
}

impl fmt::Debug for BlockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// Told which beginnings the cache holds, on the engine thread: return quickly.
pub trait BlockObserver: Send {
    /// A block can be found from now on. `parent` names the block before it.
    fn stored(&mut self, name: BlockName, parent: BlockName, tokens: &[u32]);

    /// A block cannot be found any more.
    fn evicted(&mut self, name: BlockName);
}

/// No block: the end of the linked list.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Block {
    refs: u32,
    name: Option<BlockName>,
    // Neighbours in the list of cached blocks, oldest first; meaningful while in it.
    previous: u32,
    next: u32,
}

/// How many blocks are where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCounts {
    /// In nobody's hands and without a name.
    pub free: usize,
    /// In nobody's hands, kept for their name.
    pub cached: usize,
    /// Held by sequences.
    pub held: usize,
}

/// Gives out blocks, counts who holds them, and finds them by name.
pub struct BlockAllocator {
    blocks: Vec<Block>, // [num_blocks]
    free: Vec<u32>,
    by_name: HashMap<BlockName, u32>,
    oldest: u32,
    newest: u32,
    cached: usize,
    observer: Option<Box<dyn BlockObserver>>,
}

impl BlockAllocator {
    /// All of `num_blocks` blocks free.
    pub fn new(num_blocks: usize, observer: Option<Box<dyn BlockObserver>>) -> BlockAllocator {
        let count = u32::try_from(num_blocks).expect("block ids fit 32 bits");
        assert!(count < NONE, "one id is needed to mean none");
        let block = Block { refs: 0, name: None, previous: NONE, next: NONE };
        BlockAllocator {
            blocks: vec![block; num_blocks],
            // Popped from the end: block 0 is the first to be used.
            free: (0..count).rev().collect(),
            // Twice the most names: a hash table that full of deleted entries tidies itself up
            // in place instead of growing.
            by_name: HashMap::with_capacity(2 * num_blocks + 1),
            oldest: NONE,
            newest: NONE,
            cached: 0,
            observer,
        }
    }

    /// Number of blocks in all.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks [`take`](BlockAllocator::take) could give out now, cached ones included.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// How many blocks are where.
    pub fn counts(&self) -> BlockCounts {
        let (free, cached) = (self.free.len(), self.cached);
        BlockCounts { free, cached, held: self.blocks.len() - free - cached }
    }

    /// Number of names that can be found.
    pub fn num_names(&self) -> usize {
        self.by_name.len()
    }

    /// A block of one's own; the least recently used cached block is forgotten if no free one is
    /// left. `None` when every block is held.
    pub fn take(&mut self) -> Option<u32> {
        let id = match self.free.pop() {
            Some(id) => id,
            None => self.evict_oldest()?,
        };
        let block = &mut self.blocks[id as usize];
        assert!(block.refs == 0 && block.name.is_none(), "a block given out belongs to nobody");
        block.refs = 1;
        Some(id)
    }

    /// One holder more for a block that is held or cached.
    pub fn retain(&mut self, id: u32) {
        let block = self.blocks[id as usize];
        assert!(block.refs > 0 || block.name.is_some(), "a free block is taken, not retained");
        if block.refs == 0 {
            self.unlink(id);
        }
        self.blocks[id as usize].refs += 1;
    }

    /// One holder less. The last one leaves a named block in the cache, as the most recently used.
    pub fn release(&mut self, id: u32) {
        let block = &mut self.blocks[id as usize];
        assert!(block.refs > 0, "block `{id}` is released more often than it was taken");
        block.refs -= 1;
        if block.refs > 0 {
            return;
        }
        if block.name.is_some() {
            self.link_newest(id);
        } else {
            self.free.push(id);
        }
    }

    /// The block of this name, held or cached.
    pub fn find(&self, name: &BlockName) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// Whether nobody holds the block.
    pub fn is_cached(&self, id: u32) -> bool {
        self.blocks[id as usize].refs == 0
    }

    /// Makes a held block findable. Does nothing when another block has the name already: two
    /// sequences computed the same beginning side by side, and one copy is enough.
    pub fn publish(&mut self, id: u32, name: BlockName, parent: BlockName, tokens: &[u32]) {
        let block = &mut self.blocks[id as usize];
        assert!(block.refs > 0, "only a held block gets a name");
        if block.name.is_some() || self.by_name.contains_key(&name) {
            return;
        }
        block.name = Some(name);
        self.by_name.insert(name, id);
        if let Some(observer) = &mut self.observer {
            observer.stored(name, parent, tokens);
        }
    }

    /// Panics unless every block is in exactly one place and held as often as `held` says, which
    /// yields one id per holder.
    pub fn check(&self, held: impl IntoIterator<Item = u32>) {
        let mut refs = vec![0; self.blocks.len()];
        held.into_iter().for_each(|id| refs[id as usize] += 1);
        let mut seen = vec![0; self.blocks.len()];
        self.free.iter().for_each(|&id| seen[id as usize] += 1);
        let mut id = self.oldest;
        let mut listed = 0;
        while id != NONE {
            seen[id as usize] += 1;
            listed += 1;
            assert!(listed <= self.blocks.len(), "the list of cached blocks has a loop");
            id = self.blocks[id as usize].next;
        }
        assert_eq!(listed, self.cached, "the list of cached blocks has another length");
        let mut names = 0;
        for (id, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.refs, refs[id], "block `{id}` is held by as many as it counts");
            assert_eq!(seen[id] + u32::from(block.refs > 0), 1, "block `{id}` is in one place");
            if let Some(name) = block.name {
                names += 1;
                assert_eq!(self.find(&name), Some(id as u32), "block `{id}` has its own name");
            }
        }
        assert_eq!(names, self.by_name.len(), "every name belongs to a block");
    }

    fn evict_oldest(&mut self) -> Option<u32> {
        let id = self.oldest;
        if id == NONE {
            return None;
        }
        self.unlink(id);
        let name = self.blocks[id as usize].name.take().expect("cached blocks have names");
        self.by_name.remove(&name);
        if let Some(observer) = &mut self.observer {
            observer.evicted(name);
        }
        Some(id)
    }

    fn link_newest(&mut self, id: u32) {
        let before = self.newest;
        let block = &mut self.blocks[id as usize];
        (block.previous, block.next) = (before, NONE);
        match before {
            NONE => self.oldest = id,
            before => self.blocks[before as usize].next = id,
        }
        self.newest = id;
        self.cached += 1;
    }

    fn unlink(&mut self, id: u32) {
        let Block { previous, next, .. } = self.blocks[id as usize];
        match previous {
            NONE => self.oldest = next,
            previous => self.blocks[previous as usize].next = next,
        }
        match next {
            NONE => self.newest = previous,
            next => self.blocks[next as usize].previous = previous,
        }
        self.cached -= 1;
    }
}

/// The blocks of one sequence and the names of its full ones.
///
/// Names cover known tokens, so they exist before the blocks are computed; that is how a waiting
/// prompt is looked up.
pub struct BlockTable {
    ids: Vec<u32>,         // block i holds positions 16·i .. 16·i + 16
    names: Vec<BlockName>, // names[0] is the root; names[i + 1] names block i
    published: usize,      // blocks 0..published are findable or have a findable twin
}

impl BlockTable {
    /// No blocks yet.
    pub fn new(salt: u64) -> BlockTable {
        BlockTable { ids: Vec::new(), names: vec![BlockName::root(salt)], published: 0 }
    }

    /// Makes room for a sequence of `tokens_max` tokens, so that growing never allocates.
    pub fn reserve(&mut self, tokens_max: usize) {
        let blocks = tokens_max.div_ceil(BLOCK_TOKENS);
        self.ids.reserve_exact(blocks.saturating_sub(self.ids.len()));
        self.names.reserve_exact((blocks + 1).saturating_sub(self.names.len()));
    }

    /// The block ids from position 0 on.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Number of tokens the blocks have room for.
    pub fn tokens_max(&self) -> usize {
        self.ids.len() * BLOCK_TOKENS
    }

    /// Blocks that must be taken before the table has room for `tokens`.
    pub fn missing(&self, tokens: usize) -> usize {
        tokens.div_ceil(BLOCK_TOKENS).saturating_sub(self.ids.len())
    }

    /// The beginning of `tokens` that others have computed: `(blocks, those nobody holds)`. The
    /// last token is never part of it, because its logits have to be computed.
    pub fn find_prefix(&mut self, tokens: &[u32], blocks: &BlockAllocator) -> (usize, usize) {
        let limit = tokens.len().saturating_sub(1) / BLOCK_TOKENS;
        let mut unheld = 0;
        for index in 0..limit {
            match blocks.find(&self.name(index, tokens)) {
                None => return (index, unheld),
                Some(id) => unheld += usize::from(blocks.is_cached(id)),
            }
        }
        (limit, unheld)
    }

    /// Takes hold of the first `count` blocks of `tokens`, which
    /// [`find_prefix`](BlockTable::find_prefix) has found. The table must be empty.
    pub fn adopt_prefix(&mut self, count: usize, tokens: &[u32], blocks: &mut BlockAllocator) {
        assert!(self.ids.is_empty(), "a prefix comes before everything else");
        for index in 0..count {
            let id = blocks.find(&self.name(index, tokens)).expect("the prefix was just found");
            blocks.retain(id);
            self.ids.push(id);
        }
        self.published = count;
    }

    /// The name of the first block that is not wholly computed, if it is full and others could
    /// use it as it is.
    pub fn next_name(&mut self, computed: usize, tokens: &[u32]) -> Option<BlockName> {
        let index = computed / BLOCK_TOKENS;
        let sharable = (index + 1) * BLOCK_TOKENS < tokens.len();
        sharable.then(|| self.name(index, tokens))
    }

    /// Exchanges blocks not wholly computed for those that somebody else has published meanwhile.
    /// Returns how many of `tokens` are computed then.
    pub fn catch_up(
        &mut self,
        mut computed: usize,
        tokens: &[u32],
        blocks: &mut BlockAllocator,
    ) -> usize {
        while let Some(found) = self.next_name(computed, tokens).and_then(|name| blocks.find(&name))
        {
            let index = computed / BLOCK_TOKENS;
            blocks.retain(found);
            blocks.release(std::mem::replace(&mut self.ids[index], found));
            computed = (index + 1) * BLOCK_TOKENS;
        }
        computed
    }

    /// Takes blocks until there is room for `tokens`. False when none is left; blocks taken
    /// until then stay.
    pub fn grow(&mut self, tokens: usize, blocks: &mut BlockAllocator) -> bool {
        while self.tokens_max() < tokens {
            let Some(id) = blocks.take() else { return false };
            self.ids.push(id);
        }
        true
    }

    /// Gives back blocks beyond those that `tokens` need: a draft did not last. They have no names,
    /// because only what is known has.
    pub fn shrink(&mut self, tokens: usize, blocks: &mut BlockAllocator) {
        while self.ids.len() > tokens.div_ceil(BLOCK_TOKENS) {
            blocks.release(self.ids.pop().expect("there are more than are needed"));
        }
    }

    /// Makes every full block among the `computed` first of `tokens` findable.
    pub fn publish(&mut self, computed: usize, tokens: &[u32], blocks: &mut BlockAllocator) {
        for index in self.published..computed / BLOCK_TOKENS {
            let name = self.name(index, tokens);
            let block_tokens = &tokens[index * BLOCK_TOKENS..][..BLOCK_TOKENS];
            blocks.publish(self.ids[index], name, self.names[index], block_tokens);
            self.published = index + 1;
        }
    }

    /// Gives everything back, last block first: a beginning is worth more to others than an end
    /// and is found only if nothing before it is missing, so it is to be forgotten last.
    pub fn release(&mut self, blocks: &mut BlockAllocator) {
        while let Some(id) = self.ids.pop() {
            blocks.release(id);
        }
        self.published = 0;
    }

    /// The name of full block `index` of `tokens`, computed once.
    fn name(&mut self, index: usize, tokens: &[u32]) -> BlockName {
        while self.names.len() <= index + 1 {
            let at = self.names.len() - 1;
            let parent = self.names[at];
            self.names.push(parent.child(&tokens[at * BLOCK_TOKENS..][..BLOCK_TOKENS]));
        }
        self.names[index + 1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).collect()
    }

    #[test]
    fn names_depend_on_salt_history_and_tokens() {
        let root = BlockName::root(1);
        assert_ne!(root, BlockName::root(2));
        let block = tokens(16);
        let first = root.child(&block);
        assert_eq!(first, BlockName::root(1).child(&block));
        assert_ne!(first, BlockName::root(2).child(&block));
        assert_ne!(first.child(&block), first);
    }

    #[test]
    fn a_released_beginning_is_found_again_and_evicted_end_first() {
        let mut blocks = BlockAllocator::new(4, None);
        let tokens = tokens(49);
        let mut table = BlockTable::new(0);
        assert!(table.grow(49, &mut blocks));
        table.publish(48, &tokens, &mut blocks);
        table.release(&mut blocks);
        blocks.check([]);
        assert_eq!(blocks.counts(), BlockCounts { free: 1, cached: 3, held: 0 });

        let mut again = BlockTable::new(0);
        assert_eq!(again.find_prefix(&tokens, &blocks), (3, 3));
        assert_eq!(again.find_prefix(&tokens[..48], &blocks), (2, 2));
        let mut salted = BlockTable::new(1);
        assert_eq!(salted.find_prefix(&tokens, &blocks), (0, 0));

        // Two blocks: the free one, then the end of the cached beginning.
        assert!(salted.grow(32, &mut blocks));
        assert_eq!(again.find_prefix(&tokens, &blocks), (2, 2));
        again.adopt_prefix(2, &tokens, &mut blocks);
        assert!(!again.grow(49, &mut blocks));
        blocks.check(again.ids().iter().chain(salted.ids()).copied());
    }

    #[test]
    fn two_sequences_share_a_beginning() {
        let mut blocks = BlockAllocator::new(4, None);
        let tokens = tokens(20);
        let (mut a, mut b) = (BlockTable::new(0), BlockTable::new(0));
        assert!(a.grow(20, &mut blocks));
        a.publish(20, &tokens, &mut blocks);
        assert_eq!(b.find_prefix(&tokens, &blocks), (1, 0));
        b.adopt_prefix(1, &tokens, &mut blocks);
        assert_eq!(a.ids()[0], b.ids()[0]);
        a.release(&mut blocks);
        blocks.check(b.ids().iter().copied());
        assert_eq!(blocks.counts(), BlockCounts { free: 3, cached: 0, held: 1 });
    }

    #[test]
    fn the_same_beginning_computed_twice_has_one_name() {
        let mut blocks = BlockAllocator::new(4, None);
        let tokens = tokens(16);
        let (mut a, mut b) = (BlockTable::new(0), BlockTable::new(0));
        for table in [&mut a, &mut b] {
            assert!(table.grow(16, &mut blocks));
            table.publish(16, &tokens, &mut blocks);
        }
        assert_eq!(blocks.num_names(), 1);
        a.release(&mut blocks);
        b.release(&mut blocks);
        blocks.check([]);
        assert_eq!(blocks.counts(), BlockCounts { free: 3, cached: 1, held: 0 });
    }

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<(bool, BlockName)>>>);
    impl BlockObserver for Log {
        fn stored(&mut self, name: BlockName, _: BlockName, _: &[u32]) {
            self.0.lock().unwrap().push((true, name));
        }
        fn evicted(&mut self, name: BlockName) {
            self.0.lock().unwrap().push((false, name));
        }
    }

    #[test]
    fn the_observer_hears_of_every_name() {
        let log = Log::default();
        let mut blocks = BlockAllocator::new(1, Some(Box::new(log.clone())));
        let tokens = tokens(16);
        let mut table = BlockTable::new(0);
        assert!(table.grow(16, &mut blocks));
        table.publish(16, &tokens, &mut blocks);
        table.release(&mut blocks);
        assert!(table.grow(16, &mut blocks));
        let name = BlockName::root(0).child(&tokens);
        assert_eq!(*log.0.lock().unwrap(), [(true, name), (false, name)]);
    }

    #[test]
    #[should_panic(expected = "released more often")]
    fn releasing_twice_is_a_mistake() {
        let mut blocks = BlockAllocator::new(1, None);
        let id = blocks.take().unwrap();
        blocks.release(id);
        blocks.release(id);
    }
}
