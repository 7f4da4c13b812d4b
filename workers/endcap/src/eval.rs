//! `endcap eval demo`: the paper's table 1 and the agreement with the teacher, on households of the demo market that no training saw.
//!
//! Themes and relevance come from the stages that serve, candidates from the keywords stage's own retrieval. Teacher and students share the
//! student's themes (as in the paper, whose table 1 distils the keyword model alone); control is a static library; popularity and chance are
//! beside them.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    path::Path,
    sync::Arc,
};

use anyhow::{Context, Result, anyhow};
use endcap_aiqa::{AiqaConfig, AiqaStage, interleave};
use endcap_engine::{EmbedModel, KeywordModel, RelevanceModel, ThemeModel};
use endcap_evaluation::{
    Agreement, JudgedPage, JudgedPlacement, PolicyMetrics, control_library, judge, keyword_overlap, markdown, popular_keywords,
    popular_themes, random_keywords, random_themes, share, theme_agreement,
};
use endcap_inference::{ChooseKeywords, Embed, Handle, prompts};
use endcap_keywords::{Found, KeywordsConfig, Shortlist, neighbours, shortlist};
use endcap_market::{DEMO_SEED, Household, Market as DemoMarket, Samples};
use endcap_retrieval::{Filter, Snapshot};
use endcap_runtime::{Embedded, EmbeddedConfig, Input, Stage, Store, SystemClock, Verdict};
use endcap_schemas::{
    Brief, ContextChanged, Draft, Keyword, Message, Origin, Page, Product, Term, Theme, ThemesDeduped, ThemesWritten, Versions,
};
use endcap_themes::{ThemesConfig, ThemesStage};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::{
    config::Config,
    data::{DataDir, Use},
    grounds,
    models::Loader,
};

/// Every held-out household has had this many visits.
const VISITS: usize = 12;
/// When they are looked at: an autumn day, so that seasons count.
const NOW_MS: i64 = 1_730_000_000_000;
/// Shoppers per batch.
const BATCH: usize = 16;
/// Keywords of each list that are compared.
const COMPARED: usize = 5;
/// Products of a placement.
const PRODUCTS_MAX: usize = 20;

/// What `endcap eval demo` prints and writes.
#[derive(Debug, Serialize)]
pub struct Evaluation {
    /// Held-out households.
    pub households: usize,
    /// Agreement with the teacher, baselines beside it.
    pub agreement: Vec<Agreement>,
    /// Table 1 before AIQA.
    pub before_aiqa: Vec<PolicyMetrics>,
    /// Table 1 after it.
    pub after_aiqa: Vec<PolicyMetrics>,
    /// Agreement of the cross-encoder with the truth, on pairs of the demo market.
    pub cross_encoder_accuracy: f64,
    /// Share of the student's themes that passed the guardrails.
    pub themes_accepted: f64,
}

