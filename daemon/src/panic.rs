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
static SCOPES: Mutex<Vec<Meaning>> = Mutex::new(Vec::new());

/// What a panic means while a scope is open.
#[derive(Clone)]
struct Meaning {
    scope: u64,
    code: Code,
    what: String,
}

/// From now on a panic on any thread is told and ends the process.
pub fn install() {
    std::panic::set_hook(Box::new(|panic| {
        let meaning = scopes().last().cloned();
        let (code, what) =
            meaning.map_or((Code::Panic, String::new()), |meaning| (meaning.code, meaning.what));
        tell(panic, &what);
        // Both are unbuffered or empty in a daemon; an error here has nobody left to hear it.
        let _ = std::io::stderr().flush();
        std::process::exit(code as i32);
    }));
}

/// Runs `work`; a panic anywhere in the process meanwhile ends it with `code`, and `what` tells what
/// that means.
pub fn ends_with<T>(code: Code, what: impl Into<String>, work: impl FnOnce() -> T) -> T {
    let _scope = Scope::open(code, what.into());
    work()
}

/// A scope is in the list as long as it lives, also when `work` unwinds.
struct Scope(u64);

impl Scope {
    fn open(code: Code, what: String) -> Self {
        let mut scopes = scopes();
        let scope = scopes.iter().map(|meaning| meaning.scope + 1).max().unwrap_or(0);
        scopes.push(Meaning { scope, code, what });
        Self(scope)
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        scopes().retain(|meaning| meaning.scope != self.0);
    }
}

/// Nothing panics while it holds the lock, and if it did the list would still be whole.
fn scopes() -> MutexGuard<'static, Vec<Meaning>> {
    SCOPES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(panic: &PanicHookInfo<'_>, what: &str) {
    let text = text(panic.payload());
    let place = panic.location().map_or_else(String::new, ToString::to_string);
    let current = std::thread::current();
    let thread = current.name().unwrap_or("unnamed");
    let backtrace = Backtrace::capture();
    let traced = backtrace.status() == BacktraceStatus::Captured;
    if tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(panic = text, place, thread, what, "a panic ends the daemon");
        if traced {
            tracing::error!(%backtrace, "backtrace of the panic");
        }
    } else {
        let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
        eprintln!("{what}a panic ends the process: {text}, at {place}, in thread {thread}");
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
