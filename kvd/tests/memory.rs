//! What an idle client costs: a process of its own, since it looks at the resident memory.

mod common;

use common::{Driven, put};
use kvd::command::{ClientId, RequestId};

#[test]
fn ninety_thousand_idle_clients_take_at_most_200_bytes_each() {
    let resident = || -> u64 {
        let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has it");
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number")
            * 4096
    };
    let clients = 90_000_u32;
    let mut driven = Driven::new(1);
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
}
