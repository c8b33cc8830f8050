//! One connection to a store.

use bytes::Bytes;
use client::KvClient;
use tonic::transport::Channel;

use super::etcd::kv_client::KvClient as EtcdClient;
use super::etcd::{PutRequest, RangeRequest};

/// A store, by the client that its users would have. Clones share a connection.
#[derive(Clone, Debug)]
pub enum Store {
    /// etcd.
    Etcd(EtcdClient<Channel>),
    /// kvd.
    Flotilla(KvClient),
}

impl Store {
    pub(super) fn etcd(channel: Channel) -> Self {
        Self::Etcd(EtcdClient::new(channel))
    }

    /// Writes a key; whether it was done.
    pub async fn put(&self, key: Bytes, value: Bytes) -> bool {
        match self {
            Self::Etcd(etcd) => etcd.clone().put(PutRequest { key, value }).await.is_ok(),
            Self::Flotilla(flotilla) => flotilla.put(key, value).await.is_ok(),
        }
    }

    /// Reads a key, linearizably; whether it was done.
    pub async fn get(&self, key: Bytes) -> bool {
        match self {
            Self::Etcd(etcd) => etcd.clone().range(RangeRequest { key }).await.is_ok(),
            Self::Flotilla(flotilla) => flotilla.get(key).await.is_ok(),
        }
    }
}
