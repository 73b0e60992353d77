//! Writers that go through the data, each write until it is acknowledged or its outcome is unknown.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use flotilla_client::{Error, Raw};
use tokio::{task::JoinSet, time::sleep};

use super::{
    data::DataSet,
    ledger::{Fate, Ledger},
};
use crate::progress::Progress;

/// Times that a write which failed for certain is tried again; each try has the client's whole deadline.
const TRIES: usize = 10;

pub struct Writers {
    tasks: JoinSet<Result<()>>,
    ledger: Arc<Ledger>,
    progress: Arc<Progress>,
}

impl Writers {
    pub fn start(raw: Raw, data: Arc<DataSet>, ledger: Arc<Ledger>, concurrency: usize) -> Writers {
        let next = Arc::new(AtomicUsize::new(0));
        let progress = Arc::new(Progress::new("writing", data.len() as u64));
        let mut tasks = JoinSet::new();
        for _ in 0..concurrency.max(1) {
            let (raw, data, ledger) = (raw.clone(), Arc::clone(&data), Arc::clone(&ledger));
            let (next, progress) = (Arc::clone(&next), Arc::clone(&progress));
            tasks.spawn(async move {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= data.len() {
                        return Ok(());
                    }
                    write(&raw, &data, &ledger, index).await?;
                    progress.advance(1);
                }
            });
        }
        Writers { tasks, ledger, progress }
    }

    /// Waits until so many writes are acknowledged, or all are done.
    pub async fn wait_for(&mut self, acknowledged: usize, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        while self.ledger.acknowledged() < acknowledged && !self.tasks.is_empty() {
            check()?;
            while let Some(ended) = self.tasks.try_join_next() {
                ended.context("a writer broke down")??;
            }
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits for the end.
    pub async fn finish(mut self, mut check: impl FnMut() -> Result<()>) -> Result<()> {
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    None => break,
                    Some(ended) => ended.context("a writer broke down")??,
                },
                () = sleep(Duration::from_millis(200)) => check()?,
            }
        }
        if let Some(progress) = Arc::into_inner(self.progress) {
            progress.finish();
        }
        Ok(())
    }
}

async fn write(raw: &Raw, data: &DataSet, ledger: &Ledger, index: usize) -> Result<()> {
    let mut reason = None;
    for _ in 0..TRIES {
        match raw.put(data.key(index), data.value(index), None).await {
            Ok(()) => {
                ledger.set(index, Fate::Acknowledged);
                return Ok(());
            }
            Err(Error::Unknown(_)) => {
                ledger.set(index, Fate::Unknown);
                return Ok(());
            }
            Err(Error::Failed(failure)) => reason = Some(failure),
            Err(error @ Error::Invalid(_)) => return Err(error).context("a write was refused"),
        }
    }
    match reason {
        Some(reason) => bail!("a write failed {TRIES} times: {reason}"),
        None => Ok(()),
    }
}
