//! The tables: their migrations, and what depends on the server. Pure; the files lie in `schemas/cql`.

use crate::{config::Replication, copies};

/// One step of the schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Migration {
    /// The version that it leads to.
    pub(crate) version: i32,
    /// Its file, without the ending.
    pub(crate) name: &'static str,
    text: &'static str,
}

/// Tables of the runner itself, made before all others.
pub(crate) const RUNNER: Migration =
    Migration { version: 0, name: "0000_versions", text: include_str!("../../../schemas/cql/0000_versions.cql") };

/// Every step, in order: the n-th leads to version n.
pub(crate) const MIGRATIONS: [Migration; 3] = [
    Migration { version: 1, name: "0001_store", text: include_str!("../../../schemas/cql/0001_store.cql") },
    Migration { version: 2, name: "0002_generations", text: include_str!("../../../schemas/cql/0002_generations.cql") },
    Migration { version: 3, name: "0003_policies", text: include_str!("../../../schemas/cql/0003_policies.cql") },
];

/// The newest version that this release knows.
pub(crate) const KNOWN: i32 = MIGRATIONS[MIGRATIONS.len() - 1].version;

/// Tables with rows of a user, whose partitions an erasure deletes. `erasures` itself is what remains of an erased user.
pub(crate) const USER_TABLES: [&str; 3] = ["pages", "states", "results"];

/// What answers at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ServerKind {
    /// ScyllaDB of this version.
    Scylla(String),
    /// Apache Cassandra, or anything else that speaks CQL.
    Other,
}

impl ServerKind {
    /// The compaction strategy that a table is made with; `None` leaves it to the server. Incremental compaction needs half the space
    /// that size-tiered does; the open-source line of ScyllaDB, which ended with 6.2, does not have it.
    pub(crate) fn compaction(&self) -> Option<&'static str> {
        let (major, _) = self.scylla()?;
        (major >= 2_020).then_some("{'class': 'IncrementalCompactionStrategy'}")
    }

    /// Whether a keyspace must be made without tablets to take lightweight transactions, which number the generations. ScyllaDB has had
    /// tablets since 6.0 (2024.2), and both together since 2025.4.
    pub(crate) fn must_do_without_tablets(&self) -> bool {
        self.scylla()
            .is_some_and(|version| ((6, 0)..(2_000, 0)).contains(&version) || ((2_024, 2)..(2_025, 4)).contains(&version))
    }

    /// Major and minor version of a ScyllaDB.
    fn scylla(&self) -> Option<(u32, u32)> {
        let ServerKind::Scylla(version) = self else { return None };
        let mut parts = version.split(['.', '-']).map(str::parse);
        Some((parts.next()?.ok()?, parts.next()?.ok()?))
    }
}

impl Migration {
    /// Its statements for a server of `kind`, without comments.
    pub(crate) fn statements(&self, kind: &ServerKind) -> Vec<String> {
        let is_text = |line: &&str| !line.trim_start().starts_with("--");
        let text: Vec<&str> = self.text.lines().filter(is_text).collect();
        let statements = text.join("\n");
        let statements = statements.split(';').map(str::trim).filter(|statement| !statement.is_empty());
        statements.map(|statement| for_server(statement, kind)).collect()
    }
}

/// A statement with the server's compaction strategy, where it makes a table.
fn for_server(statement: &str, kind: &ServerKind) -> String {
    match kind.compaction() {
        Some(strategy) if statement.starts_with("CREATE TABLE") => format!("{statement} AND compaction = {strategy}"),
        _ => statement.to_owned(),
    }
}

/// The statement that makes the keyspace on a server of `kind`.
pub(crate) fn create_keyspace(name: &str, replication: &Replication, kind: &ServerKind) -> String {
    let replication = copies::statement(replication);
    let tablets = if kind.must_do_without_tablets() { " AND tablets = {'enabled': false}" } else { "" };
    format!("CREATE KEYSPACE IF NOT EXISTS {name} WITH replication = {replication}{tablets}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Migration> {
        std::iter::once(RUNNER).chain(MIGRATIONS)
    }

    #[test]
    fn versions_count_from_one_and_stand_in_the_names() {
        for (place, migration) in all().enumerate() {
            assert_eq!(migration.version, i32::try_from(place).unwrap(), "{}", migration.name);
            assert!(migration.name.starts_with(&format!("{place:04}_")), "{}", migration.name);
        }
    }

    #[test]
    fn every_statement_may_be_repeated_and_takes_an_option_at_its_end() {
        for migration in all() {
            let statements = migration.statements(&ServerKind::Other);
            assert!(!statements.is_empty(), "{}", migration.name);
            for statement in statements {
                assert!(statement.starts_with("CREATE TABLE IF NOT EXISTS"), "{statement}");
                assert!(statement.contains("\n) WITH "), "{statement}");
                assert!(!statement.to_lowercase().contains("compaction"), "{statement}");
            }
        }
    }

    #[test]
    fn every_table_of_a_user_is_erased() {
        for statement in MIGRATIONS.iter().flat_map(|migration| migration.statements(&ServerKind::Other)) {
            let table = statement.split_whitespace().nth(5).expect("a table has a name");
            let is_of_users = statement.contains("user_id");
            assert_eq!(is_of_users, USER_TABLES.contains(&table) || table == "erasures", "{table}");
        }
    }

    #[test]
    fn the_compaction_strategy_comes_from_the_server() {
        let cases = [("2025.1.2", true), ("2024.2.0-rc1", true), ("6.2.0", false), ("5.4.9", false), ("?", false)];
        for (version, is_incremental) in cases {
            let kind = ServerKind::Scylla(version.to_owned());
            let table = &MIGRATIONS[0].statements(&kind)[0];
            assert_eq!(table.ends_with("AND compaction = {'class': 'IncrementalCompactionStrategy'}"), is_incremental, "{table}");
        }
        assert_eq!(ServerKind::Other.compaction(), None);
    }

    #[test]
    fn a_keyspace_is_replicated_as_it_is_configured() {
        let made = |replication| create_keyspace("shop", &replication, &ServerKind::Other);
        assert_eq!(
            made(Replication::Everywhere(3)),
            "CREATE KEYSPACE IF NOT EXISTS shop WITH replication = {'class': 'NetworkTopologyStrategy', 'replication_factor': 3}"
        );
        let per = Replication::PerDatacenter([("east".to_owned(), 3), ("west".to_owned(), 2)].into());
        assert!(made(per).ends_with("{'class': 'NetworkTopologyStrategy', 'east': 3, 'west': 2}"));
    }

    #[test]
    fn a_keyspace_takes_lightweight_transactions_on_every_server() {
        let cases =
            [("5.4.9", false), ("6.0.0", true), ("6.2.3", true), ("2024.1.5", false), ("2024.2.0", true), ("2025.1.2", true)];
        for (version, without) in cases.into_iter().chain([("2025.4.0-rc1", false), ("2026.1.0", false), ("?", false)]) {
            let made = create_keyspace("shop", &Replication::Everywhere(3), &ServerKind::Scylla(version.to_owned()));
            assert_eq!(made.ends_with(" AND tablets = {'enabled': false}"), without, "{version}: {made}");
        }
    }
}
