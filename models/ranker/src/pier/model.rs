//! A model with its weights: what it expects of pages.

use super::{
    Order, PierError,
    batch::{Batch, EMBEDDINGS},
    dataset::{Dataset, PLACES, Visit, Vocabulary},
    fpsm::pool_fields,
    net::{Graph, Weights},
    nets::{DIMS, Kind, Net},
};
use crate::random::{normal, stream};

const WEIGHTS_STREAM: u64 = 81;
/// Spread of embeddings before training.
const SPREAD: f64 = 0.1;
/// Pages that are computed at once where nothing is trained.
const PAGES_MAX: usize = 2_048;
/// Log-odds beyond which a probability is taken for that of these.
pub(crate) const LOG_ODDS_MAX: f32 = 30.0;

/// An evaluation model.
pub struct Model {
    kind: Kind,
    pub(crate) weights: Weights,
    pub(crate) net: Box<dyn Net>,
}

impl Model {
    /// A model that knows nothing yet.
    pub fn new(kind: Kind, vocabulary: &Vocabulary, seed: u64) -> Self {
        let mut rng = stream(&[WEIGHTS_STREAM, seed]);
        let mut weights = Weights::default();
        let table = (0..vocabulary.rows() * DIMS).map(|_| (SPREAD * normal(&mut rng)) as f32).collect();
        weights.push(EMBEDDINGS.to_owned(), &[vocabulary.rows(), DIMS], table);
        let net = kind.net(vocabulary);
        net.layers().iter().for_each(|layer| layer.draw(&mut weights, &mut rng));
        Self { kind, weights, net }
    }

    /// A model with weights of [`Weights::to_bytes`].
    ///
    /// # Errors
    /// When the bytes are not those of such a model.
    pub fn from_bytes(kind: Kind, vocabulary: &Vocabulary, bytes: &[u8]) -> Result<Self, PierError> {
        let mut model = Self::new(kind, vocabulary, 0);
        model.weights.fill(bytes)?;
        Ok(model)
    }

    /// Which model it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }

    /// A ready-made reader of it.
    ///
    /// # Errors
    /// When a tensor cannot be made: a broken promise.
    pub fn reader(&self) -> Result<Reader<'_>, PierError> {
        Ok(Reader { model: self, graph: Graph::constants(&self.weights)? })
    }
}

/// Answers with the weights as they are.
pub struct Reader<'a> {
    model: &'a Model,
    graph: Graph,
}

impl Reader<'_> {
    /// Log-odds of a click on each item of pages as they were shown, `[pages · PLACES]`. `point` has the point-wise log-odds of all pages of the
    /// data, `[all · PLACES]`.
    ///
    /// # Errors
    /// When tensors do not fit: a broken promise.
    pub fn shown(&self, dataset: &Dataset, point: &[f32], pages: &[u32]) -> Result<Vec<f32>, PierError> {
        let mut out = Vec::with_capacity(pages.len() * PLACES);
        for pages in pages.chunks(PAGES_MAX) {
            let mut batch = Batch::new(dataset);
            for page in pages {
                batch.add(&dataset.visit(*page), of_page(point, *page), [&AS_SHOWN[..]]);
            }
            out.extend(self.logits(&batch)?);
        }
        Ok(out)
    }

    /// Click probabilities of orders of a visit's candidates, `[orders · places]`, given the candidates' point-wise log-odds.
    ///
    /// # Errors
    /// When tensors do not fit: a broken promise.
    pub fn clicks(&self, dataset: &Dataset, visit: &Visit, point: &[f32], orders: &[Order]) -> Result<Vec<f64>, PierError> {
        let mut out = Vec::with_capacity(orders.len() * dataset.vocabulary.places());
        for orders in orders.chunks(PAGES_MAX) {
            let mut batch = Batch::new(dataset);
            batch.add(visit, point, orders.iter().map(|order| &order[..]));
            out.extend(self.logits(&batch)?.into_iter().map(probability));
        }
        Ok(out)
    }

    /// What orders of a visit's candidates are worth: the clicks to be expected of each.
    ///
    /// # Errors
    /// When tensors do not fit: a broken promise.
    pub fn values(&self, dataset: &Dataset, visit: &Visit, point: &[f32], orders: &[Order]) -> Result<Vec<f64>, PierError> {
        let clicks = self.clicks(dataset, visit, point, orders)?;
        Ok(clicks.chunks_exact(dataset.vocabulary.places()).map(|clicks| clicks.iter().sum()).collect())
    }

    /// Point-wise log-odds of a visit's candidates, of a model to which order is nothing.
    ///
    /// # Errors
    /// When tensors do not fit: a broken promise.
    pub fn point(&self, dataset: &Dataset, visit: &Visit) -> Result<Vec<f32>, PierError> {
        let mut out = Vec::with_capacity(visit.items.len());
        let places = dataset.vocabulary.places();
        for from in (0..visit.items.len()).step_by(places) {
            // The last page is filled up with candidates that have had their turn.
            let from = from.min(visit.items.len() - places);
            let order: Order = (from..from + places).collect();
            let mut batch = Batch::new(dataset);
            batch.add(visit, &vec![0.0; visit.items.len()], [&order[..]]);
            out.truncate(from);
            out.extend(self.logits(&batch)?);
        }
        Ok(out)
    }

    fn logits(&self, batch: &Batch) -> Result<Vec<f32>, PierError> {
        Ok(self.model.net.logits(&self.graph, batch)?.flatten_all()?.to_vec1()?)
    }
}

/// Pooled embeddings of a visit's items or of a page's (what Eq. 3 needs of them).
pub(crate) fn pooled(weights: &Weights, dataset: &Dataset, items: &[u32]) -> Vec<Vec<f32>> {
    let (_, table) = weights.get(EMBEDDINGS).expect("every model has embeddings");
    let of_row = |row: &u32| table[*row as usize * DIMS..][..DIMS].iter().copied();
    let item = |item: &u32| pool_fields(&dataset.rows(*item).iter().flat_map(of_row).collect::<Vec<f32>>(), DIMS);
    items.iter().map(item).collect()
}

/// The order in which candidates come.
pub(crate) const AS_SHOWN: [usize; PLACES] = [0, 1, 2, 3, 4];

/// A page's part of numbers `[pages · PLACES]`; none where there are no numbers, as for a model that needs none.
pub fn of_page(numbers: &[f32], page: u32) -> &[f32] {
    match numbers {
        [] => &[0.0; PLACES],
        numbers => &numbers[page as usize * PLACES..][..PLACES],
    }
}

/// Log-odds of a probability.
pub fn log_odds(probability: f64) -> f32 {
    (probability / (1.0 - probability)).ln() as f32
}

/// The probability of log-odds.
pub fn probability(log_odds: f32) -> f64 {
    1.0 / (1.0 + f64::from(-log_odds.clamp(-LOG_ODDS_MAX, LOG_ODDS_MAX)).exp())
}
