//! The tables: which figures of which units stand where, beside which of the paper's numbers.

use std::{collections::BTreeMap, fmt::Write};

use endcap_evaluation::{markdown, mean, standard_deviation};

use super::{
    keep::Outcome,
    oracle::ORACLES,
    paper,
    plan::{ALL, ALPHAS, FROZEN, INTERESTS, OCPM, PAPER_MOST, PIER, POINT, RESIDUAL, SEARCH},
    search::{CALLS, WAYS},
};

/// What came of all units, seed by seed.
pub(super) struct Results(BTreeMap<&'static str, Vec<Outcome>>);

impl Results {
    pub(super) fn new(outcomes: BTreeMap<&'static str, Vec<Outcome>>) -> Self {
        Self(outcomes)
    }

    /// A figure of a unit, seed by seed; none where a seed has none.
    pub(super) fn each(&self, unit: &str, figure: &str) -> Vec<f64> {
        let outcomes = self.0.get(unit).map(Vec::as_slice).unwrap_or_default();
        outcomes.iter().filter_map(|outcome| outcome.figures.get(figure).copied()).collect()
    }

    /// Its mean.
    pub(super) fn mean(&self, unit: &str, figure: &str) -> Option<f64> {
        let each = self.each(unit, figure);
        (!each.is_empty()).then(|| mean(&each))
    }

    /// Its standard deviation over the seeds; none of one seed.
    fn spread(&self, unit: &str, figure: &str) -> Option<f64> {
        let each = self.each(unit, figure);
        (each.len() > 1).then(|| standard_deviation(&each))
    }
}

/// Figures under one title.
struct Column {
    title: &'static str,
    /// Their name; `*` stands for what the row says.
    figure: &'static str,
    decimals: usize,
}

struct Row {
    label: String,
    unit: &'static str,
    /// What `*` stands for in a column's figure, which is followed by this number where there is one.
    generator: &'static str,
    most: Option<usize>,
    paper: Vec<Option<f64>>,
}

impl Row {
    fn figure(&self, column: &Column) -> String {
        let figure = column.figure.replace('*', self.generator);
        match self.most.filter(|_| column.figure.ends_with('@')) {
            Some(most) => format!("{figure}{most}"),
            None => figure,
        }
    }
}

/// One table.
pub(super) struct Table {
    /// Its file.
    pub(super) file: &'static str,
    /// What it is.
    pub(super) title: &'static str,
    columns: Vec<Column>,
    /// Titles of the paper's numbers.
    papers: &'static [&'static str],
    rows: Vec<Row>,
}

impl Table {
    /// Mean and standard deviation of every figure, then the paper's.
    pub(super) fn csv(&self, results: &Results) -> String {
        let ours = self.columns.iter().flat_map(|column| ["mean", "sd"].map(|what| format!("{}_{what}", column.title)));
        let papers = self.papers.iter().map(|paper| format!("paper {paper}"));
        let header: Vec<String> = ["row".to_owned()].into_iter().chain(ours).chain(papers).collect();
        let mut csv = header.join(",").replace("V/V*", "value_ratio").replace(' ', "_").to_lowercase() + "\n";
        for row in &self.rows {
            let figures = self.columns.iter().flat_map(|column| {
                let figure = row.figure(column);
                [results.mean(row.unit, &figure), results.spread(row.unit, &figure)]
            });
            let cells = figures
                .chain(row.paper.iter().copied())
                .map(|figure| figure.map_or(String::new(), |figure| format!("{figure:.6}")));
            // Writing to a String cannot fail.
            let _ = writeln!(csv, "{},{}", row.label.replace(',', ";"), cells.collect::<Vec<_>>().join(","));
        }
        csv
    }

    /// The same to be read; columns of which nothing is known are left out.
    pub(super) fn markdown(&self, results: &Results) -> String {
        let known = |column: &&Column| self.rows.iter().any(|row| results.mean(row.unit, &row.figure(column)).is_some());
        let columns: Vec<&Column> = self.columns.iter().filter(known).collect();
        let papers: Vec<String> = self.papers.iter().map(|paper| format!("paper: {paper}")).collect();
        let titles: Vec<&str> =
            [""].into_iter().chain(columns.iter().map(|column| column.title)).chain(papers.iter().map(String::as_str)).collect();
        let rows = self.rows.iter().map(|row| {
            let ours = columns.iter().map(|column| cell(results, row.unit, &row.figure(column), column.decimals));
            let theirs = row.paper.iter().map(|figure| figure.map_or_else(|| "–".to_owned(), |figure| figure.to_string()));
            [row.label.clone()].into_iter().chain(ours).chain(theirs).collect()
        });
        markdown(&titles, &rows.collect::<Vec<Vec<String>>>())
    }
}

