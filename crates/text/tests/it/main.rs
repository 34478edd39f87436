//! Tests of the text crate, through its public interface only. Reference answers come from
//! `xtask/oracle/text.py`; vocabularies from `tests/data/text`.

mod chat;
mod fixtures;
mod hostile;
mod reference;
mod streaming;
