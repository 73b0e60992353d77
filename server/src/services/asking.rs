//! Questions to the placement driver, each with the one kind of answer that fits.

use flotilla_proto::placement::{
    ClusterInfo, GetRegionRequest, Keyspace, PlacementError, PlacementErrorKind, PlacementResponse, RegionInfo,
    ScanRegionsRequest, Store, TsoResponse, placement_request::Request, placement_response::Response,
};
use tonic::Status;

use crate::node::Node;

/// Why the placement driver gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It moves or has not started; ask again.
    #[error("placement driver is not ready: {0}")]
    NotReady(String),
    /// There is no such thing.
    #[error("{0}")]
    NotFound(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It answered another question.
    #[error("placement driver gave an answer that does not fit: {0}")]
    Unexpected(String),
}

impl From<AskError> for Status {
    fn from(error: AskError) -> Status {
        let text = error.to_string();
        match error {
            AskError::NotReady(_) => Status::unavailable(text),
            AskError::NotFound(_) => Status::not_found(text),
            AskError::Invalid(_) => Status::invalid_argument(text),
            AskError::Unexpected(_) => Status::internal(text),
        }
    }
}

impl From<PlacementError> for AskError {
    fn from(error: PlacementError) -> AskError {
        let kind = error.kind();
        match kind {
            PlacementErrorKind::NotLeader if error.message.is_empty() => {
                AskError::NotReady("its store is not known".into())
            }
            PlacementErrorKind::NotLeader | PlacementErrorKind::NotReady => AskError::NotReady(error.message),
            PlacementErrorKind::NotFound => AskError::NotFound(error.message),
            PlacementErrorKind::Invalid => AskError::Invalid(error.message),
        }
    }
}

/// Asks, and takes the fitting answer out with `take`.
pub async fn ask<T>(
    node: &Node,
    request: Request,
    take: impl FnOnce(Response) -> Result<T, Box<Response>>,
) -> Result<T, AskError> {
    fitting(node.placement(request).await, take)
}

fn fitting<T>(
    answer: PlacementResponse,
    take: impl FnOnce(Response) -> Result<T, Box<Response>>,
) -> Result<T, AskError> {
    match answer.response {
        Some(Response::Error(error)) => Err(error.into()),
        Some(response) => take(response).map_err(|other| AskError::Unexpected(variant(&other))),
        None => Err(AskError::Unexpected("empty".into())),
    }
}

fn variant(response: &Response) -> String {
    let text = format!("{response:?}");
    text.split(['(', ' ']).next().unwrap_or_default().to_owned()
}

/// Takes one variant of an answer out, for [`ask`].
macro_rules! only {
    ($variant:ident) => {
        |response| match response {
            Response::$variant(answer) => Ok(answer),
            other => Err(Box::new(other)),
        }
    };
}

/// All stores.
pub async fn stores(node: &Node) -> Result<Vec<Store>, AskError> {
    ask(node, Request::GetAllStores(true), only!(Stores)).await.map(|stores| stores.stores)
}

/// One store.
pub async fn store(node: &Node, store_id: u64) -> Result<Store, AskError> {
    ask(node, Request::GetStore(store_id), only!(Store)).await
}

/// The region that holds a key, or the one before it.
pub async fn region_by_key(node: &Node, request: GetRegionRequest) -> Result<RegionInfo, AskError> {
    ask(node, Request::GetRegion(request), only!(Region)).await
}

/// A region by its id.
pub async fn region_by_id(node: &Node, region_id: u64) -> Result<RegionInfo, AskError> {
    ask(node, Request::GetRegionById(region_id), only!(Region)).await
}

/// Regions in key order.
pub async fn scan_regions(node: &Node, request: ScanRegionsRequest) -> Result<Vec<RegionInfo>, AskError> {
    ask(node, Request::ScanRegions(request), only!(ScanRegions)).await.map(|answer| answer.regions)
}

/// The largest of `count` new timestamps.
pub async fn timestamps(node: &Node, count: u32) -> Result<TsoResponse, AskError> {
    let answer = ask(node, Request::Tso(count), only!(Tso)).await?;
    if answer.count == count {
        Ok(answer)
    } else {
        Err(AskError::Unexpected(format!("{} timestamps instead of {count}", answer.count)))
    }
}

/// One new id.
pub async fn new_id(node: &Node) -> Result<u64, AskError> {
    ask(node, Request::AllocIds(1), only!(Ids)).await.map(|block| block.first)
}

/// Proposes a GC safe point (0 proposes nothing) and gives the one in force.
pub async fn gc_safe_point(node: &Node, proposed: u64) -> Result<u64, AskError> {
    ask(node, Request::UpdateGcSafePoint(proposed), only!(GcSafePoint)).await.map(|answer| answer.safe_point)
}

/// The cluster in figures.
pub async fn cluster_info(node: &Node) -> Result<ClusterInfo, AskError> {
    ask(node, Request::ClusterInfo(true), only!(ClusterInfo)).await
}

/// A keyspace by its name.
pub async fn keyspace(node: &Node, name: String) -> Result<Keyspace, AskError> {
    ask(node, Request::LoadKeyspace(name), only!(Keyspace)).await
}

/// A new keyspace.
pub async fn create_keyspace(node: &Node, name: String) -> Result<Keyspace, AskError> {
    ask(node, Request::CreateKeyspace(name), only!(Keyspace)).await
}

/// All keyspaces.
pub async fn keyspaces(node: &Node) -> Result<Vec<Keyspace>, AskError> {
    ask(node, Request::ListKeyspaces(true), only!(Keyspaces)).await.map(|answer| answer.keyspaces)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_proto::placement::IdBlock;

    #[test]
    fn an_answer_fits_or_says_what_came_instead() {
        let answer = |response| PlacementResponse { response };
        let ids = Some(Response::Ids(IdBlock { first: 5, count: 1 }));
        assert_eq!(fitting(answer(ids.clone()), only!(Ids)).unwrap().first, 5);
        assert_eq!(fitting(answer(ids), only!(Tso)).unwrap_err(), AskError::Unexpected("Ids".into()));
        assert_eq!(fitting(answer(None), only!(Tso)).unwrap_err(), AskError::Unexpected("empty".into()));
    }

    #[test]
    fn only_a_moving_placement_driver_is_worth_asking_again() {
        let status = |kind: PlacementErrorKind| {
            let error = PlacementError { kind: kind.into(), message: "why".into(), leader_store_id: 0 };
            let status = Status::from(AskError::from(error));
            assert!(status.message().contains("why"));
            status.code()
        };
        assert_eq!(status(PlacementErrorKind::NotLeader), tonic::Code::Unavailable);
        assert_eq!(status(PlacementErrorKind::NotReady), tonic::Code::Unavailable);
        assert_eq!(status(PlacementErrorKind::NotFound), tonic::Code::NotFound);
        assert_eq!(status(PlacementErrorKind::Invalid), tonic::Code::InvalidArgument);
    }
}
