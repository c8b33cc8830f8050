//! What an app needs, in one `use`.

pub use crate::{
    app::{App, Context, Emitter, Mapper, Output, Program, Reducer, Values},
    args::{Arg, Args},
    codec::{self, KeyCodec},
    failure::Failure,
    fold::{self, Count, Distinct, Fold, Keep, Max, Sum},
    lab::{KeyValue, Lab},
    partition::Partitioner,
    record::{Block, Record, Records},
    words::for_each_word,
};