/// Runs the evaluation on the demo market and prints it as Markdown; `report` gets it as JSON.
///
/// # Errors
/// When market or models cannot be opened, or a stage fails.
pub fn demo(config: &Config, households: usize, report: Option<&Path>) -> Result<()> {
    let data = DataDir::open(&config.data, Use::Alone)?;
    let models = Models::load(&Loader::new(config, &data.models())?)?;
    let market = grounds::open(config, &data, &models.encoder)?;
    // A store that lasts as long as the evaluation, so that no cached answer flatters it.
    let scratch = data.scratch("eval")?;
    let path = scratch.path().join("eval.sqlite");
    let bench = Bench {
        demo: Arc::new(DemoMarket::generate(DEMO_SEED)),
        snapshot: market.snapshot(),
        store: Arc::new(Embedded::open(path, EmbeddedConfig::default(), Arc::new(SystemClock::default()))?),
        market,
        models,
    };
    let evaluation = bench.run(households)?;
    println!("{}", evaluation.to_markdown());
    if let Some(path) = report {
        fs::write(path, serde_json::to_vec_pretty(&evaluation)?).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Everything that the evaluation looks at.
struct Bench {
    demo: Arc<DemoMarket>,
    market: endcap_retrieval::Market,
    snapshot: Arc<Snapshot>,
    store: Arc<dyn Store>,
    models: Models,
}

/// The path's models.
struct Models {
    themes: Handle<ThemeModel>,
    keywords: Handle<KeywordModel>,
    encoder: Handle<EmbedModel>,
    judge: Handle<RelevanceModel>,
    threshold: f32,
}

impl Models {
    fn load(loader: &Loader) -> Result<Self> {
        let (judge, threshold) = loader.judge()?;
        Ok(Self { themes: loader.themes()?, keywords: loader.keywords()?.0, encoder: loader.encoder()?, judge, threshold })
    }
}

/// A held-out shopper: the truth, what the models see, what the teacher writes, what the student wrote.
struct Case {
    household: Household,
    context: ContextChanged,
    teacher: Vec<Theme>,
    written: ThemesWritten,
}

/// A policy's choice for the n-th question, as indices into the terms.
type Choose<'a> = dyn Fn(usize, &Question, &Brief, &[Term]) -> Vec<usize> + 'a;

/// A theme of a case with its candidates.
struct Question {
    case: usize,
    theme: Theme,
    list: Shortlist,
}

impl Bench {
    fn run(&self, households: usize) -> Result<Evaluation> {
        let cases = self.cases(households)?;
        let questions = self.questions(&cases)?;
        let picks = self.picks(&cases, &questions)?;
        let mut before = vec![judge("control", &self.control(&cases)?)];
        let mut after = Vec::new();
        for policy in ["teacher", "student", "popularity", "random"] {
            let pages = self.drafts(&cases, &questions, &picks[policy]);
            before.push(judge(policy, &self.retrieved(&cases, &pages)?));
            after.push(judge(policy, &self.published(&cases, pages)?));
        }
        let written = cases.iter().flat_map(|case| &case.written.themes);
        let (by_model, all) =
            written.fold((0, 0), |(ours, all), theme| (ours + usize::from(theme.origin == Origin::Model), all + 1));
        Ok(Evaluation {
            households,
            agreement: self.agreement(&cases, &questions, &picks),
            before_aiqa: before,
            after_aiqa: after,
            cross_encoder_accuracy: self.cross_encoder_accuracy(households * 10)?,
            themes_accepted: by_model as f64 / f64::from(all.max(1)),
        })
    }

    fn cases(&self, households: usize) -> Result<Vec<Case>> {
        let samples = Samples::new(self.demo.clone());
        let mut rng = ChaCha8Rng::seed_from_u64(0x0E7A_1000);
        let known: Vec<(Household, ContextChanged, Vec<Theme>)> = (0..households as u64)
            .map(|n| {
                let household = self.demo.held_out_household(n);
                let sample = samples.theme_of(&household, VISITS, NOW_MS, &mut rng);
                (household, sample.context, sample.page.themes)
            })
            .collect();
        let mut stage = ThemesStage::new(ThemesConfig::default(), self.market.clone(), self.models.themes.clone());
        let mut cases = Vec::with_capacity(households);
        for chunk in known.chunks(BATCH) {
            let written = pass(&mut stage, chunk.iter().map(|(_, context, _)| context.clone()))?;
            cases.extend(chunk.iter().cloned().zip(written).map(|((household, context, teacher), written)| Case {
                household,
                context,
                teacher,
                written,
            }));
        }
        Ok(cases)
    }

    /// One question per theme that the student wrote itself.
    fn questions(&self, cases: &[Case]) -> Result<Vec<Question>> {
        let mut questions = Vec::new();
        let mut known: HashMap<String, Vec<Found>> = HashMap::new();
        for (i, case) in cases.iter().enumerate() {
            for theme in case.written.themes.iter().filter(|theme| theme.origin == Origin::Model) {
                questions.push(Question {
                    case: i,
                    theme: theme.clone(),
                    list: self.list(theme, &case.context.brief, &mut known)?,
                });
            }
        }
        Ok(questions)
    }

    fn list(&self, theme: &Theme, brief: &Brief, known: &mut HashMap<String, Vec<Found>>) -> Result<Shortlist> {
        let config = KeywordsConfig::default();
        let mut found = Vec::new();
        for (place, concept) in theme.concepts.iter().enumerate() {
            let concept = prompts::plain(concept);
            if !known.contains_key(&concept) {
                let vector = self.models.encoder.ask_all(vec![Embed { text: concept.clone() }]).remove(0)?;
                known.insert(concept.clone(), neighbours(&self.snapshot, &vector, config.neighbours)?);
            }
            found.extend(known[&concept].iter().cloned().map(|found| Found { concept: place, ..found }));
        }
        Ok(shortlist(&theme.concepts, found, brief, &config.descriptors, config.candidates_max))
    }

    /// What each policy picks for every question: indices into its shortlist.
    fn picks(&self, cases: &[Case], questions: &[Question]) -> Result<BTreeMap<&'static str, Vec<Vec<usize>>>> {
        let config = KeywordsConfig::default();
        let requests = questions.iter().map(|question| ChooseKeywords {
            prompt: prompts::keywords(
                &cases[question.case].written.persona,
                &cases[question.case].context.brief,
                &question.theme,
            ),
            candidates: question.list.groups.clone(),
            keywords_min: config.keywords_min,
            keywords_max: config.keywords_max,
        });
        let student = self.models.keywords.ask_all(requests.collect());
        let student = student.into_iter().map(|answer| Ok(answer?.picks)).collect::<Result<Vec<_>>>()?;
        let merchandiser = self.demo.merchandiser();
        let by = |choose: &Choose<'_>| -> Vec<Vec<usize>> {
            let all = questions.iter().enumerate();
            all.map(|(i, question)| choose(i, question, &cases[question.case].context.brief, &terms_of(&question.list))).collect()
        };
        let (least, most) = (config.keywords_min, config.keywords_max);
        Ok(BTreeMap::from([
            ("student", student),
            (
                "teacher",
                by(&|_, question, brief, terms| merchandiser.choose_keywords(brief, &question.theme, terms, least, most)),
            ),
            ("popularity", by(&|_, _, brief, terms| popular_keywords(brief, terms, COMPARED))),
            ("random", by(&|i, _, _, terms| random_keywords(terms, COMPARED, i as u64))),
            ("nearest", by(&|_, _, _, terms| (0..terms.len().min(COMPARED)).collect())),
        ]))
    }

    fn agreement(
        &self,
        cases: &[Case],
        questions: &[Question],
        picks: &BTreeMap<&'static str, Vec<Vec<usize>>>,
    ) -> Vec<Agreement> {
        let categories = &self.demo.categories;
        let themes = |themes_of: &dyn Fn(usize, &Case) -> Vec<Theme>| {
            mean(cases.iter().enumerate().map(|(i, case)| theme_agreement(&themes_of(i, case), &case.teacher)))
        };
        let by_model = |case: &Case| case.written.themes.iter().filter(|theme| theme.origin == Origin::Model).cloned().collect();
        let count = |case: &Case| case.teacher.len();
        let keywords = |policy: &str| {
            let lists = picks[policy].iter().zip(&picks["teacher"]);
            mean(lists.filter_map(|(student, teacher)| keyword_overlap(student, teacher, COMPARED)))
        };
        debug_assert_eq!(questions.len(), picks["student"].len());
        vec![
            Agreement {
                policy: "student".into(),
                themes: Some(themes(&|_, case| by_model(case))),
                keywords: Some(keywords("student")),
            },
            Agreement {
                policy: "popularity".into(),
                themes: Some(themes(&|_, case| popular_themes(categories, count(case)))),
                keywords: Some(keywords("popularity")),
            },
            Agreement {
                policy: "random".into(),
                themes: Some(themes(&|i, case| random_themes(categories, count(case), i as u64))),
                keywords: Some(keywords("random")),
            },
            Agreement { policy: "nearest".into(), themes: None, keywords: Some(keywords("nearest")) },
        ]
    }

    fn drafts(&self, cases: &[Case], questions: &[Question], picks: &[Vec<usize>]) -> Vec<Vec<Draft>> {
        let mut pages = vec![Vec::new(); cases.len()];
        for (question, picks) in questions.iter().zip(picks) {
            let keywords = picks.iter().map(|pick| {
                let (id, term) = &question.list.terms[*pick];
                Keyword { id: *id, text: term.text.clone(), descriptor: term.descriptor }
            });
            pages[question.case].push(Draft { theme: question.theme.clone(), keywords: keywords.collect() });
        }
        pages
    }

    fn control(&self, cases: &[Case]) -> Result<Vec<JudgedPage>> {
        let node = |name: &str| self.snapshot.node_term(name).ok().flatten().map(|(id, _)| id);
        let library = control_library(self.snapshot.categories(), ThemesConfig::default().themes, node);
        self.retrieved(cases, &vec![library; cases.len()])
    }

    /// Pages as their keywords retrieve them: no relevance check.
    fn retrieved(&self, cases: &[Case], pages: &[Vec<Draft>]) -> Result<Vec<JudgedPage>> {
        let page = |(case, drafts): (&Case, &Vec<Draft>)| {
            let brief = &case.context.brief;
            let filter = Filter::of_page(brief.diets, &brief.dislikes);
            let placements = drafts.iter().map(|draft| {
                let mut lists = Vec::with_capacity(draft.keywords.len());
                for keyword in &draft.keywords {
                    let found = self.snapshot.products_for(keyword, &filter, PRODUCTS_MAX)?;
                    lists.push(found.into_iter().map(Arc::new).collect::<Vec<_>>());
                }
                let products = interleave(&lists).into_iter().take(PRODUCTS_MAX).map(|product| (*product).clone()).collect();
                self.placement(&draft.theme, &draft.keywords, products)
            });
            Ok(JudgedPage { household: case.household.clone(), placements: placements.collect::<Result<_>>()? })
        };
        cases.iter().zip(pages).map(page).collect()
    }

    /// Pages as AIQA publishes them, without what it fills in from the merchandiser.
    fn published(&self, cases: &[Case], pages: Vec<Vec<Draft>>) -> Result<Vec<JudgedPage>> {
        let config = AiqaConfig { threshold: Some(self.models.threshold), ..AiqaConfig::default() };
        let mut stage = AiqaStage::new(config, self.market.clone(), self.store.clone(), self.models.judge.clone());
        let mut judged = Vec::with_capacity(cases.len());
        let deduped: Vec<(&Case, ThemesDeduped)> = cases
            .iter()
            .zip(pages)
            .map(|(case, drafts)| {
                let written = &case.written;
                (
                    case,
                    ThemesDeduped {
                        head: written.head.clone(),
                        brief: written.brief.clone(),
                        persona: written.persona.clone(),
                        drafts,
                        dropped: Vec::new(),
                        versions: Versions::new(),
                    },
                )
            })
            .collect();
        for chunk in deduped.chunks(BATCH) {
            let published = pass(&mut stage, chunk.iter().map(|(_, deduped)| deduped.clone()))?;
            for ((case, _), published) in chunk.iter().zip(published) {
                judged.push(JudgedPage { household: case.household.clone(), placements: self.placements(&published.page)? });
            }
        }
        Ok(judged)
    }

    fn placements(&self, page: &Page) -> Result<Vec<JudgedPlacement>> {
        let own = page.placements.iter().filter(|placement| placement.theme.origin == Origin::Model);
        own.map(|placement| {
            let ids: Vec<&str> = placement.products.iter().map(|shown| shown.product.as_str()).collect();
            self.placement(&placement.theme, &placement.keywords, self.snapshot.products(&ids)?)
        })
        .collect()
    }

    fn placement(&self, theme: &Theme, keywords: &[Keyword], products: Vec<Product>) -> Result<JudgedPlacement> {
        let ids: Vec<i64> = keywords.iter().map(|keyword| keyword.id).collect();
        let terms = self.snapshot.terms(&ids)?.into_iter().map(|(_, term)| term).collect();
        Ok(JudgedPlacement { theme: theme.clone(), keywords: terms, products })
    }

    fn cross_encoder_accuracy(&self, pairs: usize) -> Result<f64> {
        let samples = Samples::new(self.demo.clone());
        let mut rng = ChaCha8Rng::seed_from_u64(0x0E7A_1001);
        let (requests, truths): (Vec<_>, Vec<bool>) = (0..pairs)
            .map(|_| {
                let (theme, product, relevant) = samples.pair(&mut rng);
                (endcap_inference::verdicts::pair(&prompts::theme_text(&theme), &product), relevant)
            })
            .unzip();
        let answers = self.models.judge.ask_all(requests);
        let right = answers.into_iter().zip(truths).map(|(answer, truth)| Ok(f64::from((answer?.probability >= 0.5) == truth)));
        Ok(mean(right.collect::<Result<Vec<_>>>()?.into_iter()))
    }
}

