//! The wire form of messages: Avro in single-object encoding.
//!
//! A value is `C3 01`, the eight bytes of its writer's schema's fingerprint (CRC-64-AVRO, little endian), and the Avro body. The reader
//! finds the writer's schema among all versions that the topic ever had and brings the value to today's shape. Values in
//! Confluent's framing (`00` and a four-byte id) are recognised, and refused until a registry is there to ask.

use std::{
    any::TypeId,
    collections::HashMap,
    io::Read,
    sync::{OnceLock, PoisonError, RwLock},
};

use apache_avro::{
    Schema, from_value,
    rabin::Rabin,
    reader::datum::GenericDatumReader,
    schema_compatibility::{Compatibility, SchemaCompatibility},
    writer::datum::GenericDatumWriter,
};
use thiserror::Error;

use crate::{
    ContextChanged, Feedback, Head, KeywordsChosen, Message, PagePublished, ShopperEvent, ThemesDeduped, ThemesWritten, UserKey,
    topics::{Lane, Topic},
};

/// Largest value that is written or read, in bytes.
pub const VALUE_MAX_BYTES: usize = 1024 * 1024;

/// Marker of Avro's single-object encoding, version 1.
const SINGLE_OBJECT: [u8; 2] = [0xC3, 0x01];
/// First byte of Confluent's framing.
const CONFLUENT: u8 = 0x00;
/// Marker and fingerprint.
const HEADER_BYTES: usize = 10;

/// Why a value could not be written or read. None of these mends itself: a record with such a value is a dead letter.
#[derive(Debug, Error)]
pub enum WireError {
    /// The value is in Confluent's framing.
    #[error(
        "value is framed for a schema registry under id {0}, which no registry that is configured knows: configure the one that does, or write the value in Avro single-object encoding"
    )]
    NeedsRegistry(u32),
    /// The first bytes are those of no framing that is known.
    #[error("value starts with {0}, which is no known framing (C3 01 is Avro single-object encoding)")]
    Framing(String),
    /// No version of the topic's schema has this fingerprint.
    #[error(
        "no version of the schema of {topic} has the fingerprint {fingerprint:016x}: it was written by a newer release or for another topic"
    )]
    UnknownSchema {
        /// The topic that was read.
        topic: Topic,
        /// CRC-64-AVRO of the writer's schema.
        fingerprint: u64,
    },
    /// The value ends early, or bytes are left over.
    #[error("value of {topic} is cut off or too long: its body has {got} bytes and {read} of them belong to it")]
    Length {
        /// The topic that was read.
        topic: Topic,
        /// Bytes of the body.
        got: usize,
        /// Bytes that the schema accounts for.
        read: usize,
    },
    /// The value is larger than the limit.
    #[error("value of {topic} has {got} bytes, at most {VALUE_MAX_BYTES} are taken")]
    TooLarge {
        /// The topic.
        topic: Topic,
        /// Its size in bytes.
        got: usize,
    },
    /// The body does not follow its schema.
    #[error("value of {topic} does not follow its schema: {cause}")]
    Body {
        /// The topic.
        topic: Topic,
        /// What the decoder says.
        cause: String,
    },
}

/// Writes `message`: marker, fingerprint of [`Message::SCHEMA`], body.
///
/// # Errors
/// [`WireError::TooLarge`] beyond [`VALUE_MAX_BYTES`]; [`WireError::Body`] where the message does not fit its schema.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, WireError> {
    let codec = codec::<M>();
    let mut bytes = Vec::with_capacity(1_024);
    bytes.extend_from_slice(&SINGLE_OBJECT);
    bytes.extend_from_slice(&codec.fingerprint.to_le_bytes());
    codec.writer.write_ser(&mut bytes, message).map_err(body::<M>)?;
    if bytes.len() > VALUE_MAX_BYTES {
        return Err(WireError::TooLarge { topic: M::TOPIC, got: bytes.len() });
    }
    Ok(bytes.as_slice().to_vec()) // without the room that was left: a batch of them waits for its commit
}

