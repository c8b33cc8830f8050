//! A slot: a process that runs one task at a time, so that a crash or an endless loop in an app
//! costs a slot and nothing else.
//!
//! The slot is this very program, started with a hidden subcommand; it is kept for task after task.
//! Worker and slot talk over the slot's standard input and output in frames:
//!
//! ```text
//! frame   length u32 LE, of what follows | kind u8 | payload
//! to it   3 assignment
//! from it 1 ready: the version of this protocol | 2 progress | 4 success | 5 failure
//! ```
//!
//! Payloads are the messages of the same name of `flotilla.mapreduce.v1`. The slot ends when its
//! input ends, and the kernel kills it when the worker dies. What an app has started and left is
//! killed by the worker when the slot has died or is stopped (`family.rs`). What an attempt says on
//! standard error goes to its log (`stderr.rs`, `log.rs`).

mod child;
mod family;
mod log;
mod process;
mod stderr;

pub(crate) use child::serve;
pub(crate) use log::Logs;
pub use process::SlotCommand;
pub(crate) use process::{Counts, End, Slot};

/// The version of the protocol. The program could be replaced while the worker runs.
const PROTOCOL: u8 = 1;

/// The longest frame, in bytes: assignments are bounded by the gRPC message that brought them.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Ready,
    Progress,
    Assignment,
    Success,
    Failure,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        [Self::Ready, Self::Progress, Self::Assignment, Self::Success, Self::Failure]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }

    fn byte(self) -> u8 {
        match self {
            Self::Ready => 1,
            Self::Progress => 2,
            Self::Assignment => 3,
            Self::Success => 4,
            Self::Failure => 5,
        }
    }
}

/// A frame as it is sent.
fn frame(kind: Kind, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len() + 1).expect("messages are far shorter than 4 GiB");
    let mut frame = Vec::with_capacity(payload.len() + 5);
    frame.extend_from_slice(&length.to_le_bytes());
    frame.push(kind.byte());
    frame.extend_from_slice(payload);
    frame
}

/// The length that a frame announces, if it may be that long.
fn frame_length(header: [u8; 4]) -> Option<usize> {
    let length = u32::from_le_bytes(header) as usize;
    (1..=FRAME_BYTES_MAX).contains(&length).then_some(length)
}
