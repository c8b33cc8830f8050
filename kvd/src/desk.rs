//! Who answers clients: a member of a group, or a router, which has no group.
//!
//! Decides nothing about requests: a member's are in `requests.rs`, and which group has what is decided
//! by the [`Router`].

use std::sync::Arc;

use client::Router;
use daemon::Shutdown;
use futures::stream::BoxStream;
use proto::{
    kv::{WatchReply, WatchRequest, forward_reply, request},
    lock,
    raft::Refusal,
};
use raftd::{edge::Replied, forward::with_margin};
use tokio::time::Instant;
use tonic::Status;

use crate::{
    merged,
    requests::{Requests, Wanted},
    routing,
    watch::{Places, Watches},
};

/// Answers clients. Clones share everything.
#[derive(Clone)]
pub(crate) struct Desk {
    behind: Behind,
    places: Places,
    shutdown: Shutdown,
}

#[derive(Clone)]
enum Behind {
    Member(Arc<Member>),
    Router(Arc<Router>),
}

/// What a member answers with.
struct Member {
    requests: Requests,
    watches: Watches,
}

impl Desk {
    /// A member's. Must be called on a runtime.
    pub(crate) fn member(requests: Requests, places: Places, shutdown: Shutdown) -> Self {
        let watches = Watches::new(requests.clone(), shutdown.clone());
        let behind = Behind::Member(Arc::new(Member { requests, watches }));
        Self { behind, places, shutdown }
    }

    /// A router's.
    pub(crate) fn router(router: Arc<Router>, places: Places, shutdown: Shutdown) -> Self {
        Self { behind: Behind::Router(router), places, shutdown }
    }

    /// Answers a request, or has it answered.
    pub(crate) async fn serve(
        &self,
        wanted: Wanted<request::Kind>,
    ) -> Result<Replied<forward_reply::Kind>, Refusal> {
        match &self.behind {
            Behind::Member(member) => member.requests.serve(wanted).await,
            Behind::Router(router) => {
                let reply = router.ask(&wanted.kind, with_margin(wanted.deadline)).await;
                routing::passed_on(reply)
            }
        }
    }

    /// The same for a request about a lock.
    pub(crate) async fn serve_lock(
        &self,
        wanted: Wanted<lock::forward_request::Kind>,
    ) -> Result<Replied<lock::forward_reply::Kind>, Refusal> {
        match &self.behind {
            Behind::Member(member) => member.requests.serve_lock(wanted).await,
            Behind::Router(router) => {
                let reply = router.ask_lock(&wanted.kind, with_margin(wanted.deadline)).await;
                routing::passed_on(reply)
            }
        }
    }

    /// Begins a stream of changes. It knows by `deadline` where.
    pub(crate) async fn watch(
        &self,
        request: WatchRequest,
        deadline: Instant,
    ) -> Result<BoxStream<'static, Result<WatchReply, Status>>, Status> {
        let place = self.places.take()?;
        let router = match &self.behind {
            Behind::Member(member) => match member.requests.router_of_watch(&request) {
                Some(router) => router,
                None => return member.watches.watch(request, deadline, place).await,
            },
            Behind::Router(router) => router.clone(),
        };
        merged::watch(router, request, deadline, place, self.shutdown.clone()).await
    }
}
