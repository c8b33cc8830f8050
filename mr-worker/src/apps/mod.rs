//! The apps that every worker has.

mod grep;
mod indexer;
mod join;
mod labs;
mod sort;
mod top;
mod wc;

pub use grep::Grep;
pub use indexer::Indexer;
pub use join::Join;
pub use labs::LABS;
pub use sort::Sort;
pub use top::Top;
pub use wc::WordCount;

use crate::app::Program;

/// The built-in apps.
pub const BUILT_IN: &[&dyn Program] = &[&WordCount, &Indexer, &Grep, &Sort, &Top, &Join];

/// All apps of a worker: its own, the built-in ones, and those of the labs if it is to have them.
pub fn all(own: &[&'static dyn Program], labs: bool) -> Vec<&'static dyn Program> {
    let labs = if labs { LABS } else { &[] };
    own.iter().chain(BUILT_IN).chain(labs).copied().collect()
}

/// The app of that name: the first, if there are several.
pub fn find(programs: &[&'static dyn Program], name: &str) -> Option<&'static dyn Program> {
    programs.iter().copied().find(|program| program.name() == name)
}
