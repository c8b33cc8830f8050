//! The admin port over real HTTP, and the health check that asks it.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::io::{Read, Write};
use std::net::SocketAddr;

use axum::routing::get;
use flotilla_daemon::admin::Admin;
use flotilla_daemon::metrics::Metrics;
use flotilla_daemon::{Code, Readiness, Shutdown, addresses, health};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

struct Running {
    address: SocketAddr,
    readiness: Readiness,
    shutdown: Shutdown,
    server: JoinHandle<Result<(), flotilla_daemon::Failure>>,
}

fn start() -> Running {
    let listener = addresses::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let readiness = Readiness::waiting("no leader yet");
    let mut admin = Admin::new(readiness.clone(), Metrics::install("kvd").unwrap());
    admin.routes = admin.routes.route("/own", get(async || "my own"));
    let shutdown = Shutdown::new();
    let server = tokio::spawn(admin.serve(listener, shutdown.clone()));
    Running { address, readiness, shutdown, server }
}

async fn request(address: SocketAddr, path: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let text = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn check_health(address: SocketAddr) -> Result<(), (Code, String)> {
    let checked = tokio::task::spawn_blocking(move || health::check(address)).await.unwrap();
    checked.map_err(|failure| (failure.code(), failure.chain()))
}

#[tokio::test]
async fn readiness_flips_and_liveness_does_not() {
    let running = start();
    let answer = request(running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("no leader yet"), "{answer}");
    assert!(request(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
    running.readiness.ready();
    assert!(request(running.address, "/readyz").await.starts_with("HTTP/1.1 200"));
    running.readiness.not_ready("disk is full");
    let answer = request(running.address, "/readyz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("disk is full"), "{answer}");
    assert!(request(running.address, "/livez").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn metrics_show_the_process_and_what_was_recorded() {
    let running = start();
    metrics::counter!("flotilla_test_requests_total").increment(3);
    metrics::histogram!("flotilla_test_wait_seconds").record(0.003);
    let answer = request(running.address, "/metrics").await;
    let value = |name: &str| -> f64 {
        let line = answer.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is missing in {answer}"));
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert!((value("flotilla_test_requests_total ") - 3.0).abs() < f64::EPSILON);
    assert!((value(r#"flotilla_test_wait_seconds_bucket{le="0.0025"}"#)).abs() < f64::EPSILON);
    assert!(value(r#"flotilla_test_wait_seconds_bucket{le="0.005"}"#) > 0.5);
    assert!(value("flotilla_build_info{") > 0.5);
    assert!(value("process_resident_memory_bytes ") > 500_000.0);
    assert!(value("process_open_fds ") >= 4.0);
    assert!(value("process_threads ") >= 1.0);
    assert!(value("process_cpu_seconds_total ") >= 0.0);
    assert!(value("process_start_time_seconds ") > 1.7e9);
    assert!(answer.contains(r#"daemon="kvd""#) && answer.contains("commit="), "{answer}");
}

#[tokio::test]
async fn a_daemon_adds_routes_and_ends_at_shutdown() {
    let running = start();
    assert!(request(running.address, "/own").await.ends_with("my own"));
    assert!(request(running.address, "/nothing").await.starts_with("HTTP/1.1 404"));
    running.shutdown.request();
    running.server.await.unwrap().unwrap();
    assert!(tokio::net::TcpStream::connect(running.address).await.is_err());
}

#[tokio::test]
async fn health_tells_ready_from_not_ready_from_gone() {
    let running = start();
    let (code, text) = check_health(running.address).await.unwrap_err();
    assert_eq!(code, Code::Failed, "{text}");
    assert!(text.ends_with("no leader yet"), "{text}");
    running.readiness.ready();
    check_health(running.address).await.unwrap();
    running.shutdown.request();
    running.server.await.unwrap().unwrap();
    let (code, text) = check_health(running.address).await.unwrap_err();
    assert_eq!(code, Code::Unreachable, "{text}");
}

#[test]
fn health_gives_up_on_a_daemon_that_hangs_or_is_another() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let before = std::time::Instant::now();
    let failure = health::check(address).unwrap_err();
    assert_eq!(failure.code(), Code::Unreachable, "{}", failure.chain());
    assert!(before.elapsed() < 5 * health::DEADLINE, "it waited {:?}", before.elapsed());

    drop(listener.accept().unwrap());
    let stranger = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 16];
        stream.read_exact(&mut request).unwrap();
        stream.write_all(b"220 mail.example ESMTP\r\n").unwrap();
    });
    let failure = health::check(address).unwrap_err();
    assert_eq!(failure.code(), Code::Unreachable, "{}", failure.chain());
    stranger.join().unwrap();
}
