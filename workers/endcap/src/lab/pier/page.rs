//! One page with all tables, and what of the paper holds here and what does not.

use std::fmt::Write;

use endcap_evaluation::mean;

use super::{
    PierArgs,
    paper::{MEITUAN_MOSTS, SLIPS},
    plan::{ALL, ALPHAS, FROZEN, MOST, OCPM, PAPER_MOST, PIER, POINT, RESIDUAL, SEARCH, Scale},
    search::{CALLS, WAYS},
    tables::{Results, tables},
};

/// Something that is claimed or must hold, and whether it does here; `None` where its figures are not there.
struct Check {
    what: String,
    holds: Option<bool>,
}

/// The page.
pub(super) fn page(args: &PierArgs, scale: &Scale, results: &Results) -> String {
    let mut page = String::from("# PIER\n\n");
    let simulated = args.avito.is_none();
    page += &about(args, scale, results);
    for table in tables(simulated) {
        // Writing to a String cannot fail.
        let _ = write!(page, "## {}\n\n{}\n", table.title, table.markdown(results));
    }
    page += &of_the_paper();
    page += &list("What must hold", &gates(scale, results));
    page += &list("What the paper claims", &claims(results));
    page
}

fn about(args: &PierArgs, scale: &Scale, results: &Results) -> String {
    let data = match &args.avito {
        None => {
            let (shop, trained) = (scale.shop, scale.shop.sessions - scale.shop.test_sessions - scale.shop.history_sessions - 1);
            format!(
                "a simulated shop, {} shoppers with {} visits each, of which {trained} are trained on and {} are the test",
                shop.shoppers, shop.sessions, shop.test_sessions
            )
        }
        Some(files) => format!("{} with {} of the users", files.display(), args.avito_share),
    };
    let seeds = results.each(POINT, "auc").len();
    let truth = match args.avito {
        None => ", HR_true under the truth; V/V* is the true value of the order chosen over that of the best",
        Some(_) => "", // nobody knows it of real pages
    };
    format!(
        "Data: {data}. Seeds: {seeds}; figures are means ± standard deviations over them. Hit ratios are of {} test pages: HR_self against the best order \
         under the evaluator itself, HR_frozen under OCPM trained as long without contrastive loss{truth}. Milliseconds are of \
         one page on candle and one thread of this machine. The paper's numbers are of other data: what can be compared is which is \
         higher.\n\n",
        scale.slates
    )
}

/// What of the paper's numbers no row of ours stands beside, and where they are at odds with each other.
fn of_the_paper() -> String {
    let mosts = MEITUAN_MOSTS.map(|(most, [auc, hr, ms])| format!("AUC {auc}, HR {hr}, {ms} ms at K = {most}"));
    format!(
        "## The paper's own numbers\n\nOn Meituan's 720 orders table 5 has {}. The paper contradicts itself: {}.\n\n",
        mosts.join("; "),
        SLIPS.join("; ")
    )
}

fn list(title: &str, checks: &[Check]) -> String {
    let mut text = format!("## {title}\n\n");
    for Check { what, holds } in checks {
        let verdict = match holds {
            Some(true) => "holds",
            Some(false) => "**does not hold**",
            None => "not measured",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "- {what}: {verdict}");
    }
    text + "\n"
}

/// Whether one figure is above another, and both as they are.
fn above(results: &Results, what: &str, high: (&str, &str), low: (&str, &str)) -> Check {
    match results.mean(high.0, high.1).zip(results.mean(low.0, low.1)) {
        Some((high, low)) => Check { what: format!("{what} ({high:.4} and {low:.4})"), holds: Some(high > low) },
        None => Check { what: what.to_owned(), holds: None },
    }
}

/// The figure that tells of accuracy: without the clicks' noise where the truth is known.
fn auc(results: &Results) -> &'static str {
    if results.mean(POINT, "auc_expected").is_some() { "auc_expected" } else { "auc" }
}

