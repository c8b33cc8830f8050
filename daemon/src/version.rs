//! Which Flotilla this is.
//!
//! The commit is found at build time: the environment variable `FLOTILLA_COMMIT` (image builds),
//! else git, else "unknown".

/// The package version and the commit, as `--version` prints them: `0.1.0 (abcdef123)`.
pub const VERSION: &str =
    concat!(env!("CARGO_PKG_VERSION"), " (", env!("FLOTILLA_COMMIT_SHORT"), ")");

/// The package version alone.
pub const PACKAGE: &str = env!("CARGO_PKG_VERSION");

/// The commit alone: nine digits, or "unknown".
pub const COMMIT: &str = env!("FLOTILLA_COMMIT_SHORT");
