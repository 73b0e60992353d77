//! Answers every request but heartbeats.

use alloc::{string::String, vec::Vec};

use flotilla_proto::{
    placement::{
        ClusterInfo, GcSafePoint, GetRegionRequest, IdBlock, JoinRequest, JoinResponse, KeyspacesResponse,
        PlacementRequest, PlacementResponse, ScanRegionsRequest, ScanRegionsResponse, StoresResponse,
        placement_request::Request, placement_response::Response,
    },
    store::Space,
};

use crate::{
    Now, Placement, RequestId,
    directory::scan_limit,
    journal::Seq,
    keys::Record,
    limits,
    refusal::{Refusal, shown_key},
};

/// An answer and the change it waits for, or why there is none. A refusal changed nothing.
pub(crate) type Answer = Result<(Response, Seq), Refusal>;

impl Placement {
    pub(crate) fn request(&mut self, now: Now, id: RequestId, request: PlacementRequest) {
        let answer = if self.journal.is_full() { Err(Refusal::Busy) } else { self.answer(now, request) };
        match answer {
            Ok((response, after)) => {
                self.journal.answer(id, PlacementResponse { response: Some(response) }, after);
            }
            Err(refusal) => self.journal.answer(id, refusal.response(), Seq::LOADED),
        }
    }

    fn answer(&mut self, now: Now, request: PlacementRequest) -> Answer {
        match request.request.ok_or(Refusal::UnknownRequest)? {
            Request::Join(join) => self.join(now, join),
            Request::Heartbeat(heartbeat) => self.heartbeat(now.mono_ms, heartbeat),
            Request::GetRegion(get) => self.get_region(&get),
            Request::GetRegionById(id) => {
                let entry = self.directory.get(id).ok_or(Refusal::UnknownRegion(id))?;
                Ok((Response::Region(entry.into_info()), Seq::LOADED))
            }
            Request::ScanRegions(scan) => Ok((Response::ScanRegions(self.scan(&scan)), Seq::LOADED)),
            Request::GetStore(id) => {
                let store = self.stores.show(id, now.mono_ms, &self.settings).ok_or(Refusal::UnknownStore(id))?;
                Ok((Response::Store(store), self.stores.seq()))
            }
            Request::GetAllStores(_) => {
                let stores = self.stores.show_all(now.mono_ms, &self.settings);
                Ok((Response::Stores(StoresResponse { stores }), self.stores.seq()))
            }
            Request::Tso(count) => self.tso(now, count),
            Request::AllocIds(count) => self.alloc_ids(count),
            Request::LoadKeyspace(name) => {
                let keyspace = self.keyspaces.get(&name)?;
                Ok((Response::Keyspace(keyspace), self.keyspaces.seq()))
            }
            Request::CreateKeyspace(name) => self.create_keyspace(name),
            Request::ListKeyspaces(_) => {
                let keyspaces = self.keyspaces.list();
                Ok((Response::Keyspaces(KeyspacesResponse { keyspaces }), self.keyspaces.seq()))
            }
            Request::ClusterInfo(_) => Ok((Response::ClusterInfo(self.info()), Seq::LOADED)),
            Request::UpdateGcSafePoint(safe_point) => Ok(self.update_gc_safe_point(safe_point)),
        }
    }

    /// The same token gives the same store, however often and from wherever it is sent.
    fn join(&mut self, now: Now, join: JoinRequest) -> Answer {
        let JoinRequest { join_token: token, address } = join;
        if !(1..=limits::JOIN_TOKEN_BYTES_MAX).contains(&token.len()) {
            return Err(Refusal::JoinToken { bytes: token.len() });
        }
        let known = self.stores.by_token(&token);
        self.stores.check_address(&address, known, now.mono_ms, &self.settings)?;
        let store_id = match known {
            Some(id) => {
                self.stores.set_address(id, &address, &mut self.journal);
                id
            }
            None => {
                if self.stores.len() >= limits::STORES_MAX {
                    return Err(Refusal::TooManyStores);
                }
                let (id, covered) = self.ids.alloc(1, &mut self.journal).ok_or(Refusal::IdsUsedUp)?;
                self.stores.add(id, address, &token, now.mono_ms, &mut self.journal);
                assert!(covered < self.stores.seq(), "an id is covered before a store with it is written");
                id
            }
        };
        let stores = self.stores.address_list(now.mono_ms, &self.settings);
        let response = JoinResponse { cluster_id: self.cluster_id, store_id, stores };
        Ok((Response::Join(response), self.stores.seq()))
    }

    /// The directory is what leaders reported, so its answers wait for nothing: they are true whether or not they are durable here.
    fn get_region(&self, get: &GetRegionRequest) -> Answer {
        let space = Space::try_from(get.space).map_err(|_| Refusal::UnknownSpace(get.space))?;
        let info = if get.previous {
            let found = self.directory.find_previous(space, &get.key);
            found.ok_or_else(|| Refusal::NoPreviousRegion(shown_key(&get.key)))?
        } else {
            self.directory.find(space, &get.key).ok_or_else(|| Refusal::NoRegion(shown_key(&get.key)))?
        };
        Ok((Response::Region(info), Seq::LOADED))
    }

    /// At most `limits::SCAN_REGIONS_MAX` regions; system regions come first, and only with the first page.
    fn scan(&self, scan: &ScanRegionsRequest) -> ScanRegionsResponse {
        let limit = scan_limit(scan.limit);
        let mut regions = Vec::new();
        if scan.with_system && scan.start_key.is_empty() {
            regions = self.directory.scan(Space::System, b"", b"", limit, scan.store_id);
        }
        let left = limit - regions.len();
        regions.extend(self.directory.scan(Space::User, &scan.start_key, &scan.end_key, left, scan.store_id));
        ScanRegionsResponse { regions }
    }

    fn tso(&mut self, now: Now, count: u32) -> Answer {
        if !(1..=limits::LOGICAL_PER_MS).contains(&u64::from(count)) {
            return Err(Refusal::TimestampCount { count });
        }
        let allocated = self.timestamps.alloc(count, now.wall_ms, &mut self.journal);
        let (response, after) = allocated.ok_or(Refusal::TimestampsUsedUp)?;
        Ok((Response::Tso(response), after))
    }

    fn alloc_ids(&mut self, count: u64) -> Answer {
        if !(1..=limits::IDS_PER_REQUEST_MAX).contains(&count) {
            return Err(Refusal::IdCount { count });
        }
        let (first, after) = self.ids.alloc(count, &mut self.journal).ok_or(Refusal::IdsUsedUp)?;
        Ok((Response::Ids(IdBlock { first, count }), after))
    }

    fn create_keyspace(&mut self, name: String) -> Answer {
        let keyspace = self.keyspaces.create(name, &mut self.journal)?;
        Ok((Response::Keyspace(keyspace), self.keyspaces.seq()))
    }

    fn update_gc_safe_point(&mut self, proposed: u64) -> (Response, Seq) {
        if proposed > self.gc_safe_point {
            self.gc_safe_point = proposed;
            self.gc_seq = self.journal.write(alloc::vec![Record::GcSafePoint(proposed).write()]);
        }
        (Response::GcSafePoint(GcSafePoint { safe_point: self.gc_safe_point }), self.gc_seq)
    }

    fn info(&self) -> ClusterInfo {
        ClusterInfo {
            cluster_id: self.cluster_id,
            leader_store_id: self.lead.store_id,
            region_count: self.directory.len() as u64,
            system_term: self.lead.term,
            replicas: self.settings.replicas as u64,
        }
    }
}
