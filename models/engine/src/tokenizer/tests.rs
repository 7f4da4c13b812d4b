use endcap_inference::prompts::{json, mark};
use proptest::prelude::*;

use super::*;

const TEXTS: [&str; 6] = [
    "<themes><diet> vegan;<season> winter<budget> low<favourites> smoked gouda; oat milk;<out>",
    "oat milk oat milk smoked gouda smoked gouda flavor builders for weeknight meals",
    "smoked gouda oat milk winter warmers for weeknight meals flavor builders",
    "winter warmers winter warmers flavor meals vegan vegan snacks snacks",
    "low low budget budget snacks for winter meals",
    "naïve crème brûlée crème brûlée",
];

fn demo() -> Tokenizer {
    demo_tokenizer(TEXTS.into_iter(), 600).unwrap()
}

#[test]
fn every_marker_and_piece_is_one_token_wherever_it_stands() {
    let tokenizer = demo();
    assert!(demo::fixed_is_distinct());
    for piece in mark::ALL.into_iter().chain(json::ALL) {
        let id = tokenizer.id(piece).unwrap();
        assert_eq!(tokenizer.encode(piece).unwrap(), [id], "{piece}");
        assert_eq!(tokenizer.token_bytes(id), piece.as_bytes());
        let inside = tokenizer.encode(&format!(" oat{piece} milk")).unwrap();
        assert!(inside.contains(&id), "{piece} in {inside:?}");
    }
    assert!(tokenizer.is_control(tokenizer.id(mark::END).unwrap()));
    assert!(!tokenizer.is_control(tokenizer.id(mark::ITEM).unwrap()));
    assert!(!tokenizer.is_control(tokenizer.id(json::OPEN).unwrap()));
    assert_eq!(tokenizer.id("<pad>"), Some(0));
}

#[test]
fn a_word_is_the_same_token_behind_a_space_and_behind_a_marker() {
    let tokenizer = demo();
    let word = tokenizer.encode("gouda").unwrap();
    assert_eq!(word.len(), 1, "a frequent word is one token");
    for text in [" gouda", "Gouda", " GOUDA"] {
        assert_eq!(tokenizer.encode(text).unwrap(), word, "{text}");
    }
    let concept = tokenizer.id(mark::CONCEPT).unwrap();
    for text in ["<concept>gouda", "<concept> gouda"] {
        assert_eq!(tokenizer.encode(text).unwrap(), [&[concept], word.as_slice()].concat(), "{text}");
    }
}

#[test]
fn what_the_vocabulary_does_not_know_comes_back_through_bytes() {
    let tokenizer = demo();
    for text in [" 寿司 🍣", " zażółć gęślą", " <0x41> {}", " crème brûlée"] {
        let ids = tokenizer.encode(text).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
        assert!(!ids.contains(&tokenizer.id("<unk>").unwrap()), "{text}");
    }
}

#[test]
fn training_again_and_writing_out_change_nothing() {
    let (one, two) = (demo().to_json().unwrap(), demo().to_json().unwrap());
    assert_eq!(one, two);
    let read = Tokenizer::from_json(one.as_bytes()).unwrap();
    let text = "<keywords><persona> vegan snacks<title> winter meals<concept> oat milk; smoked gouda;<out>";
    assert_eq!(read.encode(text).unwrap(), demo().encode(text).unwrap());
    assert_eq!(read.vocabulary_size(), demo().vocabulary_size());
}

#[test]
fn a_vocabulary_without_room_and_a_broken_file_are_refused() {
    assert!(demo_tokenizer(TEXTS.into_iter(), 281).is_err());
    assert!(matches!(Tokenizer::from_json(b"{}"), Err(TokenizerError::Format(_))));
    let missing = Tokenizer::from_file(Path::new("nowhere/tokenizer.json")).err().unwrap();
    assert!(missing.to_string().contains("nowhere/tokenizer.json"), "{missing}");
    assert!(matches!(demo().encode(&"a".repeat(TEXT_MAX_BYTES + 1)), Err(TokenizerError::TooLong { .. })));
}

/// A byte-level BPE like Llama 3's, with a handful of merges, some of which reach over the borders of a JSON document's texts.
pub(crate) fn byte_level() -> Tokenizer {
    let mut characters: Vec<char> = byte_level_alphabet().into_keys().collect();
    characters.sort_unstable();
    let mut entries: Vec<String> = characters.into_iter().map(String::from).collect();
    let merges =
        ["Ġ o", "Ġo a", "Ġoa t", "Ġ m", "Ġm i", "Ġmi l", "Ġmil k", "\" :", "\": \"", "\" ,", "\", \"", "{ \"", "] }", "a t"];
    entries.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let vocab: serde_json::Map<_, _> = entries.into_iter().enumerate().map(|(i, entry)| (entry, i.into())).collect();
    let end = vocab.len();
    let json = serde_json::json!({
        "version": "1.0",
        "added_tokens": [{"id": end, "content": "<|end_of_text|>", "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn byte_level_tokens_know_their_bytes() {
    let tokenizer = byte_level();
    let ids = tokenizer.encode(" oat milk; é").unwrap();
    assert_eq!(tokenizer.token_bytes(ids[0]), b" oat");
    assert_eq!(tokenizer.token_bytes(ids[1]), b" milk");
    assert_eq!(tokenizer.decode(&ids), " oat milk; é");
    assert!(tokenizer.is_control(tokenizer.id("<|end_of_text|>").unwrap()));
}

/// A WordPiece like MiniLM's, with padding and truncation switched on as published files have them.
fn word_piece() -> Tokenizer {
    let vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "smoked", "gouda", "oat", "##s", "milk"];
    let vocab: serde_json::Map<_, _> = vocab.iter().enumerate().map(|(i, entry)| ((*entry).to_owned(), i.into())).collect();
    let json = serde_json::json!({
        "version": "1.0",
        "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 128}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100, "vocab": vocab},
    });
    Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
}

#[test]
fn encoders_read_framed_texts_without_the_file_s_padding() {
    let tokenizer = word_piece();
    assert_eq!(tokenizer.encode_single("Smoked Gouda oats milk", 512).unwrap(), [2, 4, 5, 6, 7, 8, 3]);
    assert_eq!(tokenizer.encode_single("smoked gouda oats milk", 4).unwrap(), [2, 4, 5, 3]);
    let pair = tokenizer.encode_pair("smoked gouda", "oats milk", 512).unwrap();
    assert_eq!(pair.ids, [2, 4, 5, 3, 6, 7, 8, 3]);
    assert_eq!(pair.types, [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(pair.second, 4..7);
}

#[test]
fn the_longer_text_of_a_pair_is_cut_first() {
    for (a, b, room, kept) in
        [(3, 4, 7, (3, 4)), (2, 9, 8, (2, 6)), (9, 2, 8, (6, 2)), (9, 9, 8, (4, 4)), (9, 9, 7, (3, 4)), (1, 1, 0, (0, 0))]
    {
        assert_eq!(shares(a, b, room), kept, "{a} and {b} in {room}");
    }
}

proptest! {
    #[test]
    fn a_unigram_of_plain_text_comes_back(text in "[a-z0-9'&%.\\-寿éß🍣]{1,12}( [a-z0-9'&%.\\-]{1,12}){0,4}") {
        let tokenizer = demo();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids), format!(" {text}"));
    }
}
