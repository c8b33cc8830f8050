//! The little HTTP that watching a local cluster needs: one GET, one answer.
//!
//! The daemons' admin port answers short texts; a client library would be a hundred times the code.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// How long one request may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// The longest answer that is read: far beyond any page of metrics.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Status and text of what `address` answers to a GET of `path`.
///
/// # Errors
/// When there is no answer in time, or one that is no HTTP.
pub async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, String)> {
    let answer = tokio::time::timeout(TIMEOUT, ask(address, path)).await??;
    parse(&answer).ok_or_else(|| io::Error::other(format!("{address} does not speak HTTP")))
}

/// The sum of all samples of a metric in Prometheus' text format, whatever their labels.
pub fn metric(text: &str, name: &str) -> Option<f64> {
    let samples = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = match rest.strip_prefix('{') {
            Some(labelled) => labelled.rsplit_once('}')?.1,
            None => rest.strip_prefix(' ')?,
        };
        value.trim().parse::<f64>().ok()
    });
    samples.reduce(|sum, value| sum + value)
}

async fn ask(address: SocketAddr, path: &str) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The daemons give every text a length, so there are no chunks.
fn parse(answer: &[u8]) -> Option<(u16, String)> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_taken_apart() {
        let answer = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 4\r\n\r\nwhy\n";
        assert_eq!(parse(answer), Some((503, "why\n".to_owned())));
        for bad in [&b""[..], b"HTTP/1.1 \r\n\r\n", b"SSH-2.0", b"HTTP/1.1 200 OK\r\n"] {
            assert_eq!(parse(bad), None);
        }
    }

    #[test]
    fn a_metric_is_summed_over_its_labels_and_never_taken_for_another() {
        let text = "# TYPE syncs counter\nsyncs{a=\"1\"} 2\nsyncs{a=\"2\"} 3.5\nsyncs_more 9\n";
        assert_eq!(metric(text, "syncs"), Some(5.5));
        assert_eq!(metric(text, "syncs_more"), Some(9.0));
        assert_eq!(metric(text, "sync"), None);
    }
}
