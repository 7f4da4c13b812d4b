//! The ranking service over twins of the models: market, store and policies are real.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, LazyLock},
};

use endcap::{
    lab::closed::{Arm, World, run},
    serve::Models,
};
use endcap_market::{DEMO_SEED, Expected, Market};
use endcap_ranking::{
    ARRANGED, Checks, Ground, Preparer, Ranking, RankingConfig, Request, Row, Storefront, feedback,
    slate::{Key, Slate},
};
use endcap_runtime::{Embedded, EmbeddedConfig, ManualClock, Stamp, Store, Write};
use endcap_schemas::{
    Brief, Budget, Category, CategoryWeight, Cause, ContextChanged, Descriptor, Diet, DietSet, Head, Keyword, Origin, Page,
    PagePublished, Placement, PurchaseMemory, Season, ShownProduct, Theme, UserKey, wire,
};
use endcap_tests::twins::{self, EncoderTwin, JudgeTwin};
use serde_json::json;

use crate::path::market;

const NOW_MS: i64 = 1_750_000_000_000;

/// The demo market, indexed once for all tests.
static MARKET: LazyLock<(tempfile::TempDir, endcap_retrieval::Market, Arc<Market>)> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let indexed = market(&dir.path().join("market"));
    (dir, indexed, Arc::new(Market::generate(DEMO_SEED)))
});

struct Place {
    market: endcap_retrieval::Market,
    demo: Arc<Market>,
    file: Embedded,
    /// Terms that no product may have in its title.
    banned: Vec<String>,
    _dir: tempfile::TempDir,
}

/// What is known of shoppers.
type Known = HashMap<UserKey, ContextChanged>;

fn known(context: ContextChanged) -> Known {
    HashMap::from([(context.head.user.clone(), context)])
}

fn place() -> Place {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::at(NOW_MS));
    let file = Embedded::open(dir.path().join("endcap.db"), EmbeddedConfig::default(), clock).unwrap();
    Place { market: MARKET.1.clone(), demo: MARKET.2.clone(), file, banned: Vec::new(), _dir: dir }
}

impl Place {
    fn service(&self, config: RankingConfig, known: Known) -> (Ranking, Preparer<EncoderTwin, JudgeTwin>) {
        self.service_with(config, known, None)
    }

    fn service_with(
        &self,
        config: RankingConfig,
        known: Known,
        rerank: Option<endcap_ranking::Rerank>,
    ) -> (Ranking, Preparer<EncoderTwin, JudgeTwin>) {
        let fleet = twins::fleet().unwrap();
        let (judge, threshold) = fleet.judge.unwrap();
        let ground = Ground {
            config,
            checks: Checks { banned: self.banned.clone(), threshold },
            market: self.market.clone(),
            store: Arc::new(self.file.clone()),
            policies: Arc::new(self.file.clone()),
            history: Box::new(move |user| Ok(known.get(user).cloned())),
            clock: Arc::new(ManualClock::at(NOW_MS)),
            key: Key::of(None, "demo"),
            rerank,
        };
        Ranking::new(ground, fleet.encoder, judge)
    }

    /// Leaves with enough products for a placement that nothing is wrong with.
    fn leaves(&self) -> Vec<&Category> {
        let all = self.demo.categories.iter();
        all.filter(|leaf| !leaf.age_restricted && leaf.violates.is_empty() && self.demo.products_of(&leaf.name).len() >= 40)
            .collect()
    }

    fn placement(&self, leaf: &str, products: usize) -> Placement {
        let shown = self.demo.products_of(leaf).iter().filter(|product| product.in_stock).take(products);
        let (id, _) = self.market.snapshot().node_term(leaf).unwrap().expect("every leaf is a term");
        Placement {
            theme: Theme {
                title: format!("More {leaf}"),
                intent: format!("stock up on {leaf}"),
                concepts: vec![leaf.to_owned()],
                origin: Origin::Model,
            },
            keywords: vec![Keyword { id, text: leaf.to_owned(), descriptor: Descriptor::Node }],
            products: shown.map(|product| ShownProduct { product: product.id.clone(), score: 0.9 }).collect(),
            retrieved: 40,
        }
    }

    fn put(&self, user: &UserKey, placements: Vec<Placement>) {
        self.put_for(DietSet::NONE, user, placements);
    }