/// Mean ± standard deviation.
fn cell(results: &Results, unit: &str, figure: &str, decimals: usize) -> String {
    match (results.mean(unit, figure), results.spread(unit, figure)) {
        (Some(mean), Some(spread)) => format!("{mean:.decimals$} ± {spread:.decimals$}"),
        (Some(mean), None) => format!("{mean:.decimals$}"),
        _ => "–".to_owned(),
    }
}

const ACCURACY: [&str; 4] = ["Avito AUC", "Avito LogLoss", "Meituan AUC", "Meituan LogLoss"];
const HITS: [&str; 4] = ["Avito HR", "Avito ms", "Meituan HR", "Meituan ms"];

fn column(title: &'static str, figure: &'static str, decimals: usize) -> Column {
    Column { title, figure, decimals }
}

fn accuracy_columns() -> Vec<Column> {
    vec![
        column("AUC", "*auc", 4),
        column("expected AUC", "*auc_expected", 4),
        column("LogLoss", "*log_loss", 4),
        column("expected LogLoss", "*log_loss_expected", 4),
        column("V/V*", "*ratio", 4),
        column("epochs", "*epochs", 1),
    ]
}

fn hit_columns() -> Vec<Column> {
    vec![
        column("HR_self", "*.hr_self@", 3),
        column("HR_frozen", "*.hr_frozen@", 3),
        column("HR_true", "*.hr_true@", 3),
        column("V/V*", "*.ratio@", 4),
        column("ms", "*.cost_ms", 2),
    ]
}

fn alone(label: &str, unit: &'static str, paper: Option<paper::Accuracy>) -> Row {
    let paper = (0..4).map(|place| paper.map(|paper| paper[place])).collect();
    Row { label: label.to_owned(), unit, generator: "", most: None, paper }
}

fn generated(label: &str, unit: &'static str, generator: &'static str, most: usize, paper: &[f64]) -> Row {
    Row { label: label.to_owned(), unit, generator, most: Some(most), paper: paper.iter().copied().map(Some).collect() }
}

fn table2() -> Table {
    let rows = vec![
        alone("DNN", POINT, Some(paper::DNN)),
        alone("DCN", "dcn", Some(paper::DCN)),
        alone("PRM", "prm", Some(paper::PRM)),
        alone("EXTR", "extr", Some(paper::EXTR)),
        alone("Edge-Rerank", "edge-rerank", Some(paper::EDGE_RERANK)),
        alone("OCPM", OCPM, Some(paper::OCPM)),
        Row { generator: "truth.", ..alone("the truth itself", POINT, None) },
        Row { generator: "chance.", ..alone("an order by chance", POINT, None) },
    ];
    Table { file: "table2.csv", title: "Table 2: evaluation models", columns: accuracy_columns(), papers: &ACCURACY, rows }
}

fn table3() -> Table {
    let rows = vec![
        alone("OCPM", OCPM, Some(paper::OCPM_TABLE_3)),
        alone("- OAU", "ocpm-no-attention", Some(paper::NO_ATTENTION)),
        alone("- TAU", "ocpm-no-interest", Some(paper::NO_INTEREST)),
        alone("- place (ours)", "ocpm-no-place", None),
        alone("+ residuals (ours)", RESIDUAL, None),
    ];
    Table { file: "table3.csv", title: "Table 3: parts of OCPM", columns: accuracy_columns(), papers: &ACCURACY, rows }
}

fn table4() -> Table {
    let rows = vec![
        generated("Random & OCPM", PIER, "random", PAPER_MOST, &paper::RANDOM),
        generated("PRS (beam search & OCPM)", PIER, "beam", PAPER_MOST, &paper::BEAM),
        generated("Full permutation & OCPM", PIER, "full", ALL, &paper::FULL),
        generated("PIER (FPSM & OCPM)", PIER, "fpsm", PAPER_MOST, &paper::PIER),
        generated("- time-aware weighting", "untimed", "fpsm", PAPER_MOST, &paper::UNTIMED),
        generated("- contrastive loss", FROZEN, "fpsm", PAPER_MOST, &paper::NO_CONTRAST),
    ];
    Table { file: "table4.csv", title: "Table 4: generators at K = 10", columns: hit_columns(), papers: &HITS, rows }
}