fn gates(scale: &Scale, results: &Results) -> Vec<Check> {
    let (auc, loss) = (auc(results), if auc(results) == "auc" { "log_loss" } else { "log_loss_expected" });
    let mut checks: Vec<Check> = ["prm", "extr"]
        .map(|unit| above(results, &format!("DNN's AUC is below {}'s", unit.to_uppercase()), (unit, auc), (POINT, auc)))
        .into();
    for unit in [POINT, "dcn", "prm", "extr", "edge-rerank"] {
        checks.push(above(results, &format!("OCPM has a lower LogLoss than {unit}"), (unit, loss), (OCPM, loss)));
    }
    checks.push(above(results, "Dropping OAU lowers AUC", (OCPM, auc), ("ocpm-no-attention", auc)));
    checks.extend(MOST.map(|most| by_chance(scale, results, most)));
    for unit in [FROZEN, PIER] {
        let ratios: Vec<f64> = MOST.iter().filter_map(|most| results.mean(unit, &format!("fpsm.hr_self@{most}"))).collect();
        let holds = (ratios.len() == MOST.len()).then(|| ratios.is_sorted());
        checks.push(Check { what: format!("HR_self of FPSM grows with K ({unit}: {ratios:.3?})"), holds });
    }
    let full = results.each(PIER, &format!("full.hr_self@{ALL}"));
    checks.push(Check {
        what: "All orders have HR_self 1.00".to_owned(),
        holds: (!full.is_empty()).then(|| full.iter().all(is_one)),
    });
    checks.push(above(results, "α = 0.5 lowers AUC", (FROZEN, auc), (ALPHAS[5].0, auc)));
    checks.push(above(results, "V/V* of OCPM is above that of the best items first", (OCPM, "ratio"), (POINT, "ratio")));
    checks.push(above(results, "V/V* of the best items first is above chance", (POINT, "ratio"), (POINT, "chance.ratio")));
    checks
}

/// A sum of shares that come to one.
fn is_one(ratio: &f64) -> bool {
    (ratio - 1.0).abs() < 1e-9
}

/// Whether a choice by chance hits as often as it should, within three standard errors.
fn by_chance(scale: &Scale, results: &Results, most: usize) -> Check {
    let each = results.each(PIER, &format!("random.hr_self@{most}"));
    let chance = most as f64 / ALL as f64;
    let error = (chance * (1.0 - chance) / (scale.slates * each.len().max(1)) as f64).sqrt();
    let mean = if each.is_empty() { 0.0 } else { mean(&each) };
    let what = format!("Random@{most} is {most}/{ALL} within three standard errors ({mean:.4} and {chance:.4} ± {error:.4})");
    Check { what, holds: (!each.is_empty()).then(|| (mean - chance).abs() <= 3.0 * error) }
}

fn claims(results: &Results) -> Vec<Check> {
    let auc = auc(results);
    let mut checks = Vec::new();
    for what in ["hr_self", "hr_frozen", "hr_true", "ratio"] {
        let of = |generator: &str| format!("{generator}.{what}@{PAPER_MOST}");
        let (fpsm, beam, random) = (of("fpsm"), of("beam"), of("random"));
        checks.push(above(results, &format!("{what}: PIER is above beam search"), (PIER, &fpsm), (PIER, &beam)));
        checks.push(above(results, &format!("{what}: PIER is above chance"), (PIER, &fpsm), (PIER, &random)));
        checks.push(above(results, &format!("{what}: the contrastive loss raises it"), (PIER, &fpsm), (FROZEN, &fpsm)));
        checks.push(above(results, &format!("{what}: time-aware weights raise it"), (PIER, &fpsm), ("untimed", &fpsm)));
        checks.push(above(
            results,
            &format!("Ours: {what}: a gradient through the distances raises it more"),
            ("distance", &fpsm),
            (PIER, &fpsm),
        ));
    }
    for unit in ["dcn", "prm", "extr", "edge-rerank"] {
        checks.push(above(results, &format!("AUC: OCPM is above {unit}"), (OCPM, auc), (unit, auc)));
    }
    checks.push(above(results, "AUC: Edge-Rerank is above PRM", ("edge-rerank", auc), ("prm", auc)));
    checks.push(above(results, "AUC: TAU raises it", (OCPM, auc), ("ocpm-no-interest", auc)));
    checks.push(above(results, "Ours: V/V*: residuals within OAU raise it", (RESIDUAL, "ratio"), (OCPM, "ratio")));
    for way in &WAYS[..3] {
        for calls in CALLS {
            let of = |way: &str| format!("{way}.self_ratio@{calls}");
            let what = format!("Ours: guided search finds better orders than {way} with {calls} calls");
            checks.push(above(results, &what, (SEARCH, &of("guided")), (SEARCH, &of(way))));
        }
    }
    checks
}
