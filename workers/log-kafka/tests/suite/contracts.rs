//! The contracts of the borders, run against a real broker with several partitions.

use endcap_log_kafka::KafkaSettings;
use endcap_runtime::{
    Broker, Log,
    contract::{LogUnderTest, check_broker, check_full, check_log},
};
use endcap_schemas::topics::Topic;

use crate::server::{Server, address, settings, unique};

impl LogUnderTest for Server {
    fn consumer(&self, group: &str, topic: Topic) -> Box<dyn Log> {
        Box::new(self.elsewhere(&unique()).log(group, topic).expect("a consumer"))
    }

    fn broker(&self) -> &dyn Broker {
        &self.kafka
    }
}

fn fresh() -> Server {
    Server::fresh(3).expect("a broker was named before")
}

#[test]
fn the_kafka_log_keeps_its_contract() {
    if address("ENDCAP_TEST_KAFKA").is_some() {
        check_log(fresh);
    }
}

#[test]
fn the_kafka_broker_keeps_its_contract() {
    if let Some(broker) = address("ENDCAP_TEST_KAFKA") {
        check_broker(fresh);
        check_full(|| Server::with(KafkaSettings { waiting_max: 3, ..settings(&broker) }, 3));
    }
}
