//! How many copies a keyspace keeps of its rows, and whether that is what is asked for. Keyspaces outlive configurations, and may be made by
//! other means than a migration.

use std::collections::{BTreeMap, BTreeSet};

use scylla::cluster::{ClusterState, metadata::Strategy};

use crate::config::{Replication, ScyllaConfig};

/// Copies by data centre; where there are none it is not named.
type Copies = BTreeMap<String, u32>;

/// A keyspace's replication, as a statement has it.
pub(crate) fn statement(replication: &Replication) -> String {
    let copies = match replication {
        Replication::Everywhere(copies) => format!("'replication_factor': {copies}"),
        Replication::PerDatacenter(copies) => {
            copies.iter().map(|(datacenter, copies)| format!("'{datacenter}': {copies}")).collect::<Vec<_>>().join(", ")
        }
    };
    format!("{{'class': 'NetworkTopologyStrategy', {copies}}}")
}

/// What the keyspace keeps where that is not what `config` asks for, and what changes it. `None` also where there is no keyspace.
pub(crate) fn difference(cluster: &ClusterState, config: &ScyllaConfig) -> Option<String> {
    let strategy = &cluster.get_keyspace(&config.keyspace)?.strategy;
    let datacenters = datacenters(cluster);
    differing(strategy, &config.replication, &datacenters).map(|kept| {
        let (keyspace, wanted) = (&config.keyspace, statement(&config.replication));
        format!(
            "keyspace `{keyspace}` keeps {kept}, which is not what `replication` asks for: `ALTER KEYSPACE {keyspace} WITH replication = {wanted}` \
             changes that, then repair every server"
        )
    })
}

/// What the keyspace of `config` keeps where none of it is in the data centre that is to be asked, as far as its strategy tells.
pub(crate) fn none_near(cluster: &ClusterState, config: &ScyllaConfig) -> Option<String> {
    let (near, keyspace) = (config.datacenter.as_ref()?, cluster.get_keyspace(&config.keyspace)?);
    is_far(&keyspace.strategy, near).then(|| told(&keyspace.strategy))
}

/// Whether none of the copies is in the data centre `near`; a strategy that knows no data centres does not tell.
fn is_far(strategy: &Strategy, near: &str) -> bool {
    kept(strategy).is_some_and(|copies| !copies.contains_key(near))
}

/// Where servers are.
pub(crate) fn datacenters(cluster: &ClusterState) -> BTreeSet<&str> {
    cluster.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect()
}

fn differing(strategy: &Strategy, wanted: &Replication, datacenters: &BTreeSet<&str>) -> Option<String> {
    let wanted: Copies = match wanted {
        Replication::Everywhere(copies) => datacenters.iter().map(|name| ((*name).to_owned(), *copies)).collect(),
        Replication::PerDatacenter(copies) => copies.clone().into_iter().filter(|(_, copies)| *copies > 0).collect(),
    };
    (kept(strategy) != Some(wanted)).then(|| told(strategy))
}

/// Copies by data centre; `None` for a strategy that knows no data centres.
fn kept(strategy: &Strategy) -> Option<Copies> {
    let Strategy::NetworkTopologyStrategy { datacenter_repfactors } = strategy else { return None };
    let copies = datacenter_repfactors.iter().map(|(name, copies)| (name.clone(), u32::try_from(*copies).unwrap_or(u32::MAX)));
    Some(copies.filter(|(_, copies)| *copies > 0).collect())
}

fn told(strategy: &Strategy) -> String {
    let Some(copies) = kept(strategy) else {
        return match strategy {
            Strategy::SimpleStrategy { replication_factor } => format!("copies by SimpleStrategy: {replication_factor}"),
            Strategy::Other { name, .. } => format!("copies by {name}"),
            _ => "copies by a strategy of its own".to_owned(),
        };
    };
    let copies: Vec<String> = copies.iter().map(|(name, copies)| format!("{copies} in `{name}`")).collect();
    if copies.is_empty() { "no copies at all".to_owned() } else { format!("copies: {}", copies.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network<const N: usize>(copies: [(&str, usize); N]) -> Strategy {
        let datacenter_repfactors = copies.map(|(name, copies)| (name.to_owned(), copies)).into();
        Strategy::NetworkTopologyStrategy { datacenter_repfactors }
    }

    #[test]
    fn copies_are_far_where_their_strategy_names_other_data_centres_alone() {
        assert!(is_far(&network([("west", 3), ("east", 0)]), "east") && is_far(&network([]), "east"));
        assert!(!is_far(&network([("west", 3), ("east", 1)]), "east"));
        assert!(!is_far(&Strategy::SimpleStrategy { replication_factor: 1 }, "east"));
        assert!(!is_far(&Strategy::Other { name: "EverywhereStrategy".to_owned(), data: [].into() }, "east"));
    }

    #[test]
    fn what_a_keyspace_keeps_is_told_where_it_is_not_what_is_asked_for() {
        let per = |copies: &[(&str, u32)]| {
            Replication::PerDatacenter(copies.iter().map(|(name, copies)| ((*name).to_owned(), *copies)).collect())
        };
        let everywhere = Replication::Everywhere;
        for (kept, wanted, told) in [
            (network([("east", 3), ("west", 3)]), everywhere(3), None),
            (network([("east", 3), ("west", 0)]), per(&[("east", 3)]), None),
            (network([("east", 3)]), per(&[("east", 3), ("west", 0)]), None),
            (network([("east", 3)]), everywhere(3), Some("copies: 3 in `east`")),
            (network([("east", 3), ("west", 1)]), everywhere(3), Some("copies: 3 in `east`, 1 in `west`")),
            (network([]), everywhere(1), Some("no copies at all")),
            (Strategy::SimpleStrategy { replication_factor: 3 }, everywhere(3), Some("copies by SimpleStrategy: 3")),
        ] {
            let datacenters = ["east", "west"].into();
            assert_eq!(differing(&kept, &wanted, &datacenters).as_deref(), told, "{kept:?} {wanted:?}");
        }
    }
}
