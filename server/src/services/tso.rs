//! The stream of timestamps: requests are answered in order, and those that queue up while the placement driver is asked share its
//! next answer.

use flotilla_proto::tikv::pdpb::{ResponseHeader, Timestamp, TsoRequest, TsoResponse};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::{
    asking,
    limits::{TSO_BATCH_MAX, TSO_QUEUE_MAX},
    pd::check_cluster,
};
use crate::{metrics::metrics, node::Node};

/// A request, checked: how many timestamps it wants. An error ends the stream after what came before it was answered.
type Wanted = Result<u32, Status>;

/// Answers a stream. It ends when the client's does, with the first error, or once `closed` says so: clients keep their streams for
/// ever, and the store must not wait for that when it stops.
pub fn serve(
    node: Node,
    requests: Streaming<TsoRequest>,
    closed: watch::Receiver<bool>,
) -> mpsc::Receiver<Result<TsoResponse, Status>> {
    let (wanted, queue) = mpsc::channel(TSO_QUEUE_MAX);
    let (answers, stream) = mpsc::channel(TSO_QUEUE_MAX);
    tokio::spawn(read(node.cluster_id(), requests, wanted, closed));
    tokio::spawn(answer(node, queue, answers));
    stream
}

async fn read(
    cluster_id: u64,
    mut requests: Streaming<TsoRequest>,
    wanted: mpsc::Sender<Wanted>,
    mut closed: watch::Receiver<bool>,
) {
    loop {
        let checked = tokio::select! {
            request = requests.message() => match request {
                Ok(Some(request)) => check(cluster_id, &request),
                Ok(None) => return,
                Err(status) => Err(status),
            },
            // The answering side is gone.
            () = wanted.closed() => return,
            _ = closed.wait_for(|closed| *closed) => Err(Status::unavailable("store is stopping")),
        };
        let last = checked.is_err();
        if wanted.send(checked).await.is_err() || last {
            return;
        }
    }
}

fn check(cluster_id: u64, request: &TsoRequest) -> Wanted {
    check_cluster(cluster_id, request.header.as_ref())?;
    match request.count {
        0 => Err(Status::invalid_argument("request for 0 timestamps: there must be at least 1")),
        count if count > TSO_BATCH_MAX => Err(Status::invalid_argument(format!(
            "request for {count} timestamps is too large: the limit is {TSO_BATCH_MAX}"
        ))),
        count => Ok(count),
    }
}

async fn answer(node: Node, mut queue: mpsc::Receiver<Wanted>, answers: mpsc::Sender<Result<TsoResponse, Status>>) {
    let mut waiting = vec![];
    loop {
        if waiting.is_empty() && queue.recv_many(&mut waiting, TSO_QUEUE_MAX).await == 0 {
            return;
        }
        let counts = next_batch(&waiting);
        if counts.is_empty() {
            if let Some(Err(status)) = waiting.into_iter().next() {
                // The client may be gone, and then nobody wants to know.
                let _ = answers.send(Err(status)).await;
            }
            return;
        }
        let timer = metrics().request("pd_tso");
        metrics().tso_batch_requests.observe(counts.len() as f64);
        let total = counts.iter().sum();
        let largest = match asking::timestamps(&node, total).await {
            Ok(largest) => Timestamp { physical: largest.physical_ms, logical: largest.logical, suffix_bits: 0 },
            Err(error) => {
                timer.failed("not_ready");
                let _ = answers.send(Err(error.into())).await;
                return;
            }
        };
        drop(timer);
        waiting.drain(..counts.len());
        for (count, timestamp) in share(largest, &counts) {
            let header = Some(ResponseHeader { cluster_id: node.cluster_id(), error: None });
            if answers.send(Ok(TsoResponse { header, count, timestamp: Some(timestamp) })).await.is_err() {
                return;
            }
        }
    }
}

/// The requests at the head of the queue that may share one answer.
fn next_batch(waiting: &[Wanted]) -> Vec<u32> {
    let mut total = 0;
    let counts = waiting.iter().map_while(|wanted| wanted.as_ref().ok().copied());
    counts
        .take_while(|&count| {
            total += count;
            total <= TSO_BATCH_MAX
        })
        .collect()
}

/// Gives each request its part of a batch of timestamps, in order: the largest of each part, as the protocol wants it.
fn share(largest: Timestamp, counts: &[u32]) -> impl Iterator<Item = (u32, Timestamp)> + '_ {
    let total: i64 = counts.iter().copied().map(i64::from).sum();
    let mut logical = largest.logical - total;
    counts.iter().map(move |&count| {
        logical += i64::from(count);
        (count, Timestamp { logical, ..largest })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::tikv::pdpb::RequestHeader;

    #[test]
    fn parts_of_a_batch_are_disjoint_and_end_with_the_largest() {
        let largest = Timestamp { physical: 9, logical: 10, suffix_bits: 0 };
        let parts: Vec<_> = share(largest, &[3, 1, 2]).map(|(count, timestamp)| (count, timestamp.logical)).collect();
        // 5 6 7 | 8 | 9 10
        assert_eq!(parts, [(3, 7), (1, 8), (2, 10)]);
    }

    #[test]
    fn a_batch_ends_at_the_limit_and_before_an_error() {
        let bad = || Err(Status::unknown("bad"));
        assert_eq!(next_batch(&[Ok(1), Ok(2), bad(), Ok(3)]), [1, 2]);
        assert!(next_batch(&[bad()]).is_empty());
        assert_eq!(next_batch(&[Ok(TSO_BATCH_MAX), Ok(1)]), [TSO_BATCH_MAX]);
        assert_eq!(next_batch(&[Ok(TSO_BATCH_MAX - 1), Ok(1), Ok(1)]), [TSO_BATCH_MAX - 1, 1]);
    }

    #[test]
    fn requests_are_checked() {
        let request = |cluster_id, count| TsoRequest {
            header: Some(RequestHeader { cluster_id, sender_id: 0 }),
            count,
            dc_location: "global".into(),
        };
        assert_eq!(check(5, &request(5, 64)).unwrap(), 64);
        assert_eq!(check(5, &request(6, 1)).unwrap_err().code(), tonic::Code::FailedPrecondition);
        assert_eq!(check(5, &request(5, 0)).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(check(5, &request(5, TSO_BATCH_MAX + 1)).unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