    fn put_for(&self, diets: DietSet, user: &UserKey, placements: Vec<Placement>) {
        let head = head(user);
        let page = Page { persona: "a cook".to_owned(), diets, placements, versions: BTreeMap::new() };
        let stamp = Stamp::of(head.context_ms, head.generation);
        let bytes = wire::encode(&PagePublished { head, page }).unwrap();
        self.file.put_all(&[Write::Page { user: user.clone(), stamp, page: Some(bytes) }], &[]).unwrap();
    }
}

fn head(user: &UserKey) -> Head {
    Head {
        user: user.clone(),
        context_ms: NOW_MS,
        generation: 1,
        cause: Cause { event_id: "e".to_owned(), event_ms: NOW_MS, accepted_ms: NOW_MS },
        expires_ms: NOW_MS,
    }
}

fn history(user: &UserKey, diets: &[Diet], dislikes: &[&str], favourite: &str, bought: &str) -> ContextChanged {
    ContextChanged {
        head: head(user),
        brief: Brief {
            diets: diets.iter().copied().collect(),
            budget: Budget::Middle,
            locale: "en".to_owned(),
            season: Season::Summer,
            dislikes: dislikes.iter().map(|word| (*word).to_owned()).collect(),
            personalise: true,
        },
        favourites: vec![CategoryWeight { category: favourite.to_owned(), weight: 2.0 }],
        recent: vec![PurchaseMemory {
            product: bought.to_owned(),
            name: "it".to_owned(),
            category: favourite.to_owned(),
            count: 2,
            last_ms: NOW_MS,
        }],
    }
}

fn ask(ranking: &Ranking, user: &UserKey, id: &str) -> Storefront {
    ranking.storefront(&Request { user: user.clone(), id: id.to_owned(), rerank: None }).expect("a storefront")
}

fn ids(storefront: &Storefront, row: usize) -> Vec<&str> {
    storefront.placements[row].products.iter().map(|product| product.card.id.as_str()).collect()
}

#[test]
fn a_page_is_ranked_with_what_nominators_bring_in_and_nothing_that_fails_a_check() {
    let place = place();
    let (ada, leaves) = (UserKey::of("ada"), place.leaves());
    let (first, second) = (leaves[0].name.as_str(), leaves[1].name.as_str());
    place.put(&ada, vec![place.placement(first, 6), place.placement(second, 20)]);
    let bought = place.demo.products_of(second).iter().find(|product| product.in_stock).unwrap();
    let (ranking, preparer) = place.service(RankingConfig::default(), known(history(&ada, &[], &[], second, &bought.id)));

    let before = ask(&ranking, &ada, "one");
    assert_eq!((before.policy, before.reranked, before.is_default, before.context_ms), (0, false, false, Some(NOW_MS)));
    let row = |storefront: &Storefront, leaf: &str| {
        storefront.placements.iter().position(|placement| placement.title.ends_with(leaf)).expect("the placement")
    };
    assert_eq!(row(&before, second), 0, "what the shopper likes comes first");
    assert_eq!(before.placements[row(&before, first)].products.len(), 6, "at once there is what the page has");
    preparer.catch_up();
    let after = ask(&ranking, &ada, "one");
    assert_eq!(after, ask(&ranking, &ada, "one"), "a request has one answer");
    assert!(after.placements[row(&after, first)].products.len() > 6, "then what nominators bring in");
    for placement in &after.placements {
        assert!(placement.products.len() <= 20 && placement.expected.is_finite());
        for shown in &placement.products {
            let product = place.demo.product(&shown.card.id).unwrap();
            assert!(product.in_stock && !product.age_restricted && shown.relevance >= 0.5, "{shown:?}");
            assert!(!shown.nominators.is_empty() && shown.score.is_finite() && shown.bonus > 0.0, "{shown:?}");
        }
        let bounds: Vec<f64> = placement.products.iter().map(|shown| shown.score + shown.bonus).collect();
        assert!(placement.propensity.is_some() || bounds.windows(2).all(|pair| pair[0] >= pair[1] - 1e-12), "{bounds:?}");
    }
    let all: Vec<&str> =
        after.placements.iter().flat_map(|placement| &placement.products).flat_map(|shown| shown.nominators.clone()).collect();
    for nominator in ["keyword", "embedding", "popularity", "history"] {
        assert!(all.contains(&nominator), "{nominator} brings nothing in: {all:?}");
    }
}