/// Reads a message that any version of its topic's schema wrote.
///
/// # Errors
/// [`WireError`] for anything but a whole value of a known version; the message says what was found.
pub fn decode<M: Message>(bytes: &[u8]) -> Result<M, WireError> {
    if bytes.len() > VALUE_MAX_BYTES {
        return Err(WireError::TooLarge { topic: M::TOPIC, got: bytes.len() });
    }
    let fingerprint = fingerprint_of(bytes)?;
    let codec = codec::<M>();
    let mut rest = Body { bytes: &bytes[HEADER_BYTES..], starved: false };
    let message = if fingerprint == codec.fingerprint {
        codec.reader.read_deser(&mut rest)
    } else {
        let past = codec.past.get(&fingerprint).ok_or(WireError::UnknownSchema { topic: M::TOPIC, fingerprint })?;
        past.read_value(&mut rest).and_then(|value| from_value(&value))
    };
    let got = bytes.len() - HEADER_BYTES;
    if rest.starved || (message.is_ok() && !rest.bytes.is_empty()) {
        return Err(WireError::Length { topic: M::TOPIC, got, read: got - rest.bytes.len() });
    }
    message.map_err(body::<M>)
}

/// Every version of the schema of `topic` that this release knows, oldest first.
pub fn schemas_of(topic: Topic) -> Vec<&'static str> {
    fn of<M: Message>() -> Vec<&'static str> {
        M::PAST.iter().copied().chain([M::SCHEMA]).collect()
    }
    let known = [
        (ShopperEvent::TOPIC, of::<ShopperEvent>()),
        (ContextChanged::TOPIC, of::<ContextChanged>()),
        (ThemesWritten::TOPIC, of::<ThemesWritten>()),
        (KeywordsChosen::TOPIC, of::<KeywordsChosen>()),
        (ThemesDeduped::TOPIC, of::<ThemesDeduped>()),
        (PagePublished::TOPIC, of::<PagePublished>()),
        (Feedback::TOPIC, of::<Feedback>()),
    ];
    known.into_iter().find(|(known, _)| *known == topic.on(Lane::Live)).map(|(_, schemas)| schemas).unwrap_or_default()
}

/// Fingerprint (CRC-64-AVRO) of a schema's canonical form: what stands in the header of the values that it wrote.
///
/// # Errors
/// What is wrong with the schema, in the words of the parser.
pub fn fingerprint_of_schema(schema: &str) -> Result<u64, String> {
    Schema::parse_str(schema).map(|schema| fingerprint(&schema)).map_err(|error| error.to_string())
}

/// A value in single-object encoding, taken apart: its writer's schema's fingerprint and its body. `None` for every other framing.
pub fn parts_of(value: &[u8]) -> Option<(u64, &[u8])> {
    Some((fingerprint_of(value).ok()?, &value[HEADER_BYTES..]))
}

/// The value in single-object encoding that has these parts.
pub fn value_of(fingerprint: u64, body: &[u8]) -> Vec<u8> {
    [&SINGLE_OBJECT[..], &fingerprint.to_le_bytes(), body].concat()
}

/// Whether `reader` can read all that `writer` wrote (Avro's BACKWARD compatibility of one pair).
///
/// # Errors
/// What stands against it, in the words of the checker or parser.
pub fn check_backward(writer: &str, reader: &str) -> Result<(), String> {
    let parse = |text| Schema::parse_str(text).map_err(|error| error.to_string());
    match SchemaCompatibility::can_read(&parse(writer)?, &parse(reader)?).map_err(|error| error.to_string())? {
        Compatibility::Full => Ok(()),
        Compatibility::Partial => {
            Err("it reads some of the values alone: an enum has lost a symbol or a union a branch".to_owned())
        }
    }
}

fn body<M: Message>(error: apache_avro::Error) -> WireError {
    WireError::Body { topic: M::TOPIC, cause: error.to_string() }
}

/// The fingerprint in a value's header.
fn fingerprint_of(bytes: &[u8]) -> Result<u64, WireError> {
    match bytes {
        [CONFLUENT, id @ ..] if id.len() >= 4 => Err(WireError::NeedsRegistry(u32::from_be_bytes([id[0], id[1], id[2], id[3]]))),
        [a, b, rest @ ..] if [*a, *b] == SINGLE_OBJECT && rest.len() >= 8 => {
            Ok(u64::from_le_bytes(rest[..8].try_into().expect("the guard left eight bytes")))
        }
        _ => {
            let start: Vec<String> = bytes.iter().take(2).map(|byte| format!("{byte:02X}")).collect();
            Err(WireError::Framing(if start.is_empty() { "nothing".to_owned() } else { start.join(" ") }))
        }
    }
}

