//! A client for `flotilla.admin.Admin`, which every store serves.

use std::{future::Future, time::Duration};

use flotilla_proto::{
    admin::{
        ChecksumRequest, ChecksumResponse, ClusterStatusRequest, ClusterStatusResponse, CreateKeyspaceRequest,
        ExplainRegionRequest, ExplainRegionResponse, GetRegionRequest, ListKeyspacesRequest, ListStoresRequest,
        LocateRequest, RegionCommandRequest, StoreSupportRequest, StoreSupportResponse, admin_client::AdminClient,
        region_command_request::Command,
    },
    placement::{Keyspace, RegionInfo, ScanRegionsRequest, Store},
    store::{Epoch, Region, Space},
};
use tokio::time::timeout;
use tonic::{Code, Response, Status, transport::Channel};

use crate::{
    channels::{Channels, Tls, never_sent},
    error::{Error, Failure, Result},
    limits,
};

/// Speaks to the admin service of whichever endpoint answers.
pub struct Admin {
    endpoints: Vec<String>,
    channels: Channels,
    timeout: Duration,
}

impl Admin {
    /// A client for a cluster of which some stores listen at `endpoints` (host:port). Each request to one endpoint takes at most
    /// `timeout`.
    pub fn new(endpoints: Vec<String>, timeout: Duration, tls: Option<Tls>) -> Result<Admin> {
        if endpoints.is_empty() {
            return Err(Error::invalid("connect", "no endpoints are given"));
        }
        Ok(Admin { endpoints, channels: Channels::new(1, tls)?, timeout })
    }

    /// The state of the cluster as a whole.
    pub async fn cluster_status(&self) -> Result<ClusterStatusResponse> {
        self.read("cluster status", async |mut client| client.cluster_status(ClusterStatusRequest {}).await).await
    }

    /// All stores.
    pub async fn stores(&self) -> Result<Vec<Store>> {
        let answer = self.read("store list", async |mut client| client.list_stores(ListStoresRequest {}).await).await?;
        Ok(answer.stores)
    }

    /// Regions in key order, the system's first if asked for; `limit` 0 is no limit.
    pub async fn regions(&self, request: ScanRegionsRequest) -> Result<Vec<RegionInfo>> {
        let mut regions: Vec<RegionInfo> = Vec::new();
        let mut request = request;
        let wanted = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        loop {
            let left = wanted - regions.len();
            request.limit = u32::try_from(left).unwrap_or(u32::MAX).min(limits::REGIONS_PAGE);
            let send = async |mut client: AdminClient<Channel>| client.list_regions(request.clone()).await;
            let mut page = self.read("region list", send).await?.regions;
            page.truncate(left);
            let full = page.len() >= request.limit as usize;
            let end = page.last().and_then(|info| info.region.as_ref()).map(|region| region.end_key.clone());
            regions.extend(page);
            match end {
                Some(end) if full && regions.len() < wanted && !end.is_empty() => {
                    request = ScanRegionsRequest { start_key: end, with_system: false, ..request };
                }
                _ => return Ok(regions),
            }
        }
    }

    /// One region.
    pub async fn region(&self, region_id: u64) -> Result<RegionInfo> {
        self.read("region show", async |mut client| client.get_region(GetRegionRequest { region_id }).await).await
    }

    /// The region that holds a key of users' key space, as it is stored.
    pub async fn locate(&self, key: &[u8]) -> Result<RegionInfo> {
        let request = LocateRequest { space: Space::User.into(), key: key.to_vec().into() };
        self.read("region locate", async |mut client| client.locate(request.clone()).await).await
    }

    /// Runs a command on a region's leader; refused unless the region is at `epoch`, if given. Gives the region and, after a split, its
    /// children.
    pub async fn region_command(&self, region_id: u64, epoch: Option<Epoch>, command: Command) -> Result<Vec<Region>> {
        let request = RegionCommandRequest { region_id, epoch, command: Some(command) };
        let send = async |mut client: AdminClient<Channel>| client.region_command(request.clone()).await;
        Ok(self.write("region command", send).await?.regions)
    }

