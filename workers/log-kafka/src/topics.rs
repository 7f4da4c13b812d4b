//! The topics of the path: asking a cluster what it lacks, and making it so.

use std::{
    collections::BTreeMap,
    fmt, thread,
    time::{Duration, Instant},
};

use endcap_runtime::LogError;
use rdkafka::{
    admin::{
        AdminClient, AdminOptions, AlterConfig, ConfigSource, NewTopic, OwnedResourceSpecifier, ResourceSpecifier,
        TopicReplication,
    },
    error::{KafkaError, RDKafkaErrorCode},
};

use crate::{
    KafkaConfig,
    client::{self, Watch},
    names::Names,
    plan::{Declared, Found, Plan, Step, TopicSettings, declared, steps},
};

/// How often it is looked whether the brokers know what was done.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Declares the topics.
pub struct Topics {
    admin: AdminClient<Watch>,
    timeout: Duration,
    declared: Vec<Declared>,
}

impl Topics {
    /// Connects.
    ///
    /// # Errors
    /// [`LogError::Refused`] for settings out of range, and where a login is not accepted; [`LogError::Unavailable`] when no broker answers.
    pub fn connect(config: &KafkaConfig, settings: &TopicSettings) -> Result<Self, LogError> {
        let faults = settings.check();
        if !faults.is_empty() {
            return Err(LogError::Refused(faults.join("; ")));
        }
        let timeout = config.request_timeout();
        client::connect(config, timeout)?;
        let admin = client::admin(config)?;
        Ok(Self { admin, timeout, declared: declared(&Names::of(config.settings()), settings) })
    }

    /// What differs.
    ///
    /// # Errors
    /// [`LogError`] when the cluster does not answer.
    pub fn plan(&self) -> Result<Plan, LogError> {
        let found = self.found()?;
        Ok(Plan { steps: self.declared.iter().flat_map(|topic| steps(topic, found.get(&topic.name))).collect() })
    }

    /// Makes it so and answers what was done. With an obstacle nothing is done: topics that fit together badly are worse than none.
    ///
    /// # Errors
    /// [`LogError::Refused`] with the first obstacle; [`LogError`] when the cluster refuses a step or does not answer. Steps before it are done;
    /// doing it again does the rest.
    pub fn apply(&self) -> Result<Plan, LogError> {
        let plan = self.plan()?;
        if let Some(first) = plan.obstacles().next() {
            let more = match plan.obstacles().count() - 1 {
                0 => String::new(),
                more => format!("; {more} more, which `endcap topics plan` lists"),
            };
            return Err(LogError::Refused(format!("{first}{more}")));
        }
        self.create(&plan)?;
        self.change(&plan)?;
        Ok(plan)
    }

    fn options(&self) -> AdminOptions {
        AdminOptions::new().request_timeout(Some(self.timeout)).operation_timeout(Some(self.timeout))
    }

