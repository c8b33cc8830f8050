//! Flotilla beside its peers: groups of three members in memory ([`core`]), clusters of three
//! processes ([`kv`]), all doing the same work.

pub mod core;
pub mod cpu;
pub mod kv;
