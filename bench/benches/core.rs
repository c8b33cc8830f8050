//! The core alone beside its peers, by criterion: `cargo bench --manifest-path bench/Cargo.toml`.
//! What a command costs in CPU time is printed by the program of the same name.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use flotilla_bench::core::{BATCHES, Flotilla, Group, Openraft, RaftRs};

criterion_group!(benches, commit);
criterion_main!(benches);

fn commit(criterion: &mut Criterion) {
    for count in BATCHES {
        let mut group = criterion.benchmark_group(format!("commit {count} at once"));
        group.throughput(Throughput::Elements(count as u64));
        measure::<Flotilla>(&mut group, count);
        measure::<RaftRs>(&mut group, count);
        measure::<Openraft>(&mut group, count);
        group.finish();
    }
}

fn measure<G: Group>(
    criterion: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    count: usize,
) {
    let mut group = G::start();
    criterion.bench_with_input(BenchmarkId::from_parameter(G::NAME), &count, |bencher, &count| {
        bencher.iter_custom(|batches| {
            let began = std::time::Instant::now();
            group.commit(usize::try_from(batches).expect("it fits into memory"), count);
            began.elapsed()
        });
    });
}
