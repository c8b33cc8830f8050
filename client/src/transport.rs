//! How a request to the key/value store travels to a member; which method it is, is in
//! [`crate::routed`].

/// How a client's requests travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// All requests to a member on one stream (`Kv.Pipeline`), which costs least.
    #[default]
    Pipelined,
    /// Every request as a call of its own.
    Unary,
}
