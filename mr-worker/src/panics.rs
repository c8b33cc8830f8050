//! What a caught panic said, and where.

use std::{any::Any, cell::RefCell, panic};

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Makes panics remember what they said and where, on standard error too. For a slot's process,
/// where the panics of apps are caught and reported.
pub(crate) fn remember() {
    panic::set_hook(Box::new(|info| {
        eprintln!("{info}");
        LAST.with_borrow_mut(|last| *last = Some(info.to_string()));
    }));
}

/// The words of a caught panic; with its place if panics are remembered.
pub(crate) fn message(payload: &(dyn Any + Send)) -> String {
    if let Some(said) = LAST.with_borrow_mut(Option::take) {
        return said;
    }
    let said = payload.downcast_ref::<&str>().copied();
    let said = said.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    format!("panicked: {}", said.unwrap_or("without a message"))
}
