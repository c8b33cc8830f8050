//! Between the wire and the machine: what a request asks, what a reply says, why one is refused.
//!
//! The only place beside the services that knows both vocabularies. What comes from outside is
//! checked in [`request`] before it is proposed; limits are the machine's business, but for those of
//! messages.

pub(crate) mod reply;
pub(crate) mod request;
