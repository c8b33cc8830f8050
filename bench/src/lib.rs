//! Groups of three members in memory, ours and its peers', all doing the same work.

pub mod core;
pub mod cpu;
