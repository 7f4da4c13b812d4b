//! Storefronts and feedback from outside: what a running program answers, learns, refuses and describes.

use endcap_ranking::OPENAPI;
use endcap_runtime::{Headers, Outgoing, Policies, Stamp, Store, StoredPolicy, Write};
use endcap_schemas::{Feedback, UserKey, topics::Topic};
use endcap_tests::Endcap;
use serde_json::{Value, json};

use crate::program::{Place, open, place, purchase};

fn up(place: &Place) -> Endcap {
    let args = ["--models", &place.models, "--shoppers", "0", "--debounce", "0s"];
    place.program().up(&args).expect("a running endcap")
}

/// The storefront of `user`, once it is the one of the user's own page.
fn own(up: &Endcap, user: &str) -> Value {
    up.wait_for(&format!("/v1/storefronts/{user}"), |front| (front["is_default"] == false).then(|| front.clone()))
        .expect("a storefront")
}

fn products(front: &Value, row: usize) -> Vec<&str> {
    front["placements"][row]["products"].as_array().unwrap().iter().map(|product| product["id"].as_str().unwrap()).collect()
}

#[test]
fn a_storefront_is_shown_told_of_learnt_from_and_put_back() {
    let place = place();
    let up = up(&place);
    let default = up.get("/v1/storefronts/nobody").unwrap();
    assert_eq!((default.0, &default.1["is_default"], &default.1["policy"]), (200, &json!(true), &json!(0)));
    assert!(default.1["placements"].as_array().unwrap().len() >= 4, "{}", default.1);

    up.post("/v1/events", purchase("e1", "ada", "d00001").to_string()).unwrap();
    let front = own(&up, "ada");
    assert!(front["placements"].as_array().unwrap().len() >= 5 && front["reranked"] == false, "{front}");
    let (slate, shown) = (&front["placements"][0]["slate"], products(&front, 0));
    let told = json!([
        { "slate": slate, "impressions": shown, "clicks": [shown[0]], "cart_adds": [shown[0]] },
        { "slate": "never shown", "impressions": ["d00001"] },
        { "slate": slate, "impressions": ["no-such-product", "nor-this"] },
    ]);
    for round in 0..2 {
        let (status, answer) = up.post("/v1/feedback", told.to_string()).unwrap();
        let counts = [&answer["accepted"], &answer["ignored"], &answer["rejected"]];
        assert_eq!((status, counts), (200, [&json!(1), &json!(1), &json!(1)]), "round {round}: {answer}");
        assert_eq!(answer["results"][2]["reasons"].as_array().unwrap().len(), 2, "all faults are told: {answer}");
    }
    let learnt = up.wait_for("/v1/storefronts/ada", |front| front["policy"].as_i64().filter(|version| *version > 0)).unwrap();
    let both = |answer: &Value| {
        let learner = answer["stages"].as_array()?.iter().find(|stage| stage["name"] == "learner")?.clone();
        (learner["in"] == 2).then_some(learner)
    };
    let learner = up.wait_for("/v1/pipeline", both).expect("the learner's figures");
    assert_eq!(learner["dropped"], json!({ "learnt": 1, "duplicate": 1 }), "what is told twice is learnt once");

    let listed = place.program().succeed(&["policy", "ls"], &[]).unwrap();
    let expected = format!("policy {learnt}: learnt from {} impressions, until 20", shown.len());
    assert!(listed.starts_with(&expected) && listed.ends_with("bytes, serves\n") && listed.lines().count() == 1, "{listed}");
    let said = place.program().succeed(&["policy", "put-back", "0"], &[]).unwrap();
    assert!(said.contains("goes on from policy 0"), "{said}");
    up.wait_for("/v1/storefronts/ada", |front| (front["policy"].as_i64()? > learnt).then_some(())).expect("a newer version");
    let newest = place.program().succeed(&["policy", "ls", "--json"], &[]).unwrap();
    let newest: Value = serde_json::from_str(newest.lines().next().unwrap()).unwrap();
    assert_eq!(newest["impressions"], 0, "{newest}");
    let file = open(&place.data());
    let forgetful = StoredPolicy { ledger: b"torn".to_vec(), ..file.policy(learnt).unwrap().expect("the first policy is kept") };
    file.put_policy(&forgetful).unwrap();
    let listed = place.program().succeed(&["policy", "ls"], &[]).unwrap();
    assert!(listed.contains(&format!("policy {learnt}: cannot serve: ")) && listed.contains("it can be put back"), "{listed}");
    place.program().succeed(&["policy", "put-back", &learnt.to_string()], &[]).unwrap();
    let refused = place.program().output(&["policy", "put-back", "999"], &[]).unwrap();
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("policy 999 is not kept"));

    let metrics = up.text("/metrics").unwrap().1;
    for line in [
        "endcap_feedback_total{outcome=\"accepted\"} 2",
        "endcap_feedback_total{outcome=\"ignored\"} 2",
        "endcap_feedback_total{outcome=\"rejected\"} 2",
        "endcap_storefronts_total{outcome=\"default\"}",
        "endcap_storefront_seconds{part=\"rank\",quantile=\"0.99\"}",
        "endcap_policy_version ",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

#[test]
fn feedback_in_the_log_that_nobody_can_read_ends_no_service_and_holds_up_no_learning() {
    let place = place();
    let up = up(&place);
    let garbage = |n: i64| Outgoing {
        topic: Topic::FEEDBACK,
        key: Feedback::key(),
        headers: Headers::root(format!("g{n}"), Topic::FEEDBACK, n),
        value: format!("garbage {n}").into_bytes(),
    };
    open(&place.data()).producer().append(&(0..250).map(garbage).collect::<Vec<_>>(), None).unwrap();
    up.post("/v1/events", purchase("e1", "ada", "d00001").to_string()).unwrap();
    let front = own(&up, "ada");
    let told = json!({ "slate": &front["placements"][0]["slate"], "impressions": products(&front, 0) });
    assert_eq!(up.post("/v1/feedback", told.to_string()).unwrap().0, 200);
    up.wait_for("/v1/storefronts/ada", |front| front["policy"].as_i64().filter(|version| *version > 0)).expect("a policy");
    let dead = |answer: &Value| {
        let learner = answer["stages"].as_array()?.iter().find(|stage| stage["name"] == "learner")?.clone();
        (learner["dead_lettered"] == 250).then_some(())
    };
    up.wait_for("/v1/pipeline", dead).expect("every record that cannot be read is a dead letter");
}

#[test]
fn what_cannot_be_feedback_or_a_request_is_refused_with_the_reason() {
    let place = place();
    let up = up(&place);
    for (body, status, part) in [
        ("{\"slate\": ".to_owned(), 400, "not JSON"),
        ("[]".to_owned(), 400, "no feedback"),
        (format!("[{}1]", "1,".repeat(1_000)), 400, "at most 1000"),
        (" ".repeat(2 << 20), 413, "longer than 1048576 bytes"),
    ] {
        let (answered, answer) = up.post("/v1/feedback", body).unwrap();
        assert!(answered == status && answer["error"].as_str().unwrap_or_default().contains(part), "{answered} {answer}");
    }
    for user in ["%00", "%ff"] {
        let (status, answer) = up.get(&format!("/v1/storefronts/{user}")).unwrap();
        assert!(status == 400 && answer["error"].as_str().unwrap().contains("cannot be a shopper's id"), "{user}: {answer}");
    }
    let (ada, stamp) = (UserKey::of("ada"), Stamp::of(1_000, 0));
    let damaged = Write::State { user: ada, stamp, state: b"not a state".to_vec() };
    open(&place.data()).put_all(&[damaged], &[]).unwrap();
    let (status, answer) = up.get("/v1/storefronts/ada").unwrap();
    assert!(status == 500 && answer["error"].as_str().unwrap().contains("cannot be answered"), "{status} {answer}");
    let (status, answer) = up.post("/v1/storefronts/ada", "{}").unwrap();
    assert!(status == 405 && answer["error"].as_str().unwrap().contains("not asked for by that method"), "{answer}");
    for wish in ["51", "-1", "x", ""] {
        let (status, answer) = up.get(&format!("/v1/storefronts/ada?rerank={wish}")).unwrap();
        assert!(status == 400 && answer["error"].as_str().unwrap().contains("`rerank` must be"), "{wish}: {answer}");
    }
    let listed = place.program().succeed(&["dlq", "ls"], &[]).unwrap();
    assert_eq!(listed, "", "nothing of it is kept");
}

#[test]
fn serving_runs_by_itself_beside_the_stages() {
    let place = place();
    let models = ["--models", place.models.as_str()];
    let stages = place
        .program()
        .stages(&["context", "themes", "keywords", "dedup", "aiqa"], &[&models[..], &["--debounce", "0s"]].concat());
    let stages = stages.expect("running stages");
    let serving = place.program().serve(&models).expect("a serving endcap");
    serving.post("/v1/events", purchase("e1", "ada", "d00001").to_string()).unwrap();
    let front = own(&serving, "ada");
    let told = json!({ "slate": front["placements"][0]["slate"], "impressions": products(&front, 0) });
    assert_eq!(serving.post("/v1/feedback", told.to_string()).unwrap().1["accepted"], 1);
    serving.wait_for("/v1/storefronts/ada", |front| (front["policy"].as_i64()? > 0).then_some(())).expect("a policy");
    let (status, answer) = stages.get("/v1/storefronts/ada").unwrap();
    assert!(status == 404 && answer["error"].as_str().unwrap().contains("serves no storefronts"), "{answer}");
    serving.interrupt().unwrap();
    serving.wait().expect("an orderly end");
}

#[test]
fn the_description_and_the_routes_agree() {
    let place = place();
    let up = up(&place);
    let (status, served) = up.get("/v1/openapi.json").unwrap();
    assert_eq!((status, &served), (200, &serde_json::from_str::<Value>(OPENAPI).expect("JSON")));
    for (path, methods) in served["paths"].as_object().expect("paths") {
        let path = path.replace("{user}", "ada");
        for method in methods.as_object().expect("methods").keys() {
            let (status, answer) = match method.as_str() {
                "get" => up.get(&path).unwrap(),
                "post" => up.post(&path, "{}").unwrap(),
                other => panic!("{other} {path} is described and not known here"),
            };
            assert!(status != 404 && status != 405, "{method} {path}: {status} {answer}");
        }
    }
    // What is answered has exactly what is described.
    let front = up.get("/v1/storefronts/nobody").unwrap().1;
    let schemas = &served["components"]["schemas"];
    let check = |value: &Value, schema: &str| {
        let fields: Vec<&String> = value.as_object().expect("an object").keys().collect();
        let described: Vec<&String> = schemas[schema]["properties"].as_object().expect("properties").keys().collect();
        assert_eq!(fields, described, "{schema}");
    };
    check(&front, "Storefront");
    check(&front["placements"][0], "Placement");
    check(&front["placements"][0]["products"][0], "Product");
    let told = json!({ "slate": "x", "impressions": ["a"] }).to_string();
    check(&up.post("/v1/feedback", told).unwrap().1, "FeedbackTaken");
}