fn table5() -> Table {
    let of_alpha = ALPHAS.iter().zip(&paper::ALPHAS);
    let alphas = of_alpha.map(|((unit, alpha), paper)| generated(&format!("α = {alpha}"), unit, "fpsm", PAPER_MOST, paper));
    let of_most = [("most-5", 5), (PIER, 10), ("most-20", 20), ("most-50", 50)];
    let mosts = of_most.into_iter().zip(&paper::MOSTS).map(|((unit, most), paper)| {
        let mut row = generated(&format!("K = {most}"), unit, "fpsm", most, paper);
        row.paper.extend([None; 3]);
        row
    });
    let accuracy = [column("AUC", "auc", 4), column("expected AUC", "auc_expected", 4), column("LogLoss", "log_loss", 4)];
    let columns = accuracy.into_iter().chain(hit_columns()).collect();
    let papers = &["Avito AUC", "Avito HR", "Avito ms", "Meituan AUC", "Meituan HR", "Meituan ms"];
    Table { file: "table5.csv", title: "Table 5: α and K", columns, papers, rows: alphas.chain(mosts).collect() }
}

fn readings() -> Table {
    let row = |label, unit, generator| generated(label, unit, generator, PAPER_MOST, &[]);
    let rows = vec![
        row("α = 0", FROZEN, "fpsm"),
        row("α = 0, places less their mean", FROZEN, "centred"),
        row("α = 0, ties by rank", FROZEN, "by_rank"),
        row("α = 0, random", FROZEN, "random"),
        row("α = 0, beam", FROZEN, "beam"),
        row("α = 0, full", FROZEN, "full").of(ALL),
        row("α = 0.1", PIER, "fpsm"),
        row("α = 0.1, places less their mean", "centred", "fpsm"),
        row("α = 0.1, ties by rank", PIER, "by_rank"),
        row("α = 0.1, Eq. 14 with its square", "squared", "fpsm"),
        row("α = 0.1, through the distances (ours)", "distance", "fpsm"),
        row("α = 0.5, through the distances (ours)", "distance-0.5", "fpsm"),
    ];
    let accuracy = [column("AUC", "auc", 4), column("expected AUC", "auc_expected", 4)];
    let columns = accuracy.into_iter().chain(hit_columns()).collect();
    Table { file: "readings.csv", title: "Other readings of FPSM, at K = 10", columns, papers: &[], rows }
}

fn search() -> Table {
    let ways = WAYS.iter().flat_map(|way| CALLS.map(|calls| generated(&format!("{way} {calls}"), SEARCH, way, calls, &[])));
    let columns = vec![
        column("HR_self", "*.hr_self@", 3),
        column("value over the best", "*.self_ratio@", 4),
        column("V/V*", "*.ratio@", 4),
    ];
    Table { file: "search.csv", title: "Five of ten: 30,240 orders", columns, papers: &[], rows: ways.collect() }
}

fn oracle() -> Table {
    let of_interest = |(unit, times): (&'static str, f64)| {
        let row = move |(name, label): &(&'static str, &str)| {
            generated(&format!("interest × {times}: {label}"), unit, name, PAPER_MOST, &[])
        };
        ORACLES.iter().map(row)
    };
    let columns = vec![column("HR_true", "*.hr_true@", 3), column("V/V* of the best selected", "*.ratio@", 4)];
    let title = "What a history can tell, at K = 10";
    Table { file: "oracle.csv", title, columns, papers: &[], rows: INTERESTS.into_iter().flat_map(of_interest).collect() }
}

impl Row {
    /// The same at another K.
    fn of(self, most: usize) -> Self {
        Self { most: Some(most), ..self }
    }
}

/// All tables; `simulated` data have two more.
pub(super) fn tables(simulated: bool) -> Vec<Table> {
    let mut tables = vec![table2(), table3(), table4(), table5(), readings()];
    if simulated {
        tables.extend([search(), oracle()]);
    }
    tables
}
