//! Addresses: what follows from one port, what is refused, and ports that are busy.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use flotilla_daemon::addresses::{Addresses, Network, check_exposed, listen, resolve};
use flotilla_daemon::{Code, Failure, ports};

fn network(listen: &str) -> Network<'_> {
    Network { listen, advertise: None, admin: None, insecure: false }
}

fn check_refused<T: std::fmt::Debug>(result: Result<T, Failure>, code: Code, word: &str) {
    let failure = result.expect_err("this address is wrong");
    assert_eq!(failure.code(), code, "{failure}");
    assert!(failure.chain().contains(word), "{word:?} is missing in: {}", failure.chain());
}

#[test]
fn all_ports_follow_from_one() {
    let addresses = Addresses::resolve(network("127.0.0.1:7300")).unwrap();
    assert_eq!(addresses.peer.to_string(), "127.0.0.1:7350");
    assert_eq!(addresses.admin.to_string(), "127.0.0.1:8300");
    assert_eq!(addresses.advertise, "127.0.0.1:7300");
    assert_eq!(addresses.advertise_peer, "127.0.0.1:7350");
    assert_eq!(ports::MR_WORKER_ADMIN, 8500);
}

#[test]
fn advertised_name_is_not_looked_up_and_gives_the_peer_its_port() {
    let advertise = Some("kvd-0.kvd.example:17300");
    let network = Network { advertise, insecure: true, ..network("0.0.0.0:7300") };
    let addresses = Addresses::resolve(network).unwrap();
    assert_eq!(addresses.advertise, "kvd-0.kvd.example:17300");
    assert_eq!(addresses.advertise_peer, "kvd-0.kvd.example:17350");
    assert_eq!(addresses.peer.to_string(), "0.0.0.0:7350");
}

#[test]
fn ipv6_keeps_its_brackets() {
    let addresses = Addresses::resolve(network("[::1]:7300")).unwrap();
    assert_eq!(addresses.advertise_peer, "[::1]:7350");
}

#[test]
fn exposed_address_refused_without_the_operators_word() {
    for exposed in ["0.0.0.0:7300", "[::]:7300", "192.0.2.1:7300", "[::ffff:192.0.2.1]:7300"] {
        let address = exposed.parse().unwrap();
        check_refused(check_exposed(address, false), Code::Configuration, "--insecure");
        check_exposed(address, true).unwrap();
    }
    for local in ["127.0.0.1:7300", "127.1.2.3:7300", "[::1]:7300"] {
        check_exposed(local.parse().unwrap(), false).unwrap();
    }
    check_refused(Addresses::resolve(network("192.0.2.1:1")), Code::Configuration, "192.0.2.1:1");
    let admin = Network { admin: Some("0.0.0.0:8300"), ..network("127.0.0.1:7300") };
    check_refused(Addresses::resolve(admin), Code::Configuration, "0.0.0.0:8300");
}

#[test]
fn listening_everywhere_needs_an_address_to_tell() {
    let network = Network { insecure: true, ..network("0.0.0.0:7300") };
    check_refused(Addresses::resolve(network), Code::Configuration, "advertise");
}

#[test]
fn malformed_addresses_refused() {
    for text in ["", ":7300", "127.0.0.1", "127.0.0.1:", "a:b:1", "a b:1", "a:70000", "[::1:1"] {
        check_refused(resolve("listen", text), Code::Configuration, "listen");
    }
    let long = format!("{}:1", "a".repeat(300));
    check_refused(resolve("listen", &long), Code::Configuration, "host:port");
}

#[test]
fn port_without_room_above_it_refused() {
    check_refused(Addresses::resolve(network("127.0.0.1:65500")), Code::Configuration, "peer");
    check_refused(Addresses::resolve(network("127.0.0.1:65000")), Code::Configuration, "admin");
}

#[tokio::test]
async fn busy_port_is_named_and_a_freed_one_is_taken_again() {
    let first = listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = first.local_addr().unwrap();
    check_refused(listen(address), Code::Machine, &address.to_string());
    let client = tokio::net::TcpStream::connect(address).await.unwrap();
    let (server, _) = first.accept().await.unwrap();
    drop((server, first));
    listen(address).expect("a connection of the old listener does not block the new one");
    drop(client);
}
