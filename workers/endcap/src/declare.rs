//! `endcap topics` and `endcap store`: what a Kafka cluster and a CQL server must hold before a stage starts. Nothing else makes it.

use anyhow::{Context, Result, bail};
use endcap_log_kafka::{Plan, Topics};
use endcap_runtime::SystemClock;
use endcap_store_scylla as store;

use crate::{
    cli::{StoreCommand, TopicsCommand},
    config::Config,
};

/// Says what differs between the topics that the path needs and those of the cluster, or makes them so.
///
/// # Errors
/// When no cluster is configured, it does not answer, or something there cannot be changed.
pub fn topics(command: TopicsCommand, config: &Config) -> Result<()> {
    let Some(kafka) = &config.kafka else {
        bail!(
            "no Kafka is configured: the log in {} needs no topics; name a cluster in the table [kafka]",
            config.data.display()
        );
    };
    let topics = Topics::connect(kafka, &config.topics).context("cannot look at the topics")?;
    let (plan, done) = match command {
        TopicsCommand::Plan => (topics.plan().context("cannot look at the topics")?, false),
        TopicsCommand::Apply => (topics.apply().context("cannot declare the topics")?, true),
    };
    tell(&plan, done)
}

fn tell(plan: &Plan, done: bool) -> Result<()> {
    println!("{plan}");
    let obstacles = plan.obstacles().count();
    match (plan.steps.len() - obstacles, done) {
        (0, _) => {}
        (steps, true) => println!("{steps} steps done"),
        (steps, false) => println!("{steps} steps to do: `endcap topics apply` does them"),
    }
    if obstacles > 0 { bail!("{obstacles} things differ that cannot be changed") } else { Ok(()) }
}

/// Says what a migration of the store would do, or does it.
///
/// # Errors
/// When no server is configured, it does not answer, or it has a newer schema than this release knows.
pub fn store(command: StoreCommand, config: &Config) -> Result<()> {
    let Some(scylla) = &config.scylla else {
        bail!(
            "no store is configured: the one in {} needs no migration; name a server in the table [scylla]",
            config.data.display()
        );
    };
    let plan = match command {
        StoreCommand::Plan => store::plan(scylla)?,
        StoreCommand::Migrate => store::migrate(scylla, &SystemClock::default())?,
    };
    println!("{plan}");
    Ok(())
}
