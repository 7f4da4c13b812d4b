//! What is arranged: slates of the simulated shop, and weights.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use endcap_ranker::pier::{
    Dataset, HISTORY, Kind, Model, Ocpm, Order, Visit, count, orders,
    serve::ClickedPage,
    simulator::{Shop, ShopSize},
};
use serde_json::json;

/// Slates that all sides see.
const SLATES: usize = 100;

/// A size of the paper (section 5.1.3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    pub(crate) name: &'static str,
    /// Items of a slate.
    pub(crate) items: usize,
    /// Items of a page.
    pub(crate) places: usize,
    /// Orders that are selected (K).
    pub(crate) some: usize,
}

impl Size {
    pub(crate) const BOTH: [Self; 2] =
        [Self { name: "avito", items: 5, places: 5, some: 10 }, Self { name: "meituan", items: 10, places: 3, some: 100 }];

    pub(crate) fn orders(&self) -> usize {
        count(self.items, self.places)
    }
}

/// A slate and who sees it.
pub(crate) struct Asked {
    pub(crate) page: u32,
    /// Numbers of the items, and values of their fields.
    pub(crate) items: Vec<u32>,
    pub(crate) values: Vec<u32>,
    pub(crate) point: Vec<f32>,
    /// Values of the fields of the history's pages, and when they were.
    pub(crate) clicked: Vec<(Vec<u32>, i64)>,
}

impl Asked {
    pub(crate) fn pages(&self) -> Vec<ClickedPage<'_>> {
        self.clicked.iter().map(|(items, at_ms)| ClickedPage { items, at_ms: *at_ms }).collect()
    }
}

/// A shop, a model of it, and slates.
pub(crate) struct World {
    pub(crate) size: Size,
    pub(crate) dataset: Dataset,
    pub(crate) model: Model,
    pub(crate) all: Vec<Order>,
    pub(crate) slates: Vec<Asked>,
}

impl World {
    pub(crate) fn new(size: Size, seed: u64) -> Result<Self> {
        let shop = Shop::new(seed, ShopSize { shoppers: 500, sessions: 24, history_sessions: 14, test_sessions: 2 });
        let mut dataset = shop.dataset()?;
        dataset.vocabulary = dataset.vocabulary.clone().of_places(size.places);
        let model = Model::new(Kind::Ocpm(Ocpm::WHOLE), &dataset.vocabulary, seed);
        let scorer = Model::new(Kind::Dnn, &dataset.vocabulary, seed);
        let scorer = scorer.reader()?;
        let full = dataset.test.iter().copied().filter(|page| dataset.history(*page).len() == HISTORY).take(SLATES);
        let slate = |page: u32| -> Result<Asked> {
            let visit = dataset.visit(page);
            let items = match visit.items.len() == size.items {
                true => visit.items.to_vec(),
                false => shop.candidates(visit.shopper, visit.at_ms, size.items),
            };
            let point = scorer.point(&dataset, &Visit { items: &items, ..visit })?;
            let of_page = |page: &u32| {
                let page = &dataset.pages[*page as usize];
                (dataset.values(&page.items[..size.places]), page.at_ms)
            };
            let clicked = visit.history.iter().map(of_page).collect();
            Ok(Asked { page, values: dataset.values(&items), items, point, clicked })
        };
        let slates: Vec<Asked> = full.map(slate).collect::<Result<_>>()?;
        ensure!(slates.len() == SLATES, "only {} shoppers have a full history", slates.len());
        Ok(Self { size, all: orders(size.items, size.places), slates, dataset, model })
    }

    pub(crate) fn fields(&self) -> usize {
        self.dataset.vocabulary.fields()
    }

    pub(crate) fn visit<'a>(&'a self, slate: &'a Asked) -> Visit<'a> {
        Visit { items: &slate.items, ..self.dataset.visit(slate.page) }
    }

    /// Writes weights and slates for who does not know this code; `selected` has orders of each slate.
    pub(crate) fn write(&self, dir: &Path, selected: &[Vec<usize>]) -> Result<()> {
        let vocabulary = &self.dataset.vocabulary;
        let row = |(at, value): (usize, &u32)| vocabulary.values()[..at % self.fields()].iter().sum::<u32>() + value;
        let rows = |values: &[u32]| -> Vec<Vec<u32>> {
            let rows: Vec<u32> = values.iter().enumerate().map(row).collect();
            rows.chunks(self.fields()).map(<[u32]>::to_vec).collect()
        };
        let first_shopper: u32 = vocabulary.values().iter().sum();
        let slates = self.slates.iter().zip(selected).map(|(slate, selected)| {
            json!({
                "items": rows(&slate.values),
                "shopper": first_shopper + self.dataset.visit(slate.page).shopper,
                "point": slate.point,
                "history": slate.clicked.iter().map(|(values, _)| rows(values)).collect::<Vec<_>>(),
                "some": selected.iter().map(|order| &self.all[*order]).collect::<Vec<_>>(),
            })
        });
        let slates: Vec<_> = slates.collect();
        let first_place = first_shopper + vocabulary.shoppers();
        let text = json!({
            "fields": self.fields(), "places": self.size.places, "first_place": first_place, "all": self.all, "slates": slates,
        });
        fs::write(dir.join("slates.json"), text.to_string())?;
        Ok(fs::write(dir.join("weights.safetensors"), self.model.weights().to_bytes())?)
    }
}
