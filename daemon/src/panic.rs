//! A panic anywhere ends the process: a daemon that lost one of its tasks would look alive and
//! do nothing, which is worse than being dead.
//!
//! The exit code is that of a defect, except while the process does something during which a
//! panic means something else: sled panics on damaged data, so a store opens inside
//! [`ends_with`] and a panic then tells of the data.

use std::any::Any;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::exit::Code;

/// The codes of the scopes that are open, innermost last.
///
/// They count for the whole process and not for their thread alone, since a store opens with
/// the help of threads of its own, whose panics mean the same.
static SCOPES: Mutex<Vec<(u64, Code)>> = Mutex::new(Vec::new());

/// From now on a panic on any thread is told and ends the process.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        tell(panic);
        // Both are unbuffered or empty in a daemon; an error here has nobody left to hear it.
        let _ = std::io::stderr().flush();
        std::process::exit(code() as i32);
    }));
}

/// Runs `work`; a panic anywhere in the process meanwhile ends it with `code`.
pub fn ends_with<T>(code: Code, work: impl FnOnce() -> T) -> T {
    let _scope = Scope::open(code);
    work()
}

/// A scope is in the list as long as it lives, also when `work` unwinds.
struct Scope(u64);

impl Scope {
    fn open(code: Code) -> Self {
        let mut scopes = scopes();
        let number = scopes.iter().map(|(number, _)| number + 1).max().unwrap_or(0);
        scopes.push((number, code));
        Self(number)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        scopes().retain(|(number, _)| *number != self.0);
    }
}

/// Nothing panics while it holds the lock, and if it did the list would still be whole.
fn scopes() -> MutexGuard<'static, Vec<(u64, Code)>> {
    SCOPES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn code() -> Code {
    scopes().last().map_or(Code::Panic, |(_, code)| *code)
}

fn tell(panic: &PanicHookInfo<'_>) {
    let text = text(panic.payload());
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let traced = backtrace.status() == BacktraceStatus::Captured;
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(panic = text, place, thread, "a panic ends the daemon");
        if traced {
            tracing::error!(%backtrace, "backtrace of the panic");
        }
    } else {
        eprintln!("a panic ends the process: {text}, at {place}, in thread {thread}");
        if traced {
            eprintln!("{backtrace}");
        }
    }
}

fn text(payload: &(dyn Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a value that is no text")
}
