//! How fast the core alone is beside its peers: commands a second, and what each costs.
//!
//! `cargo run --release --manifest-path bench/Cargo.toml --bin core`

use std::time::Duration;

use flotilla_bench::core::{
    BATCHES, COMMAND_BYTES, Cost, Flotilla, Group, Openraft, RaftRs, measure,
};

/// How often everything is measured, in turns; the medians are printed.
const ROUNDS: usize = 7;
/// How long each is measured in a round.
const MEASURED: Duration = Duration::from_millis(500);

fn main() {
    println!(
        "three members in memory, {COMMAND_BYTES}-byte commands, medians of {ROUNDS} rounds\n"
    );
    println!("| at once | of | commands a second | CPU us a command |");
    println!("|---:|---|---:|---:|");
    for count in BATCHES {
        let mut costs = [Vec::new(), Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            costs[0].push(measure::<Flotilla>(count, MEASURED));
            costs[1].push(measure::<RaftRs>(count, MEASURED));
            costs[2].push(measure::<Openraft>(count, MEASURED));
        }
        for (name, costs) in [Flotilla::NAME, RaftRs::NAME, Openraft::NAME].iter().zip(&costs) {
            let rate = median(costs, |cost| cost.rate);
            let cpu_us = median(costs, |cost| cost.cpu_us);
            println!("| {count} | {name} | {rate:.0} | {cpu_us:.2} |");
        }
    }
}

fn median(costs: &[Cost], of: impl Fn(&Cost) -> f64) -> f64 {
    let mut values: Vec<f64> = costs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