#[test]
fn what_was_found_for_a_placement_serves_every_shopper_whose_page_has_it() {
    let place = place();
    let leaf = &place.leaves()[0].name;
    let (ada, bob) = (UserKey::of("ada"), UserKey::of("bob"));
    let (mut first, mut second) = (place.placement(leaf, 6), place.placement(leaf, 12));
    second.products.drain(..6);
    place.put(&ada, vec![first.clone()]);
    place.put(&bob, vec![second.clone()]);
    let (ranking, preparer) = place.service(RankingConfig { pool_max: 40, ..RankingConfig::default() }, Known::new());
    ask(&ranking, &ada, "one");
    preparer.catch_up();
    assert!(ids(&ask(&ranking, &bob, "one"), 0).len() > 6, "what was found for one serves the other");
    // What is another placement is looked up anew: one of another theme, of other keywords, of another kind of keyword, or for other diets.
    let mut third = second.clone();
    first.theme.title = "Another".to_owned();
    second.keywords.clear();
    third.keywords[0].descriptor = Descriptor::Query;
    let fourth = (place.placement(leaf, 6), [Diet::Vegan].into_iter().collect());
    let others = [(first, DietSet::NONE), (second, DietSet::NONE), (third, DietSet::NONE), fourth];
    for (user, (placement, diets)) in ["cy", "dee", "eve", "fay"].into_iter().zip(others) {
        place.put_for(diets, &UserKey::of(user), vec![placement]);
        assert!(ids(&ask(&ranking, &UserKey::of(user), "one"), 0).len() <= 6, "{user}");
    }
}

#[test]
fn diets_dislikes_and_banned_terms_are_checked_when_it_is_served() {
    let mut place = place();
    let (ada, demo) = (UserKey::of("ada"), &place.demo);
    let with = |diet: Diet| {
        let leaf = demo.categories.iter().find(|leaf| {
            let products = demo.products_of(&leaf.name);
            let hit = products.iter().take(15).filter(|product| product.violates.contains(diet)).count();
            !leaf.age_restricted && (2..12).contains(&hit) && products.len() >= 40
        });
        leaf.expect("a mixed leaf").name.clone()
    };
    let leaf = with(Diet::NutFree);
    let fitting = demo.products_of(&leaf).iter().take(20);
    let fitting = fitting.filter(|product| product.in_stock && !product.violates.contains(Diet::NutFree));
    let mut words: Vec<String> = fitting.map(|product| product.name.split(' ').next().unwrap().to_owned()).collect();
    words.dedup();
    let [word, banned] = [words[0].clone(), words.into_iter().rev().find(|other| !other.is_empty()).unwrap()];
    assert_ne!(word, banned);
    let mut named_so = place.placement(&leaf, 20);
    named_so.theme.title = format!("Calls for {word}");
    place.put(&ada, vec![place.placement(&leaf, 20), named_so]);
    place.banned = vec![banned.clone()];
    let (ranking, preparer) = place.service(
        RankingConfig { products_min: 1, ..RankingConfig::default() },
        known(history(&ada, &[Diet::NutFree], &[&word], &leaf, "none")),
    );
    for round in 0..2 {
        let storefront = ask(&ranking, &ada, "one");
        assert!(!storefront.placements.is_empty() && storefront.diets == ["nut free"] && !storefront.is_default, "round {round}");
        assert!(storefront.placements.iter().all(|placement| !placement.title.contains(&word)), "round {round}: {word}");
        for shown in storefront.placements.iter().flat_map(|placement| &placement.products) {
            let product = demo.product(&shown.card.id).unwrap();
            assert!(!product.violates.contains(Diet::NutFree), "round {round}: {shown:?}");
            let has = |word: &str| product.name.split(' ').any(|part| part == word);
            assert!(!has(&word) && !has(&banned), "round {round}, {word}, {banned}: {shown:?}");
        }
        preparer.catch_up();
    }
}

#[test]
fn whoever_has_no_page_gets_the_default_one_and_whoever_keeps_diets_a_fitting_one() {
    let place = place();
    let bea = UserKey::of("bea");
    for diets in [&[][..], &[Diet::Vegan, Diet::GlutenFree]] {
        let (ranking, preparer) = place.service(RankingConfig::default(), known(history(&bea, diets, &[], "tea", "none")));
        preparer.catch_up();
        let storefront = ask(&ranking, &bea, "one");
        assert!(storefront.is_default && storefront.placements.len() >= 4, "{} placements", storefront.placements.len());
        let products = storefront.placements.iter().flat_map(|placement| &placement.products);
        let kept: DietSet = diets.iter().copied().collect();
        assert!(products.clone().count() > 20);
        assert!(products.into_iter().all(|shown| !place.demo.product(&shown.card.id).unwrap().violates.intersects(kept)));
    }
}

