//! What an idle client, a change and a lease cost: a process of its own, since it looks at the
//! resident memory.

mod common;

use common::{Driven, put};
use kvd::{
    KvMachine, MachineLimits,
    command::{ClientId, Operation, RequestId},
    limits::{CHANGE_OVERHEAD_BYTES, LEASE_OVERHEAD_BYTES},
};

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number") * 4096
}

fn without_changes() -> Driven {
    let limits = MachineLimits {
        changes_bytes: 0,
        changes_bytes_per_shard_min: 0,
        ..MachineLimits::default()
    };
    Driven::around(KvMachine::with_limits(1, limits), 1)
}

/// An idle client of which there are many takes at most 200 bytes.
fn check_clients() -> Driven {
    let clients = 90_000_u32;
    let mut driven = without_changes();
    driven.run(None, put(b"k", b"v"));
    let before = resident();
    for number in 0..clients {
        let mut client = [0; 16];
        let mixed = u64::from(number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        client[..8].copy_from_slice(&mixed.to_be_bytes());
        let id = RequestId { client: ClientId(client), ..driven.id(0, 1, 0) };
        driven.now += 1;
        driven.run(Some(id), put(b"k", b"v"));
        driven.now -= u64::from(number % 2);
    }
    let each = (resident() - before) / u64::from(clients);
    assert_eq!(driven.machine.session_rows(), u64::from(clients));
    println!("{each} bytes a client");
    assert!((80..=200).contains(&each), "{each} bytes a client");
    driven
}

/// What a change counts in the budget covers what it takes.
fn check_changes() -> Driven {
    let changes = 100_000_u64;
    let mut driven = Driven::new(1);
    let value = [b'v'; 64];
    driven.run(None, put(b"k", &value));
    let before = resident();
    for _ in 0..changes {
        driven.run(None, put(b"k", &value));
    }
    let each = (resident() - before) / changes;
    println!("{each} bytes a change of 64 bytes");
    let counted = CHANGE_OVERHEAD_BYTES + 64;
    assert!((counted / 2..=counted).contains(&each), "{each} bytes a change");
    driven
}

fn check_leases() -> Driven {
    let leases = 90_000_u64;
    let mut driven = without_changes();
    driven.run(None, put(b"k", b"v"));
    let before = resident();
    for _ in 0..leases {
        driven.run(None, Operation::Grant { key: b"k", ttl_ms: 1_000 });
    }
    let each = (resident() - before) / leases;
    println!("{each} bytes a lease");
    assert!((LEASE_OVERHEAD_BYTES / 4..=LEASE_OVERHEAD_BYTES).contains(&each), "{each} bytes");
    driven
}

#[test]
fn many_small_things_take_no_more_than_they_count() {
    // All are kept, so that none takes what another gave back.
    let _all = [check_clients(), check_changes(), check_leases()];
}