/// A body that remembers whether more was asked of it than it has: of an earlier version, the decoder reads an absent string or option as null.
struct Body<'a> {
    bytes: &'a [u8],
    starved: bool,
}

impl Read for Body<'_> {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        self.starved |= self.bytes.len() < into.len();
        self.bytes.read(into)
    }
}

/// What writes and reads one message type: parsed once per process, and kept for as long as it runs.
struct Codec {
    fingerprint: u64,
    writer: GenericDatumWriter<'static>,
    /// Of values that today's schema wrote: straight into the message.
    reader: GenericDatumReader<'static>,
    /// Of those of earlier versions, by fingerprint: they are brought to today's schema first.
    past: HashMap<u64, GenericDatumReader<'static>>,
}

impl Codec {
    fn of<M: Message>() -> Self {
        // Caps what a forged length can make the decoder reserve; the first caller in a process sets it for all. It holds for texts, and for lists under
        // an earlier schema (some 18,000 items); lists under today's end with the body, as no schema has items without bytes.
        apache_avro::util::max_allocation_bytes(VALUE_MAX_BYTES);
        let fault = |error: apache_avro::Error| -> ! { panic!("schema of {} is valid: {error}", M::TOPIC) };
        let parse = |text| &*Box::leak(Box::new(Schema::parse_str(text).unwrap_or_else(|error| fault(error))));
        let schema = parse(M::SCHEMA);
        let past = M::PAST.iter().map(|text| parse(text)).map(|past| {
            let reader = GenericDatumReader::builder(past).reader_schema(schema).build();
            (fingerprint(past), reader.unwrap_or_else(|error| fault(error)))
        });
        Self {
            fingerprint: fingerprint(schema),
            writer: GenericDatumWriter::builder(schema).build().unwrap_or_else(|error| fault(error)),
            reader: GenericDatumReader::builder(schema).build().unwrap_or_else(|error| fault(error)),
            past: past.collect(),
        }
    }
}

fn fingerprint(schema: &Schema) -> u64 {
    let bytes = schema.fingerprint::<Rabin>().bytes;
    u64::from_le_bytes(bytes.as_slice().try_into().expect("CRC-64-AVRO has eight bytes"))
}

/// The codec of `M`.
fn codec<M: Message>() -> &'static Codec {
    static CODECS: OnceLock<RwLock<HashMap<TypeId, &'static Codec>>> = OnceLock::new();
    let codecs = CODECS.get_or_init(RwLock::default);
    let name = TypeId::of::<M>();
    if let Some(codec) = codecs.read().unwrap_or_else(PoisonError::into_inner).get(&name) {
        return codec;
    }
    codecs.write().unwrap_or_else(PoisonError::into_inner).entry(name).or_insert_with(|| Box::leak(Box::new(Codec::of::<M>())))
}

macro_rules! message {
    ($type:ty, $topic:ident, $schema:literal $(, past $past:literal)*) => {
        impl Message for $type {
            const TOPIC: Topic = Topic::$topic;
            const SCHEMA: &'static str = include_str!(concat!("../avro/", $schema, ".avsc"));
            const PAST: &'static [&'static str] = &[$(include_str!(concat!("../avro/past/", $schema, ".", $past, ".avsc"))),*];

            fn head(&self) -> Option<&Head> {
                Some(&self.head)
            }

            fn user(&self) -> UserKey {
                self.head.user.clone()
            }
        }
    };
}

message!(ContextChanged, CONTEXTS, "endcap.context-changed.v1");
message!(ThemesWritten, THEMES, "endcap.themes-written.v1", past "1");
message!(KeywordsChosen, KEYWORDS, "endcap.keywords-chosen.v1", past "1");
message!(ThemesDeduped, DEDUPED, "endcap.themes-deduped.v1", past "1");
message!(PagePublished, PAGES, "endcap.page-published.v1");

impl Message for ShopperEvent {
    const TOPIC: Topic = Topic::EVENTS;
    const SCHEMA: &'static str = include_str!("../avro/endcap.shopper-events.v1.avsc");

    fn head(&self) -> Option<&Head> {
        None
    }

    fn user(&self) -> UserKey {
        self.key()
    }
}

impl Message for Feedback {
    const TOPIC: Topic = Topic::FEEDBACK;
    const SCHEMA: &'static str = include_str!("../avro/endcap.feedback.v1.avsc");

    fn head(&self) -> Option<&Head> {
        None
    }

    fn user(&self) -> UserKey {
        Self::key()
    }
}
