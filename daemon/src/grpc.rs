//! What every gRPC server of ours has: health, reflection, limits, and an end.
//!
//! A daemon gets [`routes`] with health (grpc.health.v1) and reflection (v1, and v1alpha for
//! Python's client) in place, adds its services, and hands them to [`serve`].

use std::time::Duration;

use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};
use tonic_reflection::server::Builder;

use crate::exit::Failure;
use crate::readiness::{Readiness, State};
use crate::signals::Shutdown;

/// How many requests one connection may have in flight. Our client needs a handful of streams;
/// this is room for proxies that carry many users over one connection.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 1024;

/// How much one stream may send before it is read: one request of the largest size.
pub const STREAM_WINDOW_BYTES: u32 = 2 * 1024 * 1024;

/// How much one connection may send before it is read.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;

/// The longest headers of a request.
pub const HEADER_BYTES_MAX: u32 = 16 * 1024;

/// How long a connection may be silent before the server asks whether it is alive.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);

/// How long the answer to that may take before the connection is closed.
pub const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// How long requests may take to finish after shutdown was requested. Streams that have no end,
/// such as watches, are cut then.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Routes with health and reflection. `descriptors` is the encoded descriptor set of the services,
/// `services` are the full names that the health service speaks for beside "", the whole server.
///
/// Health follows `readiness` until shutdown, in a task; so this is called on the runtime.
///
/// # Errors
/// Configuration, when the descriptor set is not readable.
pub async fn routes(
    descriptors: &[u8],
    services: &'static [&'static str],
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> Result<Routes, Failure> {
    let builder = || {
        Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let refuse = |error: tonic_reflection::server::Error| {
        Failure::configuration("the descriptor set is not readable").because(error)
    };
    let reflection = builder().build_v1().map_err(refuse)?;
    let reflection_alpha = builder().build_v1alpha().map_err(refuse)?;
    let (reporter, health) = health_reporter();
    tell(&reporter, services, &readiness.state()).await;
    tokio::spawn(follow(reporter, services, readiness.clone(), shutdown.clone()));
    Ok(Routes::new(health).add_service(reflection).add_service(reflection_alpha))
}

/// A server with our limits, for the client port as for the peer port.
pub fn server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
}

/// Serves `routes` on `listener` until shutdown, then for at most [`DRAIN_TIMEOUT`] longer.
///
/// # Errors
/// Machine, when the listener fails.
pub async fn serve(
    routes: Routes,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<(), Failure> {
    let incoming = TcpIncoming::from(listener)
        .with_nodelay(Some(true))
        .with_keepalive(Some(KEEPALIVE_INTERVAL));
    let served =
        server().add_routes(routes).serve_with_incoming_shutdown(incoming, shutdown.requested());
    let drained = async {
        shutdown.requested().await;
        tokio::time::sleep(DRAIN_TIMEOUT).await;
    };
    tokio::select! {
        biased;
        () = drained => {
            tracing::debug!("requests were still open when the time to drain was over");
            Ok(())
        }
        served = served => served.map_err(|error| {
            Failure::machine("the gRPC port cannot be served").because(error)
        }),
    }
}

/// Repeats the readiness to the health service until shutdown, which is not being ready.
async fn follow(
    reporter: HealthReporter,
    services: &'static [&'static str],
    readiness: Readiness,
    shutdown: Shutdown,
) {
    let mut changes = readiness.watch();
    loop {
        let state = changes.borrow_and_update().clone();
        tell(&reporter, services, &state).await;
        tokio::select! {
            biased;
            () = shutdown.requested() => break,
            changed = changes.changed() => if changed.is_err() { break },
        }
    }
    tell(&reporter, services, &Err("shutting down".to_owned())).await;
}

async fn tell(reporter: &HealthReporter, services: &[&str], state: &State) {
    let status = match state {
        Ok(()) => ServingStatus::Serving,
        Err(_) => ServingStatus::NotServing,
    };
    for service in std::iter::once(&"").chain(services) {
        reporter.set_service_status(service, status).await;
    }
}