/// Runs a stage over values that it must all pass on.
fn pass<S: Stage>(stage: &mut S, values: impl Iterator<Item = S::In>) -> Result<Vec<S::Out>> {
    let inputs: Vec<Input<S::In>> =
        values.enumerate().map(|(i, value)| Input { value, partition: 0, offset: i as i64, appended_ms: NOW_MS }).collect();
    let whose: Vec<String> = inputs.iter().map(|input| input.value.user().to_string()).collect();
    let verdicts = stage.process(&inputs).with_context(|| format!("stage {} failed", S::NAME))?;
    verdicts
        .into_iter()
        .zip(whose)
        .map(|(verdict, user)| match verdict {
            Verdict::Passed(passed) => Ok(passed.out),
            Verdict::Dropped(reason) => Err(anyhow!("stage {} dropped {user}: {}", S::NAME, reason.label())),
            Verdict::Settled(settled) => Err(anyhow!("stage {} settled {user}: {}", S::NAME, settled.reason.label())),
            Verdict::Rejected(rejection) => Err(anyhow!("stage {} rejected {user}: {}", S::NAME, rejection.message)),
        })
        .collect()
}

fn terms_of(list: &Shortlist) -> Vec<Term> {
    list.terms.iter().map(|(_, term)| term.clone()).collect()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0_usize), |(sum, count), value| (sum + value, count + 1));
    if count == 0 { 0.0 } else { sum / count as f64 }
}