#[test]
fn consent_that_was_taken_back_counts_before_the_next_page_and_what_is_no_page_is_none() {
    let place = place();
    let ada = UserKey::of("ada");
    place.put(&ada, vec![place.placement(&place.leaves()[0].name, 20)]);
    let mut context = history(&ada, &[], &[], "tea", "none");
    for (personalise, is_default) in [(true, false), (false, true)] {
        context.brief.personalise = personalise;
        let (ranking, _) = place.service(RankingConfig::default(), known(context.clone()));
        assert_eq!(ask(&ranking, &ada, "one").is_default, is_default, "consent: {personalise}");
    }
    let (ranking, _) = place.service(RankingConfig::default(), Known::new());
    for (n, bytes) in (1..).zip([&b""[..], b"\xc3\x01", b"no page at all", &[0xff; 3_000]]) {
        let stamp = Stamp::of(NOW_MS + n, 1);
        place.file.put_all(&[Write::Page { user: ada.clone(), stamp, page: Some(bytes.to_vec()) }], &[]).unwrap();
        assert!(ask(&ranking, &ada, "one").is_default, "{bytes:?}");
    }
}

#[test]
fn shuffled_requests_carry_their_odds_and_every_slate_tells_what_was_nominated() {
    let place = place();
    let ada = UserKey::of("ada");
    place.put(&ada, vec![place.placement(&place.leaves()[0].name, 20)]);
    let (ranking, preparer) = place.service(RankingConfig { shuffled: 0.3, ..RankingConfig::default() }, Known::new());
    ask(&ranking, &ada, "warm");
    preparer.catch_up();
    let mut shuffled = 0;
    for n in 0..200 {
        let storefront = ask(&ranking, &ada, &format!("request-{n}"));
        let placement = &storefront.placements[0];
        let slate = Slate::read(&placement.slate, ranking.key()).expect("a slate");
        assert_eq!(slate.shown, placement.products.len());
        let shown: Vec<&str> = slate.offers[..slate.shown].iter().map(|offer| offer.product.as_str()).collect();
        assert_eq!(shown, ids(&storefront, 0));
        assert!(slate.offers.len() >= slate.shown && slate.offers.iter().all(|offer| offer.nominators != 0));
        assert_eq!(placement.propensity.is_some(), storefront.shuffled);
        if let Some(odds) = placement.propensity {
            assert!((odds - 1.0 / slate.shown as f64).abs() < 1e-12);
            shuffled += 1;
        }
    }
    assert!((35..90).contains(&shuffled), "{shuffled} of 200 were shuffled, 60 should be");
}

