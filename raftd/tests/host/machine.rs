//! A machine that counts its commands, and waits where a large one would work.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;
use raft::{Applied, BadSnapshot, Capture, StateMachine};

#[derive(Clone, Debug, Default)]
pub(crate) struct Counter {
    pub(crate) count: u64,
    /// How long a command takes.
    pub(crate) apply_takes: Duration,
    /// Where it waits before a snapshot is restored.
    pub(crate) gate: Arc<Gate>,
    /// Where it waits before a snapshot is encoded.
    pub(crate) capture_gate: Arc<Gate>,
    /// It is of an older version, to which snapshots mean nothing.
    pub(crate) is_old: bool,
}

pub(crate) struct Frozen {
    count: u64,
    gate: Arc<Gate>,
}

impl Capture for Frozen {
    fn chunks(self) -> impl Iterator<Item = Bytes> + Send {
        std::iter::once_with(move || {
            self.gate.pass();
            Bytes::copy_from_slice(&self.count.to_be_bytes())
        })
    }
}

impl StateMachine for Counter {
    type Query = ();
    type Answer = u64;
    type Response = u64;
    type Capture = Frozen;

    fn understands(&self, _: &Bytes) -> bool {
        true
    }

    fn apply(&mut self, _: Applied, _: &Bytes) -> u64 {
        std::thread::sleep(self.apply_takes);
        self.count += 1;
        self.count
    }

    fn pass(&mut self, _: Applied) {}

    fn recover(&mut self) {}

    fn query(&self, (): ()) -> u64 {
        self.count
    }

    fn capture(&self) -> Frozen {
        Frozen { count: self.count, gate: self.capture_gate.clone() }
    }

    fn empty(&self) -> Self {
        Self { count: 0, ..self.clone() }
    }

    fn restore(&mut self, chunks: &mut dyn Iterator<Item = Bytes>) -> Result<(), BadSnapshot> {
        self.gate.pass();
        if self.is_old {
            return Err(BadSnapshot("a newer version".to_owned()));
        }
        let count = chunks.next().and_then(|chunk| Some(u64::from_be_bytes(*chunk.first_chunk()?)));
        self.count = count.ok_or_else(|| BadSnapshot("no count".to_owned()))?;
        Ok(())
    }

    fn digest(&self) -> u128 {
        self.count.into()
    }
}

/// Open at first.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    closed: bool,
    waiting: usize,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.state.lock().unwrap().closed = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().closed = false;
        self.changed.notify_all();
    }

    pub(crate) fn is_waited_at(&self) -> bool {
        self.state.lock().unwrap().waiting > 0
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.waiting += 1;
        state = self.changed.wait_while(state, |state| state.closed).unwrap();
        state.waiting -= 1;
    }
}

/// Opens a gate when a test ends, however it does: its runtime waits for what waits there.
pub(crate) struct Opened(pub(crate) Arc<Gate>);

impl Drop for Opened {
    fn drop(&mut self) {
        self.0.open();
    }
}