    /// The checksum of a region's data on the store at `address`; `None` if it has no peer of the region.
    pub async fn checksum(&self, address: &str, region_id: u64) -> Result<Option<ChecksumResponse>> {
        const OPERATION: &str = "checksum";
        let send = async |mut client: AdminClient<Channel>| client.checksum(ChecksumRequest { region_id }).await;
        match self.ask(address, &send).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(Error::failed(OPERATION, format!("{address}: {}", describe(&status)))),
        }
    }

    /// Whom the store at `address` supports, and who supports it.
    pub async fn store_support(&self, address: &str) -> Result<StoreSupportResponse> {
        let send = async |mut client: AdminClient<Channel>| client.store_support(StoreSupportRequest {}).await;
        self.ask(address, &send)
            .await?
            .map_err(|status| Error::failed("store support", format!("{address}: {}", describe(&status))))
    }

    /// Why the peer of a region on the store at `address` does what it does; `None` if it has none.
    pub async fn explain_region(&self, address: &str, region_id: u64) -> Result<Option<ExplainRegionResponse>> {
        let request = ExplainRegionRequest { region_id };
        match self.ask(address, &async |mut client: AdminClient<Channel>| client.explain_region(request).await).await? {
            Ok(answer) => Ok(Some(answer)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(Error::failed("region explain", format!("{address}: {}", describe(&status)))),
        }
    }

    /// Creates a keyspace.
    pub async fn create_keyspace(&self, name: &str) -> Result<Keyspace> {
        let request = CreateKeyspaceRequest { name: name.to_owned() };
        self.write("keyspace create", async |mut client| client.create_keyspace(request.clone()).await).await
    }

    /// All keyspaces.
    pub async fn keyspaces(&self) -> Result<Vec<Keyspace>> {
        let send = async |mut client: AdminClient<Channel>| client.list_keyspaces(ListKeyspacesRequest {}).await;
        Ok(self.read("keyspace list", send).await?.keyspaces)
    }

    async fn read<T, F>(&self, operation: &'static str, send: impl Fn(AdminClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.try_endpoints(operation, &send, |_| true).await
    }

    /// Like `read`, but turns to the next endpoint only if nothing was sent.
    async fn write<T, F>(&self, operation: &'static str, send: impl Fn(AdminClient<Channel>) -> F) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        self.try_endpoints(operation, &send, never_sent).await
    }

    async fn try_endpoints<T, F>(
        &self,
        operation: &'static str,
        send: &impl Fn(AdminClient<Channel>) -> F,
        may_repeat: impl Fn(&Status) -> bool,
    ) -> Result<T>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let mut reasons = Vec::new();
        for endpoint in &self.endpoints {
            let status = match self.ask(endpoint, send).await? {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            let failure = Failure { operation, reason: format!("{endpoint}: {}", describe(&status)) };
            match status.code() {
                Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition => {
                    return Err(Error::Invalid(failure));
                }
                Code::Aborted | Code::Unimplemented | Code::PermissionDenied | Code::Unauthenticated => {
                    return Err(Error::Failed(failure));
                }
                Code::OutOfRange => return Err(Error::Invalid(failure)),
                _ if may_repeat(&status) => reasons.push(failure.reason),
                // From the service itself, which says so only of what it did not do; a lost connection has a source.
                Code::Unavailable | Code::ResourceExhausted if std::error::Error::source(&status).is_none() => {
                    return Err(Error::Failed(failure));
                }
                _ => return Err(Error::Unknown(failure)),
            }
        }
        Err(Error::failed(operation, reasons.join("; ")))
    }

    async fn ask<T, F>(
        &self,
        endpoint: &str,
        send: &impl Fn(AdminClient<Channel>) -> F,
    ) -> Result<std::result::Result<T, Status>>
    where
        F: Future<Output = std::result::Result<Response<T>, Status>>,
    {
        let Some(channel) = self.channels.get(endpoint)? else {
            return Ok(Err(Status::unavailable("cannot be reached")));
        };
        let client = AdminClient::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES_MAX);
        Ok(match timeout(self.timeout, send(client)).await {
            Ok(answer) => answer.map(Response::into_inner),
            Err(_) => Err(Status::deadline_exceeded(format!("no answer within {} ms", self.timeout.as_millis()))),
        })
    }
}

fn describe(status: &Status) -> String {
    match (never_sent(status), status.message()) {
        (true, _) => format!("cannot be reached ({})", root_cause(status)),
        (false, "") => status.code().to_string(),
        // From the transport, not from the service. A server that wants TLS hangs up on a client without it, and the other way round.
        (false, _) if std::error::Error::source(status).is_some() => {
            format!("the connection broke ({}): do both sides agree on TLS and its certificates?", root_cause(status))
        }
        (false, message) => message.to_owned(),
    }
}

/// The innermost error, which says most: "Connection refused" rather than "transport error".
fn root_cause(status: &Status) -> String {
    let mut innermost: &dyn std::error::Error = status;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