#[test]
fn a_re_ranking_changes_the_order_and_nothing_else_and_one_that_is_none_is_left_out() {
    let place = place();
    let ada = UserKey::of("ada");
    place.put(&ada, vec![place.placement(&place.leaves()[0].name, 8)]);
    let config = RankingConfig { shuffled: 0.0, ..RankingConfig::default() };
    let (plain, _) = place.service(config.clone(), Known::new());
    let plain = ask(&plain, &ada, "one");
    let reverse: fn(&Row<'_>) -> Option<Vec<usize>> = |row| Some((0..row.products.len()).rev().collect());
    let (reversed, _) = place.service_with(config.clone(), Known::new(), Some(Box::new(reverse)));
    let front = ask(&reversed, &ada, "one");
    let (mut first, rest) = (ids(&front, 0), ids(&plain, 0)[ARRANGED..].to_vec());
    assert_eq!(first.split_off(ARRANGED), rest, "only what is in sight first is arranged");
    first.reverse();
    assert_eq!((front.reranked, front.placements[0].reranked, first), (true, true, ids(&plain, 0)[..ARRANGED].to_vec()));
    let slate = Slate::read(&front.placements[0].slate, reversed.key()).unwrap();
    assert_eq!(slate.offers[0].product, ids(&front, 0)[0], "what is told of is what was shown");
    let none = Request { user: ada.clone(), id: "one".to_owned(), rerank: Some(0) };
    assert_eq!(reversed.storefront(&none).unwrap().placements, plain.placements, "whoever asks may do without");
    for wrong in [vec![0; ARRANGED], vec![0, 1], (1..=ARRANGED).collect()] {
        let (ranking, _) = place.service_with(config.clone(), Known::new(), Some(Box::new(move |_| Some(wrong.clone()))));
        assert_eq!(ask(&ranking, &ada, "one").placements, plain.placements);
    }
}

#[test]
fn the_first_rows_are_arranged_and_others_where_they_are_asked_for() {
    let place = place();
    let ada = UserKey::of("ada");
    place.put(&ada, place.leaves().iter().take(7).map(|leaf| place.placement(&leaf.name, 8)).collect());
    let config = RankingConfig { shuffled: 0.0, ..RankingConfig::default() };
    let same: fn(&Row<'_>) -> Option<Vec<usize>> = |row| Some((0..row.products.len()).collect());
    let (ranking, _) = place.service_with(config, Known::new(), Some(Box::new(same)));
    for (rerank, expected) in [(None, 4), (Some(0), 0), (Some(6), 6), (Some(50), 7)] {
        let front = ranking.storefront(&Request { user: ada.clone(), id: "one".to_owned(), rerank }).unwrap();
        let arranged: Vec<bool> = front.placements.iter().map(|placement| placement.reranked).collect();
        assert_eq!(arranged, (0..7).map(|row| row < expected).collect::<Vec<_>>(), "{rerank:?}");
    }
}

#[test]
fn what_is_told_of_a_storefront_is_learnt_from_as_it_was_shown() {
    let place = place();
    let ada = UserKey::of("ada");
    place.put(&ada, vec![place.placement(&place.leaves()[0].name, 8)]);
    let (ranking, _) = place.service(RankingConfig::default(), Known::new());
    let storefront = ask(&ranking, &ada, "one");
    let shown = ids(&storefront, 0);
    let body = json!({ "slate": storefront.placements[0].slate, "impressions": shown, "clicks": [shown[1]] }).to_string();
    let (told, taken) = feedback::read(body.as_bytes(), ranking.key()).unwrap();
    assert_eq!((told.len(), taken.accepted), (1, 1));
    assert!(told[0].check().is_ok() && told[0].served_ms == NOW_MS && told[0].policy == 0);
    assert_eq!(told[0].actions.len(), shown.len() + 1);
    assert!(!serde_json::to_string(&told[0]).unwrap().contains("ada"), "feedback names no shopper");
}

#[test]
fn more_at_once_than_may_be_are_refused_and_a_turn_comes_back() {
    let place = place();
    let (ranking, _) = place.service(RankingConfig { at_once_max: 2, ..RankingConfig::default() }, Known::new());
    let (one, two) = (ranking.enter().expect("a turn"), ranking.enter().expect("a turn"));
    assert!(ranking.enter().is_none() && ranking.enter().is_none());
    drop(one);
    let again = ranking.enter().expect("a turn that came back");
    assert!(ranking.enter().is_none());
    drop((two, again));
}

/// What the last tenth of the rounds was worth, in clicks of a visit.
fn end_of(rounds: &[Expected]) -> f64 {
    let last = &rounds[rounds.len() - rounds.len() / 10..];
    last.iter().map(|expected| expected.clicks).sum::<f64>() / last.len() as f64
}

#[test]
fn shoppers_are_pleased_more_by_a_policy_that_learns_than_by_a_frozen_one() {
    const SEED: u64 = 9;
    let dir = tempfile::tempdir().unwrap();
    let fleet = twins::fleet().unwrap();
    let (judge, threshold) = fleet.judge.unwrap();
    let models = Models { encoder: fleet.encoder, judge, threshold };
    let world = World::new(MARKET.2.clone(), MARKET.1.clone(), SEED, 30, dir.path().to_owned()).unwrap();
    let usual = RankingConfig::default();
    let [frozen, learning, greedy] = Arm::ALL.map(|arm| run(&world, arm, &usual, 40, &models).unwrap());
    let [before, after, greedy] = [&frozen, &learning, &greedy].map(|rounds| end_of(rounds));
    println!("clicks of a visit: frozen {before:.3}, learning {after:.3}, without exploration {greedy:.3}");
    let drift = (frozen[39].clicks / frozen[0].clicks - 1.0).abs();
    assert!(drift < 0.01, "seed {SEED}: whoever learns nothing shows the same, but for ties: {drift}");
    assert!(after > 1.02 * before && greedy > before, "seed {SEED}: {before}, {after}, {greedy}");
    let shop = world.shop(world.policies(Arm::Learning).unwrap(), Arm::Greedy.config(&usual), &models, None).unwrap();
    let known = shop.worth("again").unwrap().clicks;
    assert!(known > 1.02 * before, "seed {SEED}: another process serves the same policy: {known}");
}
