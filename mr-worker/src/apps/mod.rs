//! The apps that every worker has.

mod indexer;
mod wc;

pub use indexer::Indexer;
pub use wc::WordCount;

use crate::app::Program;

/// The built-in apps.
pub const BUILT_IN: &[&dyn Program] = &[&WordCount, &Indexer];

/// The app of that name.
pub fn find(programs: &[&'static dyn Program], name: &str) -> Option<&'static dyn Program> {
    programs.iter().copied().find(|program| program.name() == name)
}
