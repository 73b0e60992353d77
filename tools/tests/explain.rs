//! What `ctl region explain` and `ctl store support` tell of a cluster of real processes.

mod common;

use common::{Cluster, flotilla};
use flotilla_client::Client;
use serde_json::Value;

/// What the command says; JSON.
fn ctl(cluster: &Cluster, line: &[&str]) -> Result<Value, String> {
    let endpoints = cluster.endpoints().join(",");
    let args = [&["ctl", "--output", "json", "--endpoints", &endpoints], line].concat();
    let (answer, error, succeeded) = flotilla(&args, cluster.folder.path());
    if succeeded { Ok(serde_json::from_str(&answer).expect("JSON")) } else { Err(error) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_says_why_it_sleeps_and_is_not_woken_by_the_question() {
    let mut cluster = Cluster::start(3).await;
    let raw = Client::connect(cluster.endpoints()).await.unwrap().raw();
    raw.put("key", "value", None).await.unwrap();
    let region_id = cluster.admin().locate(b"key").await.unwrap().region.unwrap().id.to_string();
    let explain = ["region", "explain", &region_id];
    let peers = |answer: Value| answer.as_array().expect("a list of peers").clone();
    cluster
        .wait_for("the region to sleep", async |cluster| {
            let told = ctl(cluster, &explain).map(peers).unwrap_or_default();
            told.len() == 3 && told.iter().all(|peer| peer["dormant"] == true)
        })
        .await;
    for _ in 0..2 {
        let told = peers(ctl(&cluster, &explain).unwrap());
        assert!(told.iter().all(|peer| peer["dormant"] == true && peer["wakes_for"][0].is_string()), "{told:?}");
        let (leaders, followers): (Vec<_>, Vec<_>) = told.iter().partition(|peer| peer["role"] == "leader");
        let lease = &leaders[0]["lease"];
        assert_eq!((leaders.len(), &lease["state"]), (1, &Value::from("valid")), "{told:?}");
        assert!(lease["left_ms"].as_u64().is_some_and(|left| 0 < left && left <= 900), "{lease}");
        for follower in followers {
            assert_eq!(follower["bound"]["store_id"], leaders[0]["store_id"], "{follower}");
            assert!(follower["bound"]["left_ms"].as_u64().is_some_and(|left| 0 < left && left <= 900), "{follower}");
        }
    }

    let unknown = ctl(&cluster, &["region", "explain", "999999"]).unwrap_err();
    assert!(unknown.contains("no region 999999"), "{unknown}");
    let nonsense = ctl(&cluster, &["region", "explain", "all"]).unwrap_err();
    assert!(nonsense.contains("'all'"), "{nonsense}");

    let support = ctl(&cluster, &["store", "support"]).unwrap();
    for store in support.as_array().expect("a list of stores") {
        for side in ["held", "given"] {
            let others = store[side].as_array().expect("a list");
            assert_eq!(others.len(), 2, "{store}");
            assert!(others.iter().all(|other| other["left_ms"].as_u64() > Some(0)), "{store}");
        }
    }
}
