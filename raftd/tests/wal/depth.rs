//! How deep the tests go.

/// How deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// Seconds.
    Quick,
    /// A minute or two.
    Ci,
    /// As long as it takes.
    Deep,
}

/// How deep this run goes.
pub(crate) fn depth() -> Depth {
    match std::env::var("FLOTILLA_TEST_DEPTH").as_deref() {
        Ok("ci") => Depth::Ci,
        Ok("deep") => Depth::Deep,
        Ok(_) | Err(_) => Depth::Quick,
    }
}