    fn create(&self, plan: &Plan) -> Result<(), LogError> {
        let wanted = |name: &str| plan.steps.iter().any(|step| matches!(step, Step::Create { topic, .. } if topic == name));
        let new: Vec<NewTopic<'_>> = self
            .declared
            .iter()
            .filter(|topic| wanted(&topic.name))
            .map(|topic| {
                let new = NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication));
                topic.configs.iter().fold(new, |new, (key, value)| new.set(key, value))
            })
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let made = pollster::block_on(self.admin.create_topics(&new, &self.options()));
        for each in made.map_err(|error| client::failure("cannot create topics", &error))? {
            match each {
                // Somebody else was faster: the next plan tells whether it fits.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((topic, code)) => return Err(client::failure(&format!("cannot create {topic}"), &KafkaError::AdminOp(code))),
            }
        }
        self.wait_until("the new topics", |topics| Ok(topics.found()?.len() == topics.declared.len()))
    }

    /// Waits until the brokers tell of what was done: they learn of it a moment later.
    fn wait_until(&self, what: &str, known: impl Fn(&Self) -> Result<bool, LogError>) -> Result<(), LogError> {
        let deadline = Instant::now() + self.timeout;
        while !known(self)? {
            if Instant::now() >= deadline {
                return Err(LogError::Unavailable(format!("{what} are not known everywhere after {:?}", self.timeout)));
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Kafka replaces all of a topic's own settings at once, so those that somebody else has set are set again.
    fn change(&self, plan: &Plan) -> Result<(), LogError> {
        let mut changes: BTreeMap<&str, BTreeMap<&str, &str>> = BTreeMap::new();
        for step in &plan.steps {
            if let Step::Change { topic, key, to, .. } = step {
                changes.entry(topic).or_default().insert(key, to);
            }
        }
        if changes.is_empty() {
            return Ok(());
        }
        let found = self.found()?;
        let alter: Vec<AlterConfig<'_>> = changes
            .iter()
            .map(|(topic, changes)| {
                let own = found.get(*topic).into_iter().flat_map(|found| &found.configs).filter(|(_, (_, own))| *own);
                let kept = own.map(|(key, (value, _))| (key.as_str(), value.as_str()));
                let all = kept.chain(changes.iter().map(|(key, value)| (*key, *value)));
                all.fold(AlterConfig::new(ResourceSpecifier::Topic(topic)), |alter, (key, value)| alter.set(key, value))
            })
            .collect();
        let made = pollster::block_on(self.admin.alter_configs(&alter, &self.options()));
        for each in made.map_err(|error| client::failure("cannot change topics", &error))? {
            each.map_err(|(topic, code)| client::failure(&format!("cannot change {topic:?}"), &KafkaError::AdminOp(code)))?;
        }
        self.wait_until("the new settings", |topics| {
            Ok(!topics.plan()?.steps.iter().any(|step| matches!(step, Step::Change { .. })))
        })
    }

    /// Those of the declared topics that are there.
    fn found(&self) -> Result<BTreeMap<String, Found>, LogError> {
        let metadata = self
            .admin
            .inner()
            .fetch_metadata(None, self.timeout)
            .map_err(|error| client::failure("cannot list the topics", &error))?;
        let mut found: BTreeMap<String, Found> = BTreeMap::new();
        for topic in metadata.topics().iter().filter(|topic| self.declared.iter().any(|own| own.name == topic.name())) {
            let partitions = i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX);
            let copies = topic.partitions().first().map_or(0, |partition| partition.replicas().len());
            let replication = i32::try_from(copies).unwrap_or(i32::MAX);
            if partitions == 0 || topic.error().is_some() {
                continue; // named somewhere, but not there yet
            }
            found.insert(topic.name().to_owned(), Found { partitions, replication, configs: BTreeMap::new() });
        }
        self.describe(&mut found)?;
        Ok(found)
    }

    fn describe(&self, found: &mut BTreeMap<String, Found>) -> Result<(), LogError> {
        let names: Vec<String> = found.keys().cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let asked: Vec<ResourceSpecifier<'_>> = names.iter().map(|name| ResourceSpecifier::Topic(name)).collect();
        let told = pollster::block_on(self.admin.describe_configs(&asked, &self.options()));
        let told = told.map_err(|error| client::failure("cannot ask for the topics' settings", &error))?;
        for resource in told {
            let resource =
                resource.map_err(|code| client::failure("cannot ask for a topic's settings", &KafkaError::AdminOp(code)))?;
            let OwnedResourceSpecifier::Topic(name) = resource.specifier else { continue };
            let entries = resource.entries.into_iter().filter_map(|entry| {
                let own = entry.source == ConfigSource::DynamicTopic;
                Some((entry.name, (entry.value?, own)))
            });
            found.entry(name).and_modify(|found| found.configs = entries.collect());
        }
        Ok(())
    }
}

impl fmt::Debug for Topics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topics").field("declared", &self.declared).finish_non_exhaustive()
    }
}
