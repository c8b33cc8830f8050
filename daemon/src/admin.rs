//! The admin port: HTTP for machines that watch daemons, and for the people behind them.
//!
//! `/livez` answers as long as the process runs its loop, `/readyz` says whether it can work,
//! `/metrics` what it measured. A daemon adds its own routes. Nothing here changes any state.

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::exit::Failure;
use crate::metrics::Metrics;
use crate::readiness::Readiness;
use crate::signals::Shutdown;

/// The media type of Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a daemon shows on its admin port.
#[derive(Clone, Debug)]
pub struct Admin {
    /// What `/readyz` answers.
    pub readiness: Readiness,
    /// What `/metrics` answers.
    pub metrics: Metrics,
    /// Further routes of the daemon; empty by default.
    pub routes: Router,
}

impl Admin {
    /// The admin port with no routes beside its own.
    pub fn new(readiness: Readiness, metrics: Metrics) -> Self {
        Self { readiness, metrics, routes: Router::new() }
    }

    /// Serves until shutdown; open connections are then given up, since nothing here is worth
    /// waiting for. A daemon that drains first and wants to be watched meanwhile says that it is
    /// not ready, and ends this part last. It must run: it also keeps the metrics' recorder small.
    ///
    /// # Errors
    /// Machine, when the listener fails.
    pub async fn serve(self, listener: TcpListener, shutdown: Shutdown) -> Result<(), Failure> {
        let metrics = self.metrics.clone();
        let server = axum::serve(listener, self.router());
        tokio::select! {
            biased;
            () = shutdown.requested() => Ok(()),
            served = server.into_future() => served.map_err(|error| {
                Failure::machine("the admin port cannot be served").because(error)
            }),
            never = metrics.upkeep() => match never {},
        }
    }

    fn router(self) -> Router {
        let Self { readiness, metrics, routes } = self;
        Router::new()
            .route("/livez", get(async || "alive\n"))
            .route("/readyz", get(readyz).with_state(readiness))
            .route(
                "/metrics",
                get(async |State(metrics): State<Metrics>| {
                    ([(CONTENT_TYPE, METRICS_TYPE)], metrics.render())
                })
                .with_state(metrics),
            )
            .merge(routes)
    }
}

async fn readyz(State(readiness): State<Readiness>) -> impl IntoResponse + use<> {
    match readiness.state() {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}
