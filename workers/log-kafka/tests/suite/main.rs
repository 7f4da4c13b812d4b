//! The Kafka side against a real broker: its contracts, groups whose consumers come and go, crashes of real processes, logins, topics.
//!
//! Where `ENDCAP_TEST_KAFKA` names no broker a test says that it is skipped; with `ENDCAP_REQUIRE_SERVICES=1` it fails instead.

mod access;
mod contracts;
mod crash;
mod dead_letters;
mod groups;
mod outage;
mod registry;
mod server;
mod tallies;
mod tools;
mod topics;
mod toy;
