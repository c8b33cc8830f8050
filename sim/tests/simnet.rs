//! The simulator itself: what it is worth rests on this.

use flotilla_sim::{Options, run};
use std::{cell::RefCell, rc::Rc};

/// The whole trace of a run, and its hash.
fn trace(seed: u64) -> (String, String) {
    let lines = Rc::new(RefCell::new(String::new()));
    let heard = Rc::clone(&lines);
    let listener = Box::new(move |line: &str| {
        let mut lines = heard.borrow_mut();
        lines.push_str(line);
        lines.push('\n');
    });
    let report = run(Options { chaos_us: 3_000_000, ..Options::new(seed, 3) }, Some(listener));
    if let Some(failure) = report.failure {
        panic!("{failure}");
    }
    let text = lines.borrow().clone();
    (text, report.trace_hash)
}

/// R24: a seed that is run twice does the same, byte for byte.
#[test]
fn same_seed_same_trace() {
    for seed in 0..20 {
        let (first, first_hash) = trace(seed);
        let (second, second_hash) = trace(seed);
        assert!(first.lines().count() > 10, "seed {seed}: something happens");
        assert_eq!(first, second, "seed {seed}");
        assert_eq!(first_hash, second_hash, "seed {seed}");
    }
}

#[test]
fn another_seed_another_trace() {
    let (_, first) = trace(1);
    let (_, second) = trace(2);
    assert_ne!(first, second);
}
