//! Health and reflection as a gRPC client sees them, and the end of a server.

#![allow(clippy::unwrap_used, reason = "a test ends where something fails")]

use std::net::SocketAddr;

use flotilla_daemon::{Failure, Readiness, Shutdown, addresses, grpc};
use prost::Message;
use prost_types::{FileDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::{v1, v1alpha};

const SERVICE: &str = "flotilla.test.v1.Test";

/// A descriptor set with one service, as a daemon brings it.
fn descriptors() -> Vec<u8> {
    let service = ServiceDescriptorProto {
        name: Some("Test".to_owned()),
        ..ServiceDescriptorProto::default()
    };
    let file = FileDescriptorProto {
        name: Some("flotilla/test/v1/test.proto".to_owned()),
        package: Some("flotilla.test.v1".to_owned()),
        service: vec![service],
        ..FileDescriptorProto::default()
    };
    FileDescriptorSet { file: vec![file] }.encode_to_vec()
}

async fn start(
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> (SocketAddr, JoinHandle<Result<(), Failure>>) {
    let listener = addresses::listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    let routes = grpc::routes(&descriptors(), &[SERVICE], readiness, shutdown).await.unwrap();
    (address, tokio::spawn(grpc::serve(routes, listener, shutdown.clone())))
}

async fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn health_follows_readiness_until_shutdown() {
    let (readiness, shutdown) = (Readiness::waiting("starting"), Shutdown::new());
    let (address, server) = start(&readiness, &shutdown).await;
    let mut client = HealthClient::new(connect(address).await);
    let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", SERVICE] {
        let answer = client.check(request(service)).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::NotServing, "before it is ready: {service}");
    }
    let mut statuses = client.watch(request(SERVICE)).await.unwrap().into_inner();
    let mut next = async || statuses.next().await.unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::NotServing);
    readiness.ready();
    assert_eq!(next().await, ServingStatus::Serving);
    readiness.not_ready("no quorum");
    assert_eq!(next().await, ServingStatus::NotServing);
    readiness.ready();
    assert_eq!(next().await, ServingStatus::Serving);
    shutdown.request();
    assert_eq!(next().await, ServingStatus::NotServing);
    // The watch above is still open, and must not keep the server from its end.
    tokio::time::timeout(10 * grpc::DRAIN_TIMEOUT, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn reflection_lists_services_in_both_versions() {
    let (readiness, shutdown) = (Readiness::waiting("starting"), Shutdown::new());
    let (address, _server) = start(&readiness, &shutdown).await;
    let channel = connect(address).await;

    let list = v1::server_reflection_request::MessageRequest::ListServices(String::new());
    let request = v1::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel.clone());
    let stream = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
    let answer = answers.next().await.unwrap().unwrap();
    let names = format!("{answer:?}");
    for name in [SERVICE, "grpc.health.v1.Health"] {
        assert!(names.contains(name), "{name} is missing in {names}");
    }

    let list = v1alpha::server_reflection_request::MessageRequest::ListServices(String::new());
    let request =
        v1alpha::ServerReflectionRequest { host: String::new(), message_request: Some(list) };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let stream = tokio_stream::once(request);
    let mut answers = client.server_reflection_info(stream).await.unwrap().into_inner();
    let names = format!("{:?}", answers.next().await.unwrap().unwrap());
    assert!(names.contains(SERVICE), "{SERVICE} is missing in {names}");
}

#[tokio::test]
async fn unreadable_descriptors_refused() {
    let (readiness, shutdown) = (Readiness::waiting("starting"), Shutdown::new());
    let result = grpc::routes(&[0xff; 8], &[], &readiness, &shutdown).await;
    let failure = result.expect_err("this is no descriptor set");
    assert!(failure.chain().contains("descriptor set"), "{}", failure.chain());
}
