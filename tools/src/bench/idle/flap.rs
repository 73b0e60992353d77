//! A store whose links break for a moment now and then, and one that is away for long and comes back. Regions that others lead must not notice.

use std::{collections::BTreeMap, time::Duration};

use anyhow::Result;
use flotilla_client::Admin;
use tokio::time::{Instant, sleep};

use super::{Bench, say, watch};
use crate::{
    bench::{links::Links, report::Line},
    progress::Progress,
};

/// How long, and how often, all links of the store are cut.
const CUT: Duration = Duration::from_millis(300);
const EVERY: Duration = Duration::from_secs(2);
/// What a cut causes shows itself within this time: elections take a second or two, and a report to the placement driver much less.
const AFTERMATH: Duration = Duration::from_secs(5);

/// For the placement driver to answer.
const ANSWER: Duration = Duration::from_secs(30);

/// (region → (leader's store, its term))
type Leads = BTreeMap<u64, (u64, u64)>;

pub async fn measure(bench: &mut Bench<'_>) -> Result<Vec<Line>> {
    let links = Links::of(bench.cluster)?;
    let place = bench.leads_most().await?;
    let (store_id, address) = (bench.ids[place], bench.cluster.stores[place].address.clone());
    // A store that is cut off may still believe that the placement driver runs there, and tell what was.
    let others = bench.cluster.endpoints().into_iter().filter(|other| *other != address).collect();
    let admin = Admin::new(others, ANSWER, None)?;

    say(&format!("cutting off the store at {address} for {} ms every {} s", CUT.as_millis(), EVERY.as_secs()));
    let before = leads(bench, &admin).await?;
    let begun = Instant::now();
    let time = Duration::from_secs(bench.args.flap);
    let progress = Progress::new("seconds of flapping", time.as_secs());
    while begun.elapsed() < time {
        let cut = links.cut(place)?;
        sleep(CUT).await;
        drop(cut);
        sleep(EVERY - CUT).await;
        progress.reach(begun.elapsed().as_secs());
    }
    progress.finish();
    sleep(AFTERMATH).await;
    let flapped = Change::of(&before, &leads(bench, &admin).await?, store_id);

    let before = leads(bench, &admin).await?;
    say(&format!("cutting off the store at {address} for {} s", bench.args.away));
    let cut = links.cut(place)?;
    watch("seconds away", Duration::from_secs(bench.args.away)).await;
    let gone = leads(bench, &admin).await?;
    drop(cut);
    sleep(AFTERMATH).await;
    bench.wait_until_led().await?;
    let back = leads(bench, &admin).await?;
    // What it led has other leaders while it is away; nothing may change when it comes back.
    let left = Change::of(&before, &gone, store_id);
    let returned = Change::of(&gone, &back, 0);
    Ok(vec![
        Line::none("store flaps: leader changes elsewhere", flapped.elsewhere),
        Line::none("store flaps: terms grown elsewhere", flapped.terms),
        Line::told("store flaps: leader changes of its own", flapped.own as f64, ""),
        Line::none("store away and back: leader changes elsewhere", left.elsewhere + returned.elsewhere),
        Line::none("store away and back: terms grown elsewhere", left.terms + returned.terms),
        Line::told("store away: regions that got another leader", left.own as f64, ""),
    ])
}

async fn leads(bench: &Bench<'_>, admin: &Admin) -> Result<Leads> {
    let regions = bench.regions(admin).await?;
    let lead = |info: flotilla_proto::placement::RegionInfo| {
        let id = info.region.as_ref().map_or(0, |region| region.id);
        (id, (info.leader.map_or(0, |leader| leader.store_id), info.leader_term))
    };
    Ok(regions.into_iter().map(lead).collect())
}

/// What has happened to leads.
#[derive(Debug, PartialEq)]
struct Change {
    /// Regions that the store did not lead, and that have another leader now.
    elsewhere: u64,
    /// By how much their terms have grown.
    terms: u64,
    /// Regions that it led, and that have another leader, or another term.
    own: u64,
}

impl Change {
    fn of(before: &Leads, after: &Leads, store_id: u64) -> Change {
        let mut change = Change { elsewhere: 0, terms: 0, own: 0 };
        for (region, (leader, term)) in before {
            let Some((leader_now, term_now)) = after.get(region) else { continue };
            if *leader == store_id {
                change.own += u64::from((leader, term) != (leader_now, term_now));
            } else {
                change.elsewhere += u64::from(leader != leader_now);
                change.terms += term_now.saturating_sub(*term);
            }
        }
        change
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_counted_apart_for_what_the_store_led() {
        let before = Leads::from([(1, (1, 6)), (2, (2, 6)), (3, (3, 6)), (4, (3, 6))]);
        let after = Leads::from([(1, (2, 7)), (2, (2, 6)), (3, (2, 8)), (4, (3, 7))]);
        assert_eq!(Change::of(&before, &after, 1), Change { elsewhere: 1, terms: 3, own: 1 });
        assert_eq!(Change::of(&before, &before, 1), Change { elsewhere: 0, terms: 0, own: 0 });
    }
}