impl Evaluation {
    fn to_markdown(&self) -> String {
        let optional = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), share);
        let agreement: Vec<Vec<String>> =
            self.agreement.iter().map(|row| vec![row.policy.clone(), optional(row.themes), optional(row.keywords)]).collect();
        let mut text = format!("{} held-out households\n\nAgreement with the teacher\n\n", self.households);
        text += &markdown(&["policy", "themes in a category the teacher chose", "top-5 keywords"], &agreement);
        text += &format!(
            "\nThemes that passed the guardrails: {}; cross-encoder agreement with the truth: {}\n",
            share(self.themes_accepted),
            share(self.cross_encoder_accuracy)
        );
        for (when, rows) in [("before AIQA", &self.before_aiqa), ("after AIQA", &self.after_aiqa)] {
            text += &format!("\nTable 1 {when}\n\n");
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
            text += &markdown(
                &["policy", "placements", "P-T@5", "P-T@20", "K-U", "density", "fewer than 5", "fewer than 20", "in taste"],
                &rows,
            );
        }
        text
    }
}

fn cells(row: &PolicyMetrics) -> Vec<String> {
    let mut cells = vec![row.policy.clone(), row.placements.to_string()];
    cells.extend([row.p_t_5, row.p_t_20, row.k_u].map(share));
    cells.push(format!("{:.2}", row.density));
    cells.extend([row.short_5, row.short_20, row.in_taste].map(share));
    cells
}
