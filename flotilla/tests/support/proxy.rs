//! A way to a server that breaks when it is told to: the connection that carries most is cut in the
//! middle of what it carries, or all passes late, or nothing passes any more and nobody is told.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A connection over which so much has come from the server carries bulk: the others are of
/// heartbeats and answers.
const BULK_BYTES: usize = 64 << 10;

/// How much is passed on at a time.
const PIECE_BYTES: usize = 16 << 10;

/// What the ways to all servers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    /// Everything passes.
    Clear,
    /// The next piece of a connection that carries bulk is passed on in half, and then the connection
    /// is closed. That clears the weather.
    Cut,
    /// Every piece passes so much later, and the next one after it.
    Slow(Duration),
    /// Connections stay open and can be made, and nothing passes.
    Hole,
}

/// Ways to servers. They are gone when this is dropped.
pub(crate) struct Proxies {
    weather: watch::Sender<Weather>,
    ways: JoinSet<()>,
}

impl Proxies {
    pub(crate) fn new() -> Self {
        Self { weather: watch::Sender::new(Weather::Clear), ways: JoinSet::new() }
    }

    /// Opens a way to a server, and says where it begins.
    pub(crate) async fn open(&mut self, server: SocketAddr) -> SocketAddr {
        let listener = TcpListener::bind((server.ip(), 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let weather = self.weather.clone();
        self.ways.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                connections.spawn(pass(client, server, weather.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        address
    }

    /// Has the next connection that carries bulk cut, and waits until one is.
    pub(crate) async fn cut(&self) {
        self.weather.send_replace(Weather::Cut);
        let is_clear = |weather: &Weather| *weather == Weather::Clear;
        self.weather.subscribe().wait_for(is_clear).await.unwrap();
    }

    /// Swallows everything until [`Proxies::heal`].
    pub(crate) fn swallow(&self) {
        self.weather.send_replace(Weather::Hole);
    }

    /// Lets everything pass later, until [`Proxies::heal`].
    pub(crate) fn slow(&self, delay: Duration) {
        self.weather.send_replace(Weather::Slow(delay));
    }

    /// Lets what was swallowed go on.
    pub(crate) fn heal(&self) {
        self.weather.send_replace(Weather::Clear);
    }
}

/// Passes on what is said on a connection until one of its ends is closed.
async fn pass(client: TcpStream, server: SocketAddr, weather: watch::Sender<Weather>) {
    // Who can't be reached through this can't be reached.
    let Ok(server) = TcpStream::connect(server).await else { return };
    for side in [&client, &server] {
        side.set_nodelay(true).unwrap();
    }
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass_on(from_client, to_server, weather.clone(), usize::MAX) => {}
        () = pass_on(from_server, to_client, weather, BULK_BYTES) => {}
    }
}

/// Passes on what is said in one direction, in which a connection carries bulk after `bulk` bytes.
async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    weather: watch::Sender<Weather>,
    bulk: usize,
) {
    let (mut piece, mut passed) = ([0; PIECE_BYTES], 0);
    let mut changes = weather.subscribe();
    while let Ok(length @ 1..) = from.read(&mut piece).await {
        if changes.wait_for(|weather| *weather != Weather::Hole).await.is_err() {
            return;
        }
        let weather_now = *changes.borrow();
        if let Weather::Slow(delay) = weather_now {
            sleep(delay).await;
        }
        passed += length;
        let is_cut = passed >= bulk && weather.send_if_modified(clear_a_cut);
        let kept = if is_cut { length / 2 } else { length };
        if to.write_all(&piece[..kept]).await.is_err() || is_cut {
            return;
        }
    }
}

/// One connection is cut, not all of them.
fn clear_a_cut(weather: &mut Weather) -> bool {
    let cut = *weather == Weather::Cut;
    if cut {
        *weather = Weather::Clear;
    }
    cut
}
